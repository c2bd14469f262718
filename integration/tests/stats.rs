//! Statistics: containerd's own shim and ours, asked about the same cgroup, say the same, field by field.
//!
//! Two containers share a cgroup, one of each shim, and are frozen in it, so that its counters stand
//! still. On cgroup v2 this runs in the guest of `make test-v2`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::reflect::{ReflectFieldRef, ReflectValueRef};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageDyn};
use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::shim::Shim;
use holdfast_integration::{deadline, image, on_containerds, place, skip};

on_containerds! { the_two_shims_count_alike; }

const LIMIT: Duration = Duration::from_secs(60);

/// Every field that is set, by its path.
type Fields = BTreeMap<String, String>;

fn fields(any: &Any) -> Fields {
    let mut all = Fields::new();
    match any.type_url.as_str() {
        "io.containerd.cgroups.v1.Metrics" => {
            walk(
                "",
                &v1::Metrics::parse_from_bytes(&any.value).unwrap(),
                &mut all,
            );
        }
        "io.containerd.cgroups.v2.Metrics" => {
            walk(
                "",
                &v2::Metrics::parse_from_bytes(&any.value).unwrap(),
                &mut all,
            );
        }
        other => panic!("statistics of type {other}"),
    }
    all.insert("type".to_owned(), any.type_url.clone());
    all
}

fn walk(path: &str, message: &dyn MessageDyn, all: &mut Fields) {
    let mut one = |name: String, value: ReflectValueRef<'_>| match value {
        ReflectValueRef::Message(inner) => {
            all.insert(name.clone(), "there".to_owned());
            walk(&format!("{name}."), &*inner, all);
        }
        value => {
            all.insert(name, value.to_string());
        }
    };
    for field in message.descriptor_dyn().fields() {
        let name = format!("{path}{}", field.name());
        match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => {
                if let Some(value) = value.value() {
                    one(name, value);
                }
            }
            ReflectFieldRef::Repeated(values) => {
                for at in 0..values.len() {
                    one(format!("{name}[{at}]"), values.get(at));
                }
            }
            ReflectFieldRef::Map(_) => panic!("{name} is a map"),
        }
    }
}

fn stats(shim: &Shim, id: &str) -> Fields {
    let mut request = api::StatsRequest::new();
    request.id = id.to_owned();
    let answer: api::StatsResponse = shim.call("Stats", &request).unwrap();
    fields(&answer.stats)
}

/// Those in which they differ; the numbers in the order theirs, ours.
fn differences(theirs: &Fields, ours: &Fields) -> BTreeMap<String, (String, String)> {
    let names: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let value = |fields: &Fields, name| fields.get(name).cloned().unwrap_or_default();
    names
        .into_iter()
        .map(|name| (name.clone(), (value(theirs, name), value(ours, name))))
        .filter(|(_, (theirs, ours))| theirs != ours)
        .collect()
}

fn program_of(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

fn the_two_shims_count_alike(containerd: &Containerd) {
    if peer() {
        return skip("stats", "it drives both shims by itself");
    }
    if place::program("runc").is_none() {
        return skip("stats", "runc is not installed");
    }
    let cgroup = format!("/{}/shared", containerd.namespace);
    let shims = [
        ("ours", "io.containerd.holdfast.v2"),
        ("theirs", "io.containerd.runc.v2"),
    ];
    for (id, runtime) in shims {
        containerd.remember(id);
        // Something to count: memory, a file, processes.
        let work =
            "dd if=/dev/zero of=/tmp/file bs=64k count=32 2>/dev/null; sleep 6000 & sleep 6001";
        containerd.ctr_ok(&[
            "run",
            "-d",
            "--null-io",
            "--cgroup",
            &cgroup,
            "--runtime",
            runtime,
            "--memory-limit",
            "268435456",
            image::NAME,
            id,
            "sh",
            "-c",
            work,
        ]);
    }
    let [ours, theirs] = shims.map(|(id, _)| Shim::of(containerd, id));
    // Two in each: what comes before them has been counted then.
    deadline::eventually("all processes sleep", LIMIT, || {
        let pids = ours.pids("ours").unwrap();
        let asleep = pids.iter().filter(|pid| program_of(**pid) == "sleep");
        (asleep.count() == 4).then_some(())
    });
    let mut pause = api::PauseRequest::new();
    pause.id = "ours".to_owned();
    ours.call::<_, api::Empty>("Pause", &pause).unwrap();
    let (mut last, mut more) = (BTreeMap::new(), Vec::new());
    let mut counted = BTreeMap::new();
    // The kernel brings its sums up to date a moment later.
    deadline::within(Duration::from_secs(20), || {
        let (theirs, ours) = (stats(&theirs, "theirs"), stats(&ours, "ours"));
        counted = theirs.clone();
        last = differences(&theirs, &ours);
        more = last
            .iter()
            .filter(|(name, both)| is_more(name, both))
            .map(|(name, _)| name.clone())
            .collect();
        last.retain(|name, both| !is_more(name, both));
        (last.is_empty() && not_counted(&counted).is_empty()).then_some(())
    });
    let mut resume = api::ResumeRequest::new();
    resume.id = "ours".to_owned();
    ours.call::<_, api::Empty>("Resume", &resume).unwrap();
    // The end of one takes the other along: what shares its cgroup is killed with it.
    for (shim, id) in [(&theirs, "theirs"), (&ours, "ours")] {
        let _ = shim.kill(id, "", 9);
    }
    for (id, _) in shims {
        containerd.await_status(id, "STOPPED");
        containerd.remove(id);
    }
    let count = counted.len();
    assert!(
        last.is_empty(),
        "of {count} fields these differ (theirs, ours): {last:#?}"
    );
    println!("{count} fields are the same, these only ours has: {more:?}");
    // That two say nothing would prove little.
    assert_eq!(not_counted(&counted), [""; 0], "in {counted:#?}");
}

/// Which fields hold nothing of what the containers do: on v1 and on v2.
fn not_counted(fields: &Fields) -> Vec<&'static str> {
    let names = if fields["type"].contains("v1") {
        [
            "cpu.usage.total",
            "memory.usage.usage",
            "memory.usage.limit",
            "memory.rss",
            "memory.cache",
            "pids.current",
        ]
    } else {
        [
            "cpu.usage_usec",
            "memory.usage",
            "memory.usage_limit",
            "memory.anon",
            "memory.file",
            "pids.current",
        ]
    };
    let missing = |name: &&str| !fields.contains_key(*name);
    names.into_iter().filter(missing).collect()
}

/// What an older containerd does not know, or reads under a name that the kernel does not use any more.
const YOUNGER: [&str; 5] = [
    "memory.max_usage",
    "memory.swap_max_usage",
    "memory.workingset_",
    "cpu.nr_bursts",
    ".psi",
];

/// What ours says and theirs does not.
fn is_more(name: &str, (theirs, _): &(String, String)) -> bool {
    theirs.is_empty() && YOUNGER.iter().any(|part| name.contains(part))
}
