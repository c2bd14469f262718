//! What the child processes do. Each is single-threaded, as the runtime and init are.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_seccomp::{
    Cache, ContainerProcessState, LoadPoint, Profile, compile, sys::load, testing,
};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Uid, setuid};
use oci_spec::runtime::{LinuxSeccomp, State};
use serde_json::json;

use crate::sys;

/// docker's default profile for three architectures, 377 names.
pub(crate) fn docker() -> LinuxSeccomp {
    serde_json::from_str(include_str!(
        "../../../integration/profiles/docker-default.json"
    ))
    .unwrap()
}

/// A profile whose author knew no syscall newer than exit_group (231 on x86_64).
fn old() -> LinuxSeccomp {
    serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{
            "names": [
                "brk", "close", "exit", "exit_group", "futex", "getppid", "madvise", "mmap",
                "mprotect", "mremap", "munmap", "read", "rt_sigaction", "rt_sigprocmask",
                "sigaltstack", "write",
            ],
            "action": "SCMP_ACT_ALLOW",
        }],
    }))
    .unwrap()
}

/// Everything is allowed but getppid, which gets `action`.
fn only_getppid(action: &str) -> LinuxSeccomp {
    serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": "/unused",
        "syscalls": [{"names": ["getppid"], "action": action}],
    }))
    .unwrap()
}

fn getppid() -> Result<i64, i32> {
    sys::call(libc::SYS_getppid, [0, 0])
}

fn show(what: &str, result: Result<i64, i32>) {
    match result {
        Ok(_) => println!("{what}: works"),
        Err(errno) => println!("{what}: {}", nix::errno::Errno::from_raw(errno)),
    }
}

/// As init does it: with `noNewPrivileges` late, without it before capabilities are dropped.
fn load_at(point: LoadPoint, seccomp: &LinuxSeccomp) {
    let program = compile(seccomp).unwrap().program;
    match point {
        LoadPoint::BeforeCapabilities => {
            load(&program).unwrap();
            // Gives up all capabilities too; capabilities(7).
            setuid(Uid::from_raw(65534)).unwrap();
        }
        LoadPoint::AfterCapabilities => {
            setuid(Uid::from_raw(65534)).unwrap();
            let without = load(&program).unwrap_err();
            println!("load without noNewPrivileges: {without}");
            set_no_new_privs().unwrap();
            load(&program).unwrap();
        }
    }
}

/// Runs `scenario` with `args`.
pub(crate) fn run(scenario: &str, args: &[String]) {
    // A filter that kills makes a core dump.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    match (scenario, args) {
        ("docker", [point]) => {
            load_at(LoadPoint::new(point == "late"), &docker());
            show("getppid", getppid());
            show("keyctl", sys::call(libc::SYS_keyctl, [0, 0]));
            // Ask for the personality, which is allowed, and set one that is not.
            show(
                "personality(get)",
                sys::call(libc::SYS_personality, [0xffff_ffff, 0]),
            );
            show("personality(1)", sys::call(libc::SYS_personality, [1, 0]));
        }
        ("enosys", []) => {
            let probe = || {
                show("getppid", getppid());
                show("getsid", sys::call(libc::SYS_getsid, [0, 0]));
                show("inotify_init1", sys::call(libc::SYS_inotify_init1, [0, 0]));
                show("syscall 1000", sys::call(1000, [0, 0]));
            };
            probe();
            load(&compile(&old()).unwrap().program).unwrap();
            probe();
        }
        ("action", [action]) => {
            load(&compile(&only_getppid(action)).unwrap().program).unwrap();
            show("getppid", getppid());
        }
        ("notify", [path]) => notify(Path::new(path)),
        ("threads", [rounds]) => {
            let seccomp = only_getppid("SCMP_ACT_KILL");
            for round in 0..rounds.parse().unwrap() {
                compile(&seccomp).unwrap();
                // Changes nothing, and fails with EINVAL in a process of several threads;
                // unshare(2).
                unshare(CloneFlags::CLONE_THREAD)
                    .unwrap_or_else(|errno| panic!("round {round}: {errno}"));
            }
            println!("single-threaded");
        }
        ("export", [capacity]) => {
            let compiled = testing::compile_through(&docker(), capacity.parse().unwrap()).unwrap();
            println!("{} bytes", compiled.program.bytes().len());
        }
        ("export without reader", []) => {
            testing::export_without_reader(&docker(), std::io::stdout()).unwrap();
        }
        ("cache", [folder]) => {
            let cache = Cache::open(folder);
            let docker = docker();
            // Marks in the trace: nothing else here asks for the parent.
            getppid().unwrap();
            let (compiled, origin) = cache.compile(&docker).unwrap();
            getppid().unwrap();
            println!("{origin:?}");
            println!("{} compilations", testing::compilations());
            println!("{} bytes", compiled.program.bytes().len());
        }
        ("measure", [folder]) => measure(folder),
        other => panic!("no scenario {other:?}"),
    }
}

fn notify(path: &Path) {
    let mut seccomp = only_getppid("SCMP_ACT_NOTIFY");
    seccomp.set_listener_path(Some(path.to_owned()));
    let listener = load(&compile(&seccomp).unwrap().program).unwrap();
    let profile = Profile::new(&seccomp).unwrap();
    let to = profile.listener().unwrap();
    let pid = i32::try_from(std::process::id()).unwrap();
    ContainerProcessState::new(pid, to.metadata.map(str::to_owned), State::default())
        .send(to.path, listener.unwrap().as_fd(), Duration::from_secs(20))
        .unwrap();
    println!("{:?}", getppid());
}

fn measure(folder: &str) {
    let docker = docker();
    let report = |what: &str, mut times: Vec<Duration>| {
        times.sort();
        println!(
            "{what}: min {:?} median {:?}",
            times[0],
            times[times.len() / 2]
        );
    };
    let time = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let cache = Cache::open(folder);
    let program = cache.compile(&docker).unwrap().0.program;
    println!(
        "program: {} bytes, {} instructions",
        program.bytes().len(),
        program.instructions()
    );
    report(
        "compile",
        (0..20).map(|_| time(&|| drop(compile(&docker)))).collect(),
    );
    report(
        "cache hit",
        (0..200)
            .map(|_| time(&|| drop(cache.compile(&docker).unwrap())))
            .collect(),
    );
    let start = Instant::now();
    load(&program).unwrap();
    println!("load: {:?}", start.elapsed());
}
