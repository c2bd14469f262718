//! What the container's process is given, and what it is not.

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use holdfast_integration::bundle::DOCKER_CAPABILITIES_MASK;
use holdfast_integration::on_runtimes;
use holdfast_integration::pty::{DescriptorSocket, Terminal};
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use serde_json::json;

on_runtimes! {
    capabilities_are_exactly_those_asked_for: holdfast runc crun;
    ambient_capabilities_reach_an_ordinary_user: holdfast runc crun;
    user_and_groups_and_none_left_over: holdfast runc crun;
    // runc 1.1 and crun 1.8 know neither.
    scheduler_and_io_priority_are_set: holdfast;
    umask_is_set: holdfast runc crun;
    limits_are_set: holdfast runc crun;
    a_limit_above_the_hard_one_is_named: holdfast runc crun;
    sysctls_are_set_inside_only: holdfast runc crun;
    environment_is_exactly_that_of_the_spec: holdfast runc crun;
    working_directory_is_made_and_entered: holdfast runc crun;
    no_new_privileges_is_set_when_asked: holdfast runc crun;
    no_descriptor_of_ours_leaks_in: holdfast runc crun;
    preserved_descriptors_arrive: holdfast runc crun;
    a_console_is_handed_over: holdfast runc crun;
    a_pidfd_is_handed_over: holdfast;
    oom_score_is_set: holdfast runc crun;
    a_seccomp_rule_gives_its_errno: holdfast runc crun;
    docker_s_profile_is_in_force: holdfast runc crun;
    seccomp_without_no_new_privileges: holdfast runc crun;
}

const STATUS: &str = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status | tr '\\t\\n' '  '";

fn capabilities_are_exactly_those_asked_for(scratch: &Scratch) {
    let shown = scratch.run(&scratch.bundle("docker").script(STATUS));
    let mask = DOCKER_CAPABILITIES_MASK;
    for set in ["CapBnd", "CapEff", "CapPrm"] {
        assert!(shown.ok().contains(&format!("{set}: {mask}")), "{shown}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert!(
            shown.ok().contains(&format!("{set}: 0000000000000000")),
            "{shown}"
        );
    }
    let none = scratch.bundle("none").script(STATUS).with(|spec| {
        spec["process"]["capabilities"] = json!({"bounding": [], "effective": [], "permitted": []});
    });
    let shown = scratch.run(&none);
    for set in ["CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert!(
            shown.ok().contains(&format!("{set}: 0000000000000000")),
            "{shown}"
        );
    }
}

fn ambient_capabilities_reach_an_ordinary_user(scratch: &Scratch) {
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    let bundle = scratch.bundle("ambient").script(STATUS).with(|spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec["process"]["capabilities"] = json!({
            "bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one,
        });
    });
    let shown = scratch.run(&bundle);
    assert!(shown.ok().contains("CapEff: 0000000000000400"), "{shown}");
    assert!(shown.ok().contains("CapAmb: 0000000000000400"), "{shown}");
}

fn user_and_groups_and_none_left_over(scratch: &Scratch) {
    let show = "id -u; id -g; grep Groups: /proc/self/status";
    let bundle = scratch.bundle("user").script(show).with(|spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [2000, 3000]});
    });
    let shown = scratch.run(&bundle);
    let words: Vec<&str> = shown.ok().split_whitespace().collect();
    assert_eq!(
        words,
        ["1000", "1001", "Groups:", "2000", "3000"],
        "{shown}"
    );
    // The runtime's own groups must not stay.
    let plain = scratch.bundle("plain").script(show).with(|spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let shown = scratch.run(&plain);
    let words: Vec<&str> = shown.ok().split_whitespace().collect();
    assert_eq!(words, ["1000", "1000", "Groups:"], "{shown}");
}

fn umask_is_set(scratch: &Scratch) {
    let bundle = scratch.bundle("umask").script("umask").with(|spec| {
        spec["process"]["user"]["umask"] = json!(0o27);
    });
    assert_eq!(scratch.run(&bundle).ok().trim(), "0027");
}

fn limits_are_set(scratch: &Scratch) {
    let bundle = scratch
        .bundle("limits")
        .script("ulimit -n; ulimit -Hn; ulimit -c")
        .with(|spec| {
            spec["process"]["rlimits"] = json!([
                {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 700},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ]);
        });
    assert_eq!(scratch.run(&bundle).ok(), "512\n700\n0\n");
}

fn a_limit_above_the_hard_one_is_named(scratch: &Scratch) {
    let hard = std::fs::read_to_string("/proc/self/limits").unwrap();
    let hard: u64 = hard
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .and_then(|line| line.split_whitespace().nth(4)?.parse().ok())
        .unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap()
        .trim();
    if u64::from_str_radix(effective, 16).unwrap() & (1 << 24) != 0 {
        return holdfast_integration::skip("a_limit_above", "this machine has CAP_SYS_RESOURCE");
    }
    let bundle = scratch.bundle("limit").with(|spec| {
        spec["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "soft": hard + 1, "hard": hard + 1}]);
    });
    let refused = scratch.run(&bundle);
    let said = refused.failed().to_lowercase();
    assert!(
        said.contains("nofile") || said.contains("rlimit"),
        "{refused}"
    );
    scratch.call(&["delete", "--force", "limit"]);
}

fn sysctls_are_set_inside_only(scratch: &Scratch) {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let outside = std::fs::read_to_string(path).unwrap();
    let bundle = scratch
        .bundle("sysctl")
        .script(&format!("cat {path} /proc/sys/kernel/msgmax"));
    let bundle = bundle.with(|spec| {
        spec["linux"]["sysctl"] =
            json!({"net.ipv4.ip_unprivileged_port_start": "77", "kernel.msgmax": "7777"});
    });
    assert_eq!(scratch.run(&bundle).ok(), "77\n7777\n");
    assert_eq!(std::fs::read_to_string(path).unwrap(), outside);
    // One that is not of a namespace would change the host.
    let bundle = scratch.bundle("host").with(|spec| {
        spec["linux"]["sysctl"] = json!({"vm.swappiness": "11"});
    });
    let refused = scratch.run(&bundle);
    assert!(refused.failed().contains("vm.swappiness"), "{refused}");
    scratch.call(&["delete", "--force", "host"]);
    assert_ne!(
        std::fs::read_to_string("/proc/sys/vm/swappiness")
            .unwrap()
            .trim(),
        "11"
    );
}

fn environment_is_exactly_that_of_the_spec(scratch: &Scratch) {
    let bundle = scratch.bundle("env").args(&["env"]).with(|spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "A=1", "B=two words", "EMPTY="]);
    });
    let shown = scratch.run(&bundle);
    let mut lines: Vec<&str> = shown
        .ok()
        .lines()
        .filter(|line| !line.starts_with("HOME="))
        .collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["A=1", "B=two words", "EMPTY=", "PATH=/bin"],
        "{shown}"
    );
}

fn working_directory_is_made_and_entered(scratch: &Scratch) {
    let bundle = scratch.bundle("cwd").args(&["pwd"]).with(|spec| {
        spec["process"]["cwd"] = json!("/srv/made/for/it");
    });
    assert_eq!(scratch.run(&bundle).ok(), "/srv/made/for/it\n");
}

fn no_new_privileges_is_set_when_asked(scratch: &Scratch) {
    let shown = scratch.run(&scratch.bundle("with").script(STATUS));
    assert!(shown.ok().contains("NoNewPrivs: 1"), "{shown}");
    let without = scratch.bundle("without").script(STATUS);
    let shown =
        scratch.run(&without.with(|spec| spec["process"]["noNewPrivileges"] = false.into()));
    assert!(shown.ok().contains("NoNewPrivs: 0"), "{shown}");
}

const DESCRIPTORS: &str = "for f in /proc/self/fd/*; do echo ${f##*/}=$(readlink $f); done";

fn no_descriptor_of_ours_leaks_in(scratch: &Scratch) {
    let bundle = scratch.bundle("fds").script(DESCRIPTORS);
    bundle.write();
    // What a careless caller leaves open must not get in either.
    let mut command = std::process::Command::new("sh");
    let call = scratch.command(&["run", "--bundle", &text(&bundle.path), "fds"]);
    command.args(["-c", "exec 3</etc/passwd 7</; exec \"$@\"", "sh"]);
    command.arg(call.get_program()).args(call.get_args());
    let shown = holdfast_integration::deadline::run(&mut command, LIMIT);
    for line in shown.ok().lines() {
        let (number, target) = line.split_once('=').unwrap();
        let number: u32 = number.parse().unwrap();
        // The shell's own descriptor of the folder it reads has no target any more.
        let own = number <= 2 || target.is_empty() || target.starts_with("/proc/");
        assert!(own, "{line} in {shown}");
        assert!(number <= 2 || !target.starts_with("/etc"), "{line}");
    }
}

fn preserved_descriptors_arrive(scratch: &Scratch) {
    let bundle = scratch.bundle("keep").script("cat <&3; cat <&4");
    bundle.write();
    std::fs::write(scratch.path("three"), "third\n").unwrap();
    std::fs::write(scratch.path("four"), "fourth\n").unwrap();
    let script = format!(
        "exec 3<{} 4<{}; exec \"$@\"",
        text(&scratch.path("three")),
        text(&scratch.path("four"))
    );
    let call = scratch.command(&[
        "run",
        "--preserve-fds",
        "2",
        "--bundle",
        &text(&bundle.path),
        "keep",
    ]);
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", &script, "sh"])
        .arg(call.get_program())
        .args(call.get_args());
    let shown = holdfast_integration::deadline::run(&mut command, LIMIT);
    assert_eq!(shown.ok(), "third\nfourth\n");
}

fn a_console_is_handed_over(scratch: &Scratch) {
    let bundle = scratch.bundle("tty").args(&["sh"]).with(|spec| {
        spec["process"]["terminal"] = true.into();
        spec["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    });
    bundle.write();
    let socket = DescriptorSocket::listen(&scratch.path("console.sock"));
    let (created, pid) = scratch.try_create(&bundle, &["--console-socket", &text(&socket.path)]);
    created.ok();
    let mut terminal = Terminal::of(socket.receive(LIMIT));
    scratch.call(&["start", "tty"]).ok();
    terminal.type_in("stty size; ls -l /dev/console; tty; echo mark-$((40+2))\n");
    let shown = terminal.expect("mark-42", LIMIT);
    assert!(shown.contains("33 77"), "{shown}");
    assert!(shown.contains("/dev/console"), "{shown}");
    terminal.type_in("exit 4\n");
    assert_eq!(scratch.exit_of(pid.unwrap()), 4);
    terminal.rest(Duration::from_secs(10));
    scratch.call(&["delete", "tty"]).ok();
}

fn a_pidfd_is_handed_over(scratch: &Scratch) {
    let bundle = scratch.bundle("pidfd").args(&["sleep", "600"]);
    bundle.write();
    let socket = DescriptorSocket::listen(&scratch.path("pidfd.sock"));
    let (created, pid) = scratch.try_create(&bundle, &["--pidfd-socket", &text(&socket.path)]);
    created.ok();
    let pidfd = socket.receive(LIMIT);
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let named = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .expect("a pidfd");
    assert_eq!(named.trim().parse::<i32>().unwrap(), pid.unwrap());
    scratch.call(&["start", "pidfd"]).ok();
    scratch.end(&bundle);
}

fn oom_score_is_set(scratch: &Scratch) {
    let bundle = scratch
        .bundle("oom")
        .args(&["cat", "/proc/self/oom_score_adj"]);
    let bundle = bundle.with(|spec| spec["process"]["oomScoreAdj"] = json!(321));
    assert_eq!(scratch.run(&bundle).ok(), "321\n");
}

fn a_seccomp_rule_gives_its_errno(scratch: &Scratch) {
    // EXDEV, which mkdir never gives by itself: the words show that the filter spoke.
    let bundle = scratch
        .bundle("rule")
        .script("mkdir /tmp/x; echo $?; chmod 600 /tmp && echo fine");
    let bundle = bundle.with(|spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 18}],
        });
    });
    let ran = scratch.run(&bundle);
    assert_eq!(ran.ok(), "1\nfine\n", "{ran}");
    assert!(ran.stderr.contains("Invalid cross-device link"), "{ran}");
}

fn docker_s_profile_is_in_force(scratch: &Scratch) {
    let bundle = scratch.bundle("docker").docker_seccomp();
    let ran = scratch.run(&bundle.script(&format!("{STATUS}; unshare -U true")));
    assert_ne!(ran.code(), 0, "a user namespace could be made: {ran}");
    assert!(ran.stdout.contains("Seccomp: 2"), "{ran}");
    assert!(ran.stderr.contains("not permitted"), "{ran}");
}

fn seccomp_without_no_new_privileges(scratch: &Scratch) {
    // The filter must be loaded while CAP_SYS_ADMIN is still there.
    let bundle = scratch
        .bundle("early")
        .docker_seccomp()
        .script(STATUS)
        .with(|spec| {
            spec["process"]["noNewPrivileges"] = false.into();
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        });
    let ran = scratch.run(&bundle);
    assert!(ran.ok().contains("Seccomp: 2"), "{ran}");
    assert!(ran.ok().contains("NoNewPrivs: 0"), "{ran}");
}

/// For init and for an exec with a document of its own.
fn scheduler_and_io_priority_are_set(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]).with(|spec| {
        spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
        spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    });
    let pid = scratch.start(&bundle);
    // proc_pid_stat(5): nice is the 19th field, policy the 41st; the name in parentheses is the second.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!((fields[19 - 3], fields[41 - 3]), ("7", "3"), "{stat}");
    let told = scratch.exec(&bundle, &["busybox", "ionice", "-p", "1"]);
    assert_eq!(told.ok().trim(), "best-effort: prio 6");
    let mut process = bundle.spec["process"].clone();
    process["args"] = json!(["busybox", "ionice"]);
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE"});
    let document = scratch.path("process.json");
    std::fs::write(&document, process.to_string()).unwrap();
    let told = scratch.call(&["exec", "--process", document.to_str().unwrap(), "box"]);
    assert!(told.ok().starts_with("idle"), "{told}");
    scratch.end(&bundle);
}
