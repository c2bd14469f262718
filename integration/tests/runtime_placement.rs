//! On which CPUs an exec process runs, and from which nodes a container's memory comes.

use std::fs;

use holdfast_integration::scratch::Scratch;
use holdfast_integration::{on_runtimes, skip};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

// runc 1.1.5 and crun 1.8.1 know neither.
on_runtimes! {
    an_exec_process_runs_on_the_cpus_asked_for: holdfast;
    lists_of_cpus_that_cannot_be_are_refused: holdfast;
    memory_comes_from_the_nodes_asked_for: holdfast;
    a_memory_policy_that_cannot_be_is_refused: holdfast;
}

/// The first and the last CPU this test may run on, if they are two.
fn cpus() -> Option<(usize, usize)> {
    let own = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut list = (0..CpuSet::count()).filter(|cpu| own.is_set(*cpu).unwrap());
    let first = list.next()?;
    Some((first, list.next_back()?))
}

fn looking(affinity: Value) -> Value {
    json!({
        "args": ["grep", "Cpus_allowed_list", "/proc/self/status"],
        "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
        "execCPUAffinity": affinity,
    })
}

fn an_exec_process_runs_on_the_cpus_asked_for(scratch: &Scratch) {
    let Some((first, last)) = cpus() else {
        return skip("execCPUAffinity", "there is one CPU only");
    };
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let seen = |affinity: Value| {
        let ran = scratch.exec_process(&bundle, &looking(affinity));
        ran.ok().split_whitespace().last().unwrap().to_owned()
    };
    let (first, last) = (first.to_string(), last.to_string());
    let everywhere = seen(json!({}));
    assert_ne!(everywhere, first);
    assert_eq!(seen(json!({"final": first})), first);
    assert_eq!(seen(json!({"initial": last, "final": first})), first);
    // Where the cgroup leaves it alone, as on this machine, the first choice stays.
    assert_eq!(seen(json!({"initial": last})), last);
    scratch.end(&bundle);
}

fn lists_of_cpus_that_cannot_be_are_refused(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    for (affinity, words) in [
        (json!({"final": "3-1"}), "execCPUAffinity.final"),
        (json!({"initial": "77777"}), "execCPUAffinity.initial"),
        (
            json!({"final": "1000"}),
            "execCPUAffinity.final: sched_setaffinity",
        ),
    ] {
        let ran = scratch.exec_process(&bundle, &looking(affinity.clone()));
        assert_ne!(ran.code(), 0, "{affinity}: {ran}");
        let plain = ran.stderr.replace(" (", ": ");
        assert!(plain.contains(words), "{affinity}: {ran}");
    }
    // It was the exec that failed, nothing else.
    assert_eq!(scratch.state("box")["status"], "running");
    scratch.end(&bundle);
}

fn memory_comes_from_the_nodes_asked_for(scratch: &Scratch) {
    if fs::metadata("/proc/self/numa_maps").is_err() {
        return skip("memoryPolicy", "this kernel has no NUMA");
    }
    for (name, policy, expected) in [
        ("bind", json!({"mode": "MPOL_BIND", "nodes": "0"}), "bind:0"),
        (
            "prefer",
            json!({"mode": "MPOL_PREFERRED", "nodes": "0"}),
            "prefer:0",
        ),
        (
            "interleave",
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}),
            "interleave:0",
        ),
        (
            "static",
            json!({"mode": "MPOL_BIND", "nodes": "0-0", "flags": ["MPOL_F_STATIC_NODES"]}),
            "bind=static:0",
        ),
        ("local", json!({"mode": "MPOL_LOCAL"}), "local"),
        ("default", json!({"mode": "MPOL_DEFAULT"}), "default"),
    ] {
        let bundle = scratch
            .bundle(name)
            .with(|spec| spec["linux"]["memoryPolicy"] = policy)
            .script("head -n 1 /proc/self/numa_maps; exec sleep 600");
        scratch.start(&bundle);
        let exec = scratch.exec(&bundle, &["head", "-n", "1", "/proc/self/numa_maps"]);
        assert_eq!(exec.ok().split(' ').nth(1).unwrap(), expected, "{exec}");
        let told = holdfast_integration::deadline::eventually(
            "what init sees",
            holdfast_integration::scratch::LIMIT,
            || {
                let told = scratch.output(&bundle).0;
                told.ends_with('\n').then_some(told)
            },
        );
        assert_eq!(told.split(' ').nth(1).unwrap(), expected, "{told}");
        scratch.end(&bundle);
    }
}

fn a_memory_policy_that_cannot_be_is_refused(scratch: &Scratch) {
    for (name, policy, words) in [
        ("none", json!({"mode": "MPOL_BIND"}), "set_mempolicy"),
        (
            "absent",
            json!({"mode": "MPOL_BIND", "nodes": "900"}),
            "900",
        ),
        (
            "list",
            json!({"mode": "MPOL_BIND", "nodes": "2-"}),
            "linux.memoryPolicy.nodes",
        ),
    ] {
        let bundle = scratch.bundle(name);
        let ran = scratch.run(&bundle.with(|spec| spec["linux"]["memoryPolicy"] = policy));
        assert_ne!(ran.code(), 0, "{ran}");
        assert!(ran.stderr.contains(words), "{name}: {ran}");
    }
}
