use std::io::BufRead;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use holdfast_record::exit::ExitStatus;
use holdfast_record::process::ProcessIdentity;
use holdfast_record::reason::Reason;
use oci_spec::runtime::HookBuilder;

use super::*;
use crate::sys::clone;

fn shell(script: &str) -> Hook {
    let args = ["a hook", "-c", script].map(str::to_owned);
    HookBuilder::default()
        .path("/bin/sh")
        .args(args)
        .build()
        .unwrap()
}

fn run_here(stage: HookStage, hooks: &[Hook], bundle: &Path) -> Result<(), Error> {
    run_hooks(stage, hooks, b"{\"id\":\"c1\"}", bundle, None)
}

fn read(bundle: &Path, name: &str) -> String {
    std::fs::read_to_string(bundle.join(name)).unwrap()
}

fn failure(hook: Hook) -> Error {
    let bundle = tempfile::tempdir().unwrap();
    run_here(HookStage::CreateRuntime, &[hook], bundle.path()).unwrap_err()
}

#[test]
fn gets_state_arguments_directory_and_nothing_but_its_own_environment() {
    let bundle = tempfile::tempdir().unwrap();
    let mut hook =
        shell("cat > state; echo \"$0\" > name; tr '\\0' '\\n' < /proc/self/environ > env");
    hook.set_env(Some(vec![
        "COLOUR=blue".into(),
        "PATH=/usr/bin:/bin".into(),
    ]));
    run_here(HookStage::CreateRuntime, &[hook], bundle.path()).unwrap();
    assert_eq!(read(bundle.path(), "state"), "{\"id\":\"c1\"}");
    assert_eq!(
        read(bundle.path(), "name"),
        "/bin/sh\n".replace("/bin/sh", "a hook")
    );
    // The shell adds PWD for its children; nothing of this test's own environment is there.
    let env = read(bundle.path(), "env");
    let mut names: Vec<&str> = env
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    names.sort_unstable();
    assert!(
        names.contains(&"COLOUR") && names.contains(&"PATH"),
        "{names:?}"
    );
    assert!(!env.contains("CARGO") && !names.contains(&"HOME"), "{env}");
}

#[test]
fn sees_three_descriptors_and_default_signals() {
    let bundle = tempfile::tempdir().unwrap();
    let inheritable = nix::unistd::dup(0).unwrap();
    let hook = shell("ls /proc/self/fd > fds; grep -E 'SigIgn|SigBlk' /proc/self/status > signals");
    run_here(HookStage::CreateRuntime, &[hook], bundle.path()).unwrap();
    nix::unistd::close(inheritable).unwrap();
    // 3 is the directory that ls itself reads.
    assert_eq!(read(bundle.path(), "fds"), "0\n1\n2\n3\n");
    for line in read(bundle.path(), "signals").lines() {
        let mask = u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
        assert_eq!(mask & (1 << (libc::SIGPIPE - 1)), 0, "{line}");
    }
}

#[test]
fn a_failure_carries_status_and_both_outputs() {
    let error = failure(shell("echo said; echo complained >&2; exit 3"));
    assert_eq!(
        error.to_string(),
        "createRuntime hook 1 of 1 (/bin/sh) failed: exit code 3; stderr: complained; stdout: said"
    );
    let Reason::HookFailed {
        hook,
        status,
        stdout,
        stderr,
        ..
    } = error.reason()
    else {
        panic!("{error:?}");
    };
    assert_eq!(
        (hook.number, hook.of, hook.stage.as_str()),
        (1, 1, "createRuntime")
    );
    assert_eq!(status, Some(ExitStatus::Exited(3)));
    assert_eq!(
        (stdout.as_str(), stderr.as_str()),
        ("said\n", "complained\n")
    );

    let killed = failure(shell("kill -9 $$"));
    assert!(killed.to_string().contains("failed: SIGKILL"), "{killed}");
}

#[test]
fn a_program_that_is_not_there_is_named_with_the_kernels_answer() {
    let error = failure(
        HookBuilder::default()
            .path("/no/such/hook")
            .build()
            .unwrap(),
    );
    let Error::Start {
        place,
        doing,
        source,
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(
        (place.path.as_str(), *doing),
        ("/no/such/hook", "execute it")
    );
    assert_eq!(source.raw_os_error(), Some(libc::ENOENT));

    let error = run_here(
        HookStage::Prestart,
        &[shell("true")],
        Path::new("/no/such/bundle"),
    );
    let Err(Error::Start { doing, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(doing, "enter its working directory");
}

#[test]
fn an_entry_that_cannot_be_used_is_refused_before_anything_runs() {
    let problem = |hook| match failure(hook) {
        Error::Invalid { problem, .. } => problem,
        error => panic!("{error:?}"),
    };
    assert_eq!(
        problem(HookBuilder::default().path("bin/sh").build().unwrap()),
        "its path must be absolute"
    );
    let mut hook = shell("true");
    hook.set_timeout(Some(0));
    assert_eq!(problem(hook), "its timeout must be above 0 seconds, not 0");
    let mut hook = shell("true");
    hook.set_env(Some(vec!["A=\0".into()]));
    assert_eq!(problem(hook), "its env must not contain a NUL byte");
}

#[test]
fn a_hook_that_never_reads_its_large_state_does_not_block() {
    let bundle = tempfile::tempdir().unwrap();
    let state = vec![b'x'; 4 << 20];
    run_hooks(
        HookStage::CreateRuntime,
        &[shell("true")],
        &state,
        bundle.path(),
        None,
    )
    .unwrap();
    run_hooks(
        HookStage::CreateRuntime,
        &[shell("wc -c > count")],
        &state,
        bundle.path(),
        None,
    )
    .unwrap();
    assert_eq!(read(bundle.path(), "count").trim(), (4 << 20).to_string());
}

#[test]
fn the_state_cannot_be_changed_by_a_hook() {
    let bundle = tempfile::tempdir().unwrap();
    let hook = shell("echo x 2>/dev/null >/proc/self/fd/0 && exit 1; cat > state");
    run_here(
        HookStage::CreateRuntime,
        &[hook.clone(), hook],
        bundle.path(),
    )
    .unwrap();
    assert_eq!(read(bundle.path(), "state"), "{\"id\":\"c1\"}");
}

#[test]
fn much_output_on_both_streams_is_kept_at_both_ends() {
    let script = "echo first; echo first >&2
        head -c 3000000 /dev/zero | tr '\\0' o & head -c 3000000 /dev/zero | tr '\\0' e >&2
        wait; echo last; echo last >&2; exit 1";
    let Error::Failed { output, .. } = failure(shell(script)) else {
        panic!()
    };
    for text in [&output.stdout, &output.stderr] {
        assert!(text.starts_with("first\n") && text.ends_with("last\n"));
        assert!(text.len() < 2 * OUTPUT_LIMIT + 100, "{}", text.len());
        let left_out = 3_000_000 + 6 + 5 - 2 * OUTPUT_LIMIT;
        assert!(text.contains(&format!("… {left_out} bytes left out …")));
    }
}

#[test]
fn a_process_left_behind_with_the_pipes_open_is_not_waited_for() {
    let bundle = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let hook = shell("sleep 300 & echo $! > pid");
    run_here(HookStage::Poststart, &[hook], bundle.path()).unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    let pid = read(bundle.path(), "pid").trim().parse().unwrap();
    assert!(
        ProcessIdentity::read(pid).unwrap().is_alive(),
        "a daemon of a hook lives on"
    );
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
}

#[test]
fn at_its_deadline_the_whole_group_is_killed_and_the_error_says_where_it_stood() {
    let bundle = tempfile::tempdir().unwrap();
    let mut hook = shell("echo before; sleep 300 & echo $$ $! > pids; wait");
    hook.set_timeout(Some(1));
    let error = run_here(
        HookStage::CreateRuntime,
        &[shell("true"), hook],
        bundle.path(),
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(
            "createRuntime hook 2 of 2 (/bin/sh) did not finish within 1000 ms and was killed: pid "
        ),
        "{text}"
    );
    assert!(text.contains("(sh), state S (sleeping)"), "{text}");
    assert!(text.ends_with("; stdout: before"), "{text}");
    let Error::TimedOut {
        process,
        gone: true,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    let pids = read(bundle.path(), "pids");
    let mut pids = pids
        .split_whitespace()
        .map(|pid| pid.parse::<u32>().unwrap());
    assert_eq!(pids.next().unwrap(), process.pid);
    assert!(
        ProcessIdentity::read(process.pid).is_err(),
        "it was waited for"
    );
    // The grandchild has been signalled; its reaper is another process, so only its end is ours to see.
    let grandchild = pids.next().unwrap();
    let dead = || !ProcessIdentity::read(grandchild).is_ok_and(|process| process.is_alive());
    let patience = Deadline::after(Duration::from_secs(10), "the end of the grandchild");
    while !dead() {
        assert!(!patience.is_expired(), "the hook's child survived it");
        std::thread::yield_now();
    }
    assert_eq!(error.reason().code(), "HF142");
}

#[test]
fn the_first_failure_ends_a_stage_but_clean_up_goes_on() {
    let hooks = [
        shell("echo 1 >> log; exit 1"),
        shell("echo 2 >> log; exit 2"),
    ];
    for (stage, log) in [
        (HookStage::CreateRuntime, "1\n"),
        (HookStage::Poststop, "1\n2\n"),
    ] {
        let bundle = tempfile::tempdir().unwrap();
        let error = run_here(stage, &hooks, bundle.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("hook 1 of 2 (/bin/sh) failed: exit code 1"),
            "{error}"
        );
        assert_eq!(read(bundle.path(), "log"), log);
    }
}

#[test]
fn stages_have_their_names_of_the_configuration() {
    let names = HookStage::ALL.map(HookStage::name);
    let json: String = names
        .iter()
        .map(|name| format!("\"{name}\":[{{\"path\":\"/x\"}}],"))
        .collect();
    let hooks: oci_spec::runtime::Hooks =
        serde_json::from_str(&format!("{{{}}}", json.trim_end_matches(','))).unwrap();
    let found = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    assert!(
        found
            .iter()
            .all(|hooks| hooks.as_ref().is_some_and(|hooks| hooks.len() == 1))
    );
}

/// A process in namespaces of its own, killed when dropped.
struct Inside {
    unshare: Child,
    pid: u32,
    pidfd: OwnedFd,
}

impl Inside {
    fn new(args: &[&str]) -> Option<Self> {
        let mut unshare = Command::new("unshare")
            .args(args)
            .args(["--fork", "sh", "-c", "echo ready; exec sleep 300"])
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let stdout = unshare.stdout.take().unwrap();
        std::io::BufReader::new(stdout)
            .read_line(&mut line)
            .unwrap();
        if line != "ready\n" {
            let _ = unshare.wait();
            println!("skipped: unshare {args:?} is not possible here");
            return None;
        }
        let id = unshare.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let pid: u32 = children.trim().parse().unwrap();
        let pidfd = clone::open_pidfd(pid.try_into().unwrap()).unwrap();
        Some(Self {
            unshare,
            pid,
            pidfd,
        })
    }

    /// What `readlink /proc/PID/ns/NAME` says of it, a line each.
    fn namespaces(&self, names: &[&str]) -> String {
        names
            .iter()
            .map(|name| {
                let link = std::fs::read_link(format!("/proc/{}/ns/{name}", self.pid)).unwrap();
                format!("{}\n", link.display())
            })
            .collect()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = clone::signal_pidfd(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = self.unshare.wait();
    }
}

/// A script that writes its own namespaces into the file `namespaces`.
fn tells_namespaces(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("readlink /proc/self/ns/{name} >> namespaces; "))
        .collect()
}

fn own_pid_namespaces() -> [PathBuf; 2] {
    ["pid", "pid_for_children"]
        .map(|name| std::fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap())
}

#[test]
fn a_hook_of_the_container_runs_in_its_namespaces_and_the_runtime_stays_outside() {
    let args = [
        "--mount-proc",
        "--uts",
        "--ipc",
        "--net",
        "--pid",
        "--cgroup",
    ];
    let Some(inside) = Inside::new(&args) else {
        return;
    };
    let bundle = tempfile::tempdir().unwrap();
    let names = ["mnt", "uts", "ipc", "net", "pid", "cgroup"];
    let script = format!(
        "cat > state; pwd > pwd; echo $$ > pid; {}",
        tells_namespaces(&names)
    );
    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWCGROUP;
    let join = HookNamespaces {
        pidfd: inside.pidfd.as_fd(),
        flags,
    };
    let before = own_pid_namespaces();
    let hooks = [shell(&script)];
    run_hooks(
        HookStage::CreateContainer,
        &hooks,
        b"{}",
        bundle.path(),
        Some(&join),
    )
    .unwrap();
    assert_eq!(own_pid_namespaces(), before);
    assert_eq!(read(bundle.path(), "state"), "{}");
    assert_eq!(
        read(bundle.path(), "pwd").trim(),
        bundle.path().to_str().unwrap()
    );
    assert_eq!(read(bundle.path(), "namespaces"), inside.namespaces(&names));
    let pid: u32 = read(bundle.path(), "pid").trim().parse().unwrap();
    assert!(
        (2..20).contains(&pid),
        "pid {pid} is not one of a young pid namespace"
    );
}

#[test]
fn a_failing_hook_in_a_pid_namespace_is_described_by_its_pid_out_here() {
    let Some(inside) = Inside::new(&["--pid"]) else {
        return;
    };
    let bundle = tempfile::tempdir().unwrap();
    let mut hook = shell("exec sleep 300");
    hook.set_timeout(Some(1));
    let join = HookNamespaces {
        pidfd: inside.pidfd.as_fd(),
        flags: libc::CLONE_NEWPID,
    };
    let error = run_hooks(
        HookStage::CreateContainer,
        &[hook],
        b"{}",
        bundle.path(),
        Some(&join),
    );
    let Err(Error::TimedOut {
        process,
        gone: true,
        ..
    }) = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(process.comm.as_deref(), Some("sleep"));
}

#[test]
fn a_hook_in_a_user_namespace_is_its_root() {
    let Some(inside) = Inside::new(&["--user", "--mount", "--uts"]) else {
        return;
    };
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", inside.pid), "0 100000 65536").unwrap();
    }
    let bundle = tempfile::tempdir().unwrap();
    std::fs::set_permissions(bundle.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let names = ["user", "mnt", "uts"];
    let script = format!("id -u > uid; id -g > gid; {}", tells_namespaces(&names));
    let join = HookNamespaces {
        pidfd: inside.pidfd.as_fd(),
        flags: libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWUTS,
    };
    let hooks = [shell(&script)];
    run_hooks(
        HookStage::CreateContainer,
        &hooks,
        b"{}",
        bundle.path(),
        Some(&join),
    )
    .unwrap();
    assert_eq!(read(bundle.path(), "namespaces"), inside.namespaces(&names));
    assert_eq!(
        (read(bundle.path(), "uid"), read(bundle.path(), "gid")),
        ("0\n".into(), "0\n".into())
    );
    let owner = std::fs::metadata(bundle.path().join("uid")).unwrap().uid();
    assert_eq!(owner, 100_000);
}
