//! Every operation of a pod's other containers hangs in its runtime; questions about this one are
//! answered as if nothing were, and so are those about the containers that hang.

use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use holdfast_integration::bundle::Bundle;
use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::eventually;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Refused, Shim, runc_options};
use holdfast_integration::{on_containerds, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_containerds! { questions_do_not_wait_for_a_frozen_pod; }

const LIMIT: Duration = Duration::from_secs(20);
const ROUNDS: usize = 200;

/// A runtime that hangs in the verbs that have a file `hang-VERB`, and writes down who hangs.
fn faulty_runtime(containerd: &Containerd) -> std::path::PathBuf {
    let path = containerd.path("faulty-runtime");
    let script = format!(
        "#!/bin/sh\nfor word; do\n  if [ -e \"{0}/hang-$word\" ]; then\n    \
         echo $$ >> \"{0}/hanging-$word\"; exec sleep 600\n  fi\ndone\nexec {1} \"$@\"\n",
        text(&containerd.path("")),
        text(&place::built("holdfast"))
    );
    place::write_program(&path, &script);
    path
}

fn hanging(containerd: &Containerd, verb: &str) -> Vec<i32> {
    std::fs::read_to_string(containerd.path(&format!("hanging-{verb}")))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

fn ask<T>(times: &mut Vec<Duration>, question: impl FnOnce() -> Result<T, Refused>) {
    let began = Instant::now();
    question().unwrap();
    times.push(began.elapsed());
}

/// How long the pod is frozen: a minute, in which all that can hang hangs at once, with both containerds.
const FROZEN: Duration = Duration::from_secs(60);
/// Between rounds of questions once there are enough of them: the rest of the minute is not for
/// seeing how fast one can ask.
const PAUSE: Duration = Duration::from_millis(50);

/// The time that 99 of 100 questions stay below, of the kind of question that takes longest: about
/// `box`, and about the containers `others`, for some time.
fn p99(shim: &Shim, others: &[&str], time: Duration) -> Duration {
    let began = Instant::now();
    let mut times: [Vec<Duration>; 5] = Default::default();
    while times[0].len() < ROUNDS || began.elapsed() < time {
        if times[4].len() >= ROUNDS {
            std::thread::sleep(PAUSE);
        }
        let [states, waits, pids, connects, stats] = &mut times;
        ask(waits, || shim.wait("box", "ended"));
        for id in ["box"].iter().chain(others).copied() {
            ask(states, || shim.state(id, ""));
            ask(pids, || shim.pids(id));
            let mut request = api::ConnectRequest::new();
            request.id = id.to_owned();
            ask(connects, || {
                shim.call::<_, api::ConnectResponse>("Connect", &request)
            });
        }
        let mut request = api::StatsRequest::new();
        request.id = "box".to_owned();
        ask(stats, || {
            shim.call::<_, api::StatsResponse>("Stats", &request)
        });
    }
    times
        .into_iter()
        .map(|mut times| {
            times.sort();
            times[times.len() * 99 / 100]
        })
        .max()
        .unwrap()
}

fn create(shim: &Shim, containerd: &Containerd, runtime: &Path, id: &str) -> Result<u32, Refused> {
    let bundle = Bundle::new(
        &containerd.path(&format!("bundle-{id}")),
        id,
        &containerd.namespace,
    );
    let bundle = bundle.args(&["sleep", "600"]);
    bundle.write();
    let mut request = api::CreateTaskRequest::new();
    request.id = id.to_owned();
    request.bundle = text(&bundle.path);
    let state = containerd.path("runtime-state");
    request.options = MessageField::some(runc_options(runtime, &state));
    shim.call::<_, api::CreateTaskResponse>("Create", &request)
        .map(|created| created.pid)
}

fn questions_do_not_wait_for_a_frozen_pod(containerd: &Containerd) {
    if peer() {
        return skip("a_frozen_pod", "containerd's own shim makes them wait");
    }
    let runtime = faulty_runtime(containerd);
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    shim.exec("box", "ended", &["true"]).unwrap();
    shim.start("box", "ended").unwrap();
    shim.wait("box", "ended").unwrap();
    for id in ["execs", "deleted"] {
        create(&shim, containerd, &runtime, id).unwrap();
        shim.start(id, "").unwrap();
    }
    create(&shim, containerd, &runtime, "starts").unwrap();
    shim.exec("execs", "hangs", &["true"]).unwrap();
    shim.kill("deleted", "", 9).unwrap();
    shim.wait("deleted", "").unwrap();
    let usual = p99(&shim, &["execs", "starts", "deleted"], Duration::ZERO);

    let verbs = ["create", "exec", "start", "delete"];
    for verb in verbs {
        std::fs::write(containerd.path(&format!("hang-{verb}")), "").unwrap();
    }
    // What hangs may hang for longer than the pod is frozen.
    let patient = shim.waiting(FROZEN + Duration::from_secs(60));
    let frozen = std::thread::scope(|scope| {
        let creating = scope.spawn(|| create(&patient, containerd, &runtime, "created").is_err());
        let starting_exec = scope.spawn(|| patient.start("execs", "hangs").is_err());
        let starting = scope.spawn(|| patient.start("starts", "").is_err());
        let deleting = scope.spawn(|| patient.delete("deleted", "").is_err());
        for verb in verbs {
            eventually(&format!("{verb} hangs"), LIMIT, || {
                (!hanging(containerd, verb).is_empty()).then_some(())
            });
        }
        // Kill of a container whose start hangs does not hang.
        let began = Instant::now();
        shim.kill("starts", "", 9).unwrap();
        assert!(began.elapsed() < Duration::from_secs(1));
        let frozen = p99(&shim, &["execs", "starts", "deleted"], FROZEN);
        for verb in verbs {
            std::fs::remove_file(containerd.path(&format!("hang-{verb}"))).unwrap();
            for pid in hanging(containerd, verb) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        assert!(creating.join().unwrap() && starting_exec.join().unwrap());
        assert!(starting.join().unwrap() && deleting.join().unwrap());
        frozen
    });
    // On a machine that is busy with other things the time is that machine's.
    let bound = Duration::from_millis(20).max(usual * 3);
    assert!(
        frozen < bound,
        "99 of 100 answers within {frozen:?}, without the hanging ones within {usual:?}"
    );

    // And everything can be ended: what hung has failed, and is done again.
    shim.kill("execs", "", 9).unwrap();
    for id in ["execs", "starts", "deleted"] {
        shim.wait(id, "").unwrap();
        shim.delete(id, "").unwrap();
    }
    assert_eq!(shim.state("created", "").unwrap_err().code, 5);
    containerd.end_task("box");
}
