//! `update`: every option, read back from the cgroup's files.

use std::fs;
use std::path::{Path, PathBuf};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::json;

on_runtimes! {
    every_option_reaches_its_file: holdfast runc;
    options_that_are_not_given_change_nothing: holdfast runc;
    a_document_wins_over_options: holdfast runc;
    sizes_have_units: holdfast runc;
    what_cannot_be_done_is_said: holdfast;
    an_ended_container_cannot_be_updated: holdfast runc;
}

/// Option, value, the file on v1 and what it holds then, the file on v2 and what it holds then.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

const OPTIONS: &[Row] = &[
    (
        "--cpu-share",
        "300",
        "cpu/cpu.shares",
        "300",
        "cpu.weight",
        "12",
    ),
    (
        "--cpu-period",
        "50000",
        "cpu/cpu.cfs_period_us",
        "50000",
        "cpu.max",
        "max 50000",
    ),
    (
        "--cpu-quota",
        "20000",
        "cpu/cpu.cfs_quota_us",
        "20000",
        "cpu.max",
        "20000 50000",
    ),
    (
        "--cpuset-cpus",
        "0",
        "cpuset/cpuset.cpus",
        "0",
        "cpuset.cpus",
        "0",
    ),
    (
        "--cpuset-mems",
        "0",
        "cpuset/cpuset.mems",
        "0",
        "cpuset.mems",
        "0",
    ),
    (
        "--memory",
        "67108864",
        "memory/memory.limit_in_bytes",
        "67108864",
        "memory.max",
        "67108864",
    ),
    (
        "--memory-reservation",
        "33554432",
        "memory/memory.soft_limit_in_bytes",
        "33554432",
        "memory.low",
        "33554432",
    ),
    (
        "--pids-limit",
        "44",
        "pids/pids.max",
        "44",
        "pids.max",
        "44",
    ),
    (
        "--pids-limit",
        "-1",
        "pids/pids.max",
        "max",
        "pids.max",
        "max",
    ),
];

fn root() -> &'static Path {
    Path::new("/sys/fs/cgroup")
}

fn own(bundle: &Bundle) -> PathBuf {
    let path = bundle.spec["linux"]["cgroupsPath"].as_str().unwrap();
    PathBuf::from(path.trim_start_matches('/'))
}

/// A file of the container's cgroup by its name on v1 and on v2; `None` where the kernel lacks it.
fn read(bundle: &Bundle, v1: &str, v2: &str) -> Option<String> {
    let (controller, file) = v1.split_once('/').unwrap();
    let path = if root().join(controller).is_dir() {
        root().join(controller).join(own(bundle)).join(file)
    } else {
        root().join(own(bundle)).join(v2)
    };
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn is_v1() -> bool {
    !root().join("cgroup.controllers").exists()
}

fn running(scratch: &Scratch) -> Bundle {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    bundle
}

fn every_option_reaches_its_file(scratch: &Scratch) {
    let bundle = running(scratch);
    for (option, value, v1, on_v1, v2, on_v2) in OPTIONS {
        if read(&bundle, v1, v2).is_none() {
            eprintln!("SKIPPED {option}: this kernel has no {v1}");
            continue;
        }
        scratch.call(&["update", option, value, &bundle.id]).ok();
        let expected = match *option {
            // runc 1.1.5 and crun 1.8.1 convert shares to a weight along a line; later ones,
            // and holdfast, along the curve on which the defaults (1024, 100) meet.
            "--cpu-share" if !is_v1() && scratch.runtime.kind == Kind::Holdfast => &"39",
            _ if is_v1() => on_v1,
            _ => on_v2,
        };
        let seen = read(&bundle, v1, v2);
        assert_eq!(seen.as_deref(), Some(*expected), "{option} {value}");
    }
    let swap = ["memory/memory.memsw.limit_in_bytes", "memory.swap.max"];
    if read(&bundle, swap[0], swap[1]).is_some() {
        scratch
            .call(&[
                "update",
                "--memory-swap",
                "96m",
                "--memory",
                "64m",
                &bundle.id,
            ])
            .ok();
        let expected = if is_v1() { 96 << 20 } else { 32 << 20 };
        let seen = read(&bundle, swap[0], swap[1]).unwrap();
        assert_eq!(seen, expected.to_string());
    }
    // With BFQ the weight is its own on either version; without, v2 has another range.
    for (v1, v2, on_v2) in [
        ("blkio/blkio.bfq.weight", "io.bfq.weight", "default 300"),
        ("blkio/blkio.weight", "io.weight", "default 2930"),
    ] {
        if read(&bundle, v1, v2).is_some() {
            scratch
                .call(&["update", "--blkio-weight", "300", &bundle.id])
                .ok();
            let expected = if is_v1() { "300" } else { on_v2 };
            let seen = read(&bundle, v1, v2).unwrap();
            assert_eq!(seen.lines().next(), Some(expected), "{v1} {v2}");
            break;
        }
    }
    // v1 only: the files are there when the kernel schedules real-time processes by group.
    let real_time = [
        ("--cpu-rt-period", "900000", "cpu/cpu.rt_period_us"),
        ("--cpu-rt-runtime", "0", "cpu/cpu.rt_runtime_us"),
    ];
    for (option, value, v1) in real_time {
        if is_v1() && read(&bundle, v1, "").is_some() {
            scratch.call(&["update", option, value, &bundle.id]).ok();
            assert_eq!(read(&bundle, v1, "").as_deref(), Some(value), "{option}");
        }
    }
    // runc 1.1.5 does not know these yet.
    let newer = [
        (
            "--cpu-burst",
            "10000",
            "cpu/cpu.cfs_burst_us",
            "cpu.max.burst",
        ),
        ("--cpu-idle", "1", "cpu/cpu.idle", "cpu.idle"),
    ];
    for (option, value, v1, v2) in newer {
        if scratch.runtime.kind == Kind::Holdfast && read(&bundle, v1, v2).is_some() {
            scratch.call(&["update", option, value, &bundle.id]).ok();
            assert_eq!(read(&bundle, v1, v2).as_deref(), Some(value), "{option}");
        }
    }
    scratch.end(&bundle);
}

fn options_that_are_not_given_change_nothing(scratch: &Scratch) {
    let bundle = running(scratch);
    let limits = [
        "--memory",
        "64m",
        "--pids-limit",
        "44",
        "--cpu-share",
        "300",
    ];
    scratch
        .call(&[&["update"], &limits[..], &[&bundle.id]].concat())
        .ok();
    scratch
        .call(&["update", "--pids-limit", "55", &bundle.id])
        .ok();
    scratch.call(&["update", &bundle.id]).ok();
    let memory = read(&bundle, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, Some((64 << 20).to_string()));
    assert_eq!(
        read(&bundle, "pids/pids.max", "pids.max").as_deref(),
        Some("55")
    );
    scratch.end(&bundle);
}

fn a_document_wins_over_options(scratch: &Scratch) {
    let bundle = running(scratch);
    let file = scratch.path("resources.json");
    fs::write(&file, json!({"pids": {"limit": 66}}).to_string()).unwrap();
    let words = [
        "update",
        "--pids-limit",
        "77",
        "--resources",
        &text(&file),
        &bundle.id,
    ];
    scratch.call(&words).ok();
    assert_eq!(
        read(&bundle, "pids/pids.max", "pids.max").as_deref(),
        Some("66")
    );
    scratch.end(&bundle);
}

fn sizes_have_units(scratch: &Scratch) {
    let bundle = running(scratch);
    for (size, bytes) in [("65536k", 64 << 20), ("48M", 48 << 20), ("0.5g", 512 << 20)] {
        scratch.call(&["update", "--memory", size, &bundle.id]).ok();
        let seen = read(&bundle, "memory/memory.limit_in_bytes", "memory.max");
        assert_eq!(seen, Some(bytes.to_string()), "{size}");
    }
    scratch.end(&bundle);
}

fn what_cannot_be_done_is_said(scratch: &Scratch) {
    let bundle = running(scratch);
    let said = |words: &[&str]| {
        let words = [&["update"], words, &[&bundle.id]].concat();
        scratch.call(&words).failed().to_owned()
    };
    if !Path::new("/sys/fs/resctrl/schemata").exists() {
        for option in ["--l3-cache-schema", "--mem-bw-schema"] {
            let told = said(&[option, "L3:0=f"]);
            assert!(
                told.contains("Intel RDT") && told.contains("resctrl"),
                "{told}"
            );
        }
    }
    let told = said(&["--memory", "much"]);
    assert!(told.contains("--memory \"much\" is no size"), "{told}");
    let told = said(&["--nonsense", "1"]);
    assert!(told.contains("--nonsense"), "{told}");
    if read(&bundle, "cpuset/cpuset.cpus", "cpuset.cpus").is_some() {
        let told = said(&["--cpuset-cpus", "4095"]);
        assert!(
            told.contains("cpuset.cpus") && told.contains("4095"),
            "{told}"
        );
    } else {
        let told = said(&["--cpuset-cpus", "0"]);
        assert!(told.contains("\"cpuset\" is not available"), "{told}");
    }
    // Not ours to fail for: kernels have dropped it.
    scratch
        .call(&["update", "--kernel-memory", "64m", &bundle.id])
        .ok();
    scratch.end(&bundle);
}

fn an_ended_container_cannot_be_updated(scratch: &Scratch) {
    let bundle = scratch.bundle("ended").args(&["true"]);
    let pid = scratch.start(&bundle);
    scratch.exit_of(pid);
    scratch
        .call(&["update", "--pids-limit", "55", &bundle.id])
        .failed();
    scratch.call(&["delete", &bundle.id]).ok();
}
