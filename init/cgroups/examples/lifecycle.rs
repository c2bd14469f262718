//! One container's cgroup, from create to remove, with docker-like limits; for `strace -c` and timing.
//!
//! `lifecycle [rounds [enter]]` prints the median time of each step. Needs root.
#![expect(clippy::unwrap_used, reason = "an example ends with its first error")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_cgroups::{Cgroup, CgroupPath, Driver, Hierarchies, When, default_device_rules};
use oci_spec::runtime::LinuxResources;

fn main() {
    let rounds: usize = std::env::args()
        .nth(1)
        .map_or(1, |text| text.parse().unwrap());
    let mut resources: LinuxResources = serde_json::from_str(
        r#"{"memory":{"limit":67108864,"swap":134217728},"cpu":{"shares":512},
            "devices":[{"allow":false,"access":"rwm"}]}"#,
    )
    .unwrap();
    let mut rules = resources.devices().clone().unwrap();
    rules.extend(default_device_rules());
    resources.set_devices(Some(rules));

    // With `enter`, this process enters by itself, as a child would between clone and execve.
    let enter = std::env::args().nth(2).is_some_and(|text| text == "enter");
    let own_pid = i32::try_from(std::process::id()).unwrap();
    // Where this process is: for the most part in the roots, as kthreadd (pid 2) is.
    let roots = Cgroup::of_process(&Hierarchies::detect().unwrap(), 2).unwrap();
    let home = Cgroup::of_process(&Hierarchies::detect().unwrap(), own_pid).unwrap();
    let names = ["detect", "create", "apply", "attach", "remove"];
    let mut times = vec![Vec::new(); names.len()];
    for _ in 0..rounds {
        // An attach makes the next few milliseconds' worth of them cheap; containers seldom come that close.
        std::thread::sleep(Duration::from_millis(100));
        let mut child = Command::new("/bin/sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let path = format!("/holdfast-example-{}", std::process::id());

        let mut marks = vec![Instant::now()];
        let mut mark = || marks.push(Instant::now());
        // A name to look for in the trace.
        let _ = std::fs::metadata("/BEGIN");
        let hierarchies = Hierarchies::detect().unwrap();
        mark();
        let path = CgroupPath::new(Some(Path::new(&path)), Driver::Cgroupfs, "x", "x").unwrap();
        let cgroup = Cgroup::create(&hierarchies, &path, Some(&resources)).unwrap();
        mark();
        cgroup.apply(&resources, When::Create).unwrap();
        mark();
        if enter {
            cgroup.entrance().unwrap().enter().unwrap();
        } else {
            cgroup.attach(pid).unwrap();
        }
        mark();
        let _ = std::fs::metadata("/END");
        if enter {
            roots.entrance().unwrap().enter().unwrap();
            home.entrance().unwrap().enter().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let began = Instant::now();
        let _ = std::fs::metadata("/BEGIN");
        cgroup
            .remove(Instant::now() + Duration::from_secs(10))
            .unwrap();
        let _ = std::fs::metadata("/END");
        let removed = began.elapsed();
        for (n, pair) in marks.windows(2).enumerate() {
            times[n].push(pair[1] - pair[0]);
        }
        times[4].push(removed);
    }
    for (name, mut times) in names.into_iter().zip(times) {
        times.sort();
        println!(
            "{name:8} median {:?} min {:?}",
            times[times.len() / 2],
            times[0]
        );
    }
}
