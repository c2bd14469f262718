//! Incident 4: init hung in `anon_pipe_write`. It exported its seccomp filter into a pipe before
//! anybody read, on a host where `fs.pipe-user-pages-soft` had made new pipes two pages small.
//!
//! It took all of these: a filter of more than 8192 bytes, an unprivileged user, no capability
//! that lifts the limit, and `noNewPrivileges`, which loads the filter after capabilities are gone.

use std::process::Command;
use std::time::Duration;

use holdfast_integration::bundle::docker_profile;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::{deadline, on_runtimes, place, skip, sysctl};
use serde_json::{Value, json};

on_runtimes! { create_with_two_page_pipes_finishes: holdfast runc crun; }

const SETTING: &str = "fs.pipe-user-pages-soft";
/// Bytes of two pages, and of one instruction of a filter.
const TWO_PAGES: usize = 8192;
const INSTRUCTION: usize = 8;

fn create_with_two_page_pipes_finishes(scratch: &Scratch) {
    let _small = match sysctl::set(SETTING, "1") {
        Ok(guard) => guard,
        Err(e) => return skip("i04_stuck_init", &format!("{SETTING} cannot be set: {e}")),
    };
    let bundle = scratch
        .bundle("stuck")
        .user_namespace(200_000)
        .with(|spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["process"]["noNewPrivileges"] = true.into();
            spec["linux"]["seccomp"] = large_profile();
        });
    let bundle = bundle.script("grep Seccomp: /proc/self/status; id -u");
    bundle.write();

    let ran = scratch.call(&["run", "--bundle", &text(&bundle.path), "stuck"]);
    assert_eq!(
        ran.ok().split_whitespace().collect::<Vec<_>>(),
        ["Seccomp:", "2", "1000"],
        "{ran}"
    );

    // The same again, looked at: that the filter is as large as the incident needs.
    let Some(strace) = place::program("strace") else {
        return skip(
            "i04_stuck_init",
            "strace is not installed: the filter's size is not checked",
        );
    };
    let trace = scratch.path("trace");
    let call = scratch.command(&["run", "--bundle", &text(&bundle.path), "stuck"]);
    let mut traced = Command::new(strace);
    traced
        .args(["-f", "-qq", "-e", "trace=seccomp,prctl", "-o"])
        .arg(&trace)
        .arg("--");
    traced.arg(call.get_program()).args(call.get_args());
    deadline::run(&mut traced, LIMIT).ok();
    let trace = std::fs::read_to_string(trace).unwrap();
    let largest = trace
        .split("{len=")
        .skip(1)
        .filter_map(|rest| rest.split(',').next()?.parse::<usize>().ok())
        .max()
        .unwrap_or_else(|| panic!("no filter was loaded: {trace}"));
    assert!(
        largest * INSTRUCTION > TWO_PAGES,
        "the filter has only {largest} instructions"
    );
}

/// Docker's profile, and rules with arguments that libseccomp cannot merge.
fn large_profile() -> Value {
    let mut profile = docker_profile();
    let rules = profile["syscalls"].as_array_mut().expect("rules");
    let names = [
        "acct",
        "add_key",
        "bpf",
        "clock_adjtime",
        "clock_settime",
        "delete_module",
        "fanotify_init",
        "finit_module",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "init_module",
        "kcmp",
        "kexec_load",
        "keyctl",
        "lookup_dcookie",
        "mbind",
        "migrate_pages",
        "mount",
        "mount_setattr",
        "move_mount",
        "move_pages",
        "open_by_handle_at",
        "open_tree",
        "perf_event_open",
        "pivot_root",
        "quotactl",
        "reboot",
        "request_key",
        "set_mempolicy",
        "setdomainname",
        "sethostname",
        "setns",
        "settimeofday",
        "swapoff",
        "swapon",
        "syslog",
        "umount2",
        "userfaultfd",
        "vhangup",
    ];
    for (place, name) in names.iter().enumerate() {
        for value in 0..6 {
            let value = 1_000_000 + place * 100 + value;
            rules.push(json!({
                "names": [name], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}],
            }));
        }
    }
    profile
}

/// The control: with the setting, an unprivileged writer of 12,000 bytes blocks until somebody
/// reads; without it, it does not. So the condition of the incident is really there above.
#[test]
fn a_late_reader_hangs_the_writer() {
    let Some(setpriv) = place::program("setpriv") else {
        return skip("i04 control", "setpriv is not installed");
    };
    let write_without_reader = || {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        std::os::unix::fs::chown(&fifo, Some(65_533), None).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(65_533), None).unwrap();
        // Opened for both directions, so that opening waits for nobody; nobody reads.
        let script = "exec 3<>\"$0\"; timeout 2 head -c 12000 /dev/zero >&3";
        let mut command = Command::new(&setpriv);
        command.args([
            "--reuid=65533",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]);
        command.args(["sh", "-c", script]).arg(&fifo);
        deadline::run(&mut command, Duration::from_secs(20))
    };
    let free = {
        // Also keeps the test above from setting it meanwhile.
        let _usual = match sysctl::set(SETTING, "16384") {
            Ok(guard) => guard,
            Err(e) => return skip("i04 control", &format!("{SETTING} cannot be set: {e}")),
        };
        write_without_reader()
    };
    assert_eq!(free.code(), 0, "a pipe of the usual size holds it: {free}");
    let small = sysctl::set(SETTING, "1").expect("it could be set a moment ago");
    let blocked = write_without_reader();
    drop(small);
    assert_eq!(
        blocked.code(),
        124,
        "should have hung until its timeout: {blocked}"
    );
}
