//! The node goes down: what is written of containers that will not outlive it.
//!
//! At the end of a shutdown `systemd-shutdown` asks all that is left to end (SIGTERM), waits, and kills the rest, everything
//! in the same instant. A container that is deaf to SIGTERM, as every init process without a handler is, then ends together
//! with the shim that would say why: so that is said while there is time.

use std::sync::Arc;
use std::time::Duration;

use holdfast_record::ledger::{Kind, Record};
use holdfast_record::process::{ProcessIdentity, Stat};
use holdfast_record::{ContainerId, Reason, Timestamp};

use super::Shim;
use super::owner::whose;

/// What obeys has ended by then, and is recorded as any other end. systemd waits for ten seconds at the least.
const OBEYED: Duration = Duration::from_secs(1);

/// To be called at SIGTERM: records those that still run, if it is the node's end.
pub(crate) fn is_told_to_end(shim: &Arc<Shim>) {
    if !is_going_down() {
        return;
    }
    let shim = Arc::clone(shim);
    tokio::spawn(async move {
        tokio::time::sleep(OBEYED).await;
        let records = tokio::task::spawn_blocking({
            let shim = Arc::clone(&shim);
            move || records(&shim)
        });
        for record in records.await.unwrap_or_default() {
            shim.scribe.write(record);
        }
    });
}

/// The name is cut off by the kernel.
fn is_going_down() -> bool {
    Stat::read(1).is_ok_and(|stat| stat.comm == "systemd-shutdow")
}

fn records(shim: &Shim) -> Vec<Record> {
    let reason = Reason::NodeShutdown {
        signal: None,
        seen_by: "pid 1 is systemd-shutdown, which kills what has not ended after SIGTERM"
            .to_owned(),
    };
    let ids = shim.ids();
    let one = |id: &String| {
        let view = shim.container(id).ok()?.view().ok()?;
        let process = view
            .init
            .process
            .as_ref()
            .filter(|_| view.init.ended.is_none())?;
        let (name, pod) = whose(&view.bundle);
        let record = Record::new(Kind::Container, &reason, Timestamp::now())
            .of_container(Some(&shim.namespace), &ContainerId::new(id.as_str()).ok()?)
            .with_name(name)
            .with_pod(pod);
        Some(match ProcessIdentity::read(process.pid()) {
            Ok(identity) => record.with_process(identity),
            Err(_) => record,
        })
    };
    ids.iter().filter_map(one).collect()
}
