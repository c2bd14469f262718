//! Where another shim waits for ever, or loses a process: ours answers in bounded time, says what it waited for, and
//! leaves nothing. `shim/docs/never-stuck.md` lists these places with their tests; here are those that are nowhere else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use holdfast_integration::deadline::eventually;
use holdfast_integration::fault::{Fault, HANG};
use holdfast_integration::lone::{Faulty, Lone};
use holdfast_integration::runtime::{Kind, Runtime};
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Refused, process_any, runc_options};
use holdfast_integration::{leaks, skip};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

/// Far less than what is waited for would take.
const LIMIT: Duration = Duration::from_secs(40);

/// Codes of gRPC.
const UNKNOWN: i32 = 2;
const NOT_FOUND: i32 = 5;
const FAILED_PRECONDITION: i32 = 9;

struct Pod {
    lone: Lone,
    faulty: Faulty,
    options: Any,
}

impl Pod {
    fn new(test: &str, kind: Kind, environment: &[(&str, &str)]) -> Option<Self> {
        let runtime = match Runtime::find(kind) {
            Ok(runtime) => runtime,
            Err(why) => {
                skip(test, &why);
                return None;
            }
        };
        let lone = Lone::start(test, environment, None)?;
        let faulty = Faulty::new(&lone.path(""), &runtime);
        let options = runc_options(&faulty.program, &lone.path("state"));
        Some(Self {
            lone,
            faulty,
            options,
        })
    }

    fn finish(self) {
        self.lone.end("box");
        self.lone.finish();
    }

    /// Whether the container has no process but init.
    fn has_init_alone(&self, init: u32) {
        eventually("only init is left", LIMIT, || {
            (self.lone.shim.pids("box").unwrap() == [init]).then_some(())
        });
    }
}

/// A process that a fault has left.
fn hanging(lone: &Lone) -> Option<i32> {
    leaks::processes_mentioning(&text(&lone.path("")))
        .into_iter()
        .find(|one| one.command.trim_end() == format!("sleep {HANG}"))
        .map(|one| one.pid)
}

fn fifo(lone: &Lone, name: &str) -> PathBuf {
    let path = lone.path(name);
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    path
}

/// A client that has opened its end, and reads nothing.
fn hold(fifo: &Path) -> File {
    // For both, so that it waits for nobody.
    File::options().read(true).write(true).open(fifo).unwrap()
}

/// What `call` answers, in time.
#[track_caller]
fn in_time<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let answer = call();
    assert!(began.elapsed() < LIMIT, "{what}: {:?}", began.elapsed());
    answer
}

/// Registers an exec process; its client reads nothing for as long as the file is held.
#[must_use]
fn register_on_a_terminal(lone: &Lone, exec: &str) -> File {
    let out = fifo(lone, &format!("{exec}-out"));
    let client = hold(&out);
    let mut request = api::ExecProcessRequest::new();
    request.id = "box".to_owned();
    request.exec_id = exec.to_owned();
    request.terminal = true;
    request.stdout = text(&out);
    request.spec = MessageField::some(process_any(&["sleep", "600"]));
    lone.shim.call::<_, api::Empty>("Exec", &request).unwrap();
    client
}

#[test]
fn a_terminal_that_never_comes_is_not_waited_for_for_ever() {
    // A foreign one: the process is told by the pid file, so the runtime has succeeded.
    let limit = [("HOLDFAST_DEADLINE_CONSOLE", "700ms")];
    let Some(pod) = Pod::new("a_terminal_that_never_comes", Kind::Runc, &limit) else {
        return;
    };
    let lone = &pod.lone;
    let said = |refused: &Refused| {
        assert_eq!(refused.code, UNKNOWN, "{refused:?}");
        let words = "the runtime sent none within 700ms of its success";
        assert!(refused.message.contains(words), "{refused:?}");
    };
    pod.faulty.order("create", &Fault::NoTerminal);
    let mut request = lone.create_request("box", Some(&pod.options));
    request.terminal = true;
    request.stdout = text(&fifo(lone, "out"));
    let created = in_time("Create", || {
        lone.shim
            .call::<_, api::CreateTaskResponse>("Create", &request)
    });
    said(&created.unwrap_err());
    pod.faulty.call_off("create");
    // The process that was made is not forgotten.
    lone.assert_nothing_left("a create without its terminal");

    let init = lone.run(Some(&pod.options));
    let _client = register_on_a_terminal(lone, "exec");
    pod.faulty.order("exec", &Fault::NoTerminal);
    for _ in 0..2 {
        said(&in_time("Start", || lone.shim.start("box", "exec")).unwrap_err());
        assert_eq!(lone.shim.state("box", "exec").unwrap().status.value(), 1);
        eventually("the process is gone", LIMIT, || {
            hanging(lone).is_none().then_some(())
        });
    }
    pod.faulty.call_off("exec");
    pod.has_init_alone(init);
    pod.finish();
}

/// A hook that becomes a daemon holds the streams that it got from the runtime.
fn who_keeps_the_runtime_s_streams_holds_nobody(test: &str, kind: Kind) {
    let limit = [("HOLDFAST_DEADLINE_DRAIN", "500ms")];
    let Some(pod) = Pod::new(test, kind, &limit) else {
        return;
    };
    let lone = &pod.lone;
    let kept = lone.path("kept");
    for verb in ["create", "start", "exec", "delete"] {
        pod.faulty.order(verb, &Fault::Child(kept.clone()));
    }
    in_time("Create", || lone.create("box", Some(&pod.options))).unwrap();
    in_time("Start", || lone.shim.start("box", "")).unwrap();
    // And where the shim reads what the runtime says: a refusal, and a terminal.
    lone.shim.exec("box", "bad", &["nosuchprogram"]).unwrap();
    let refused = in_time("Start", || lone.shim.start("box", "bad")).unwrap_err();
    assert!(refused.message.contains("nosuchprogram"), "{refused:?}");
    let _client = register_on_a_terminal(lone, "tty");
    in_time("Start", || lone.shim.start("box", "tty")).unwrap();
    lone.shim.kill("box", "tty", 9).unwrap();
    in_time("Wait", || lone.shim.wait("box", "tty")).unwrap();
    in_time("Delete", || lone.shim.delete("box", "tty")).unwrap();
    lone.shim.kill("box", "", 9).unwrap();
    assert_eq!(in_time("Wait", || lone.shim.wait("box", "")), Ok(137));
    in_time("Delete", || lone.shim.delete("box", "")).unwrap();

    let kept = fs::read_to_string(kept).unwrap();
    let kept: Vec<i32> = kept.lines().map(|pid| pid.parse().unwrap()).collect();
    assert!(kept.len() >= 5, "{kept:?}");
    for pid in kept {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        // The shim is their parent now, and leaves no zombie.
        eventually("it is reaped", LIMIT, || {
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
    }
    pod.lone.finish();
}

mod who_keeps_the_runtime_s_streams_holds_nobody {
    #[test]
    fn holdfast() {
        super::who_keeps_the_runtime_s_streams_holds_nobody(
            "who_keeps::holdfast",
            super::Kind::Holdfast,
        );
    }

    #[test]
    fn runc() {
        super::who_keeps_the_runtime_s_streams_holds_nobody("who_keeps::runc", super::Kind::Runc);
    }
}

#[test]
fn a_fifo_without_reader_is_named_in_time() {
    let limit = [("HOLDFAST_DEADLINE_READER", "700ms")];
    let Some(lone) = Lone::start("a_fifo_without_reader", &limit, None) else {
        return;
    };
    lone.bundle("box")
        .args(&["sh", "-c", "echo said; echo said >&2; exit 6"])
        .write();
    let (out, err) = (fifo(&lone, "out"), fifo(&lone, "err"));
    let mut request = lone.create_request("box", None);
    request.stdout = text(&out);
    request.stderr = text(&err);
    let create = || {
        in_time("Create", || {
            lone.shim
                .call::<_, api::CreateTaskResponse>("Create", &request)
        })
    };
    let _out = hold(&out);
    let refused = create().unwrap_err();
    let said = format!("stderr: nobody reads {} after 700ms", text(&err));
    assert!(refused.message.contains(&said), "{refused:?}");
    assert_eq!(lone.shim.state("box", "").unwrap_err().code, NOT_FOUND);
    lone.assert_nothing_left("a create without reader");
    // A reader that is there and reads nothing holds nothing back.
    let _err = hold(&err);
    create().unwrap();
    in_time("Start", || lone.shim.start("box", "")).unwrap();
    assert_eq!(in_time("Wait", || lone.shim.wait("box", "")), Ok(6));
    let deleted = in_time("Delete", || lone.shim.delete("box", ""));
    assert_eq!(deleted.unwrap().exit_status, 6);
    lone.finish();
}

#[test]
fn nobody_waits_for_a_delete_that_drains() {
    let limit = [("HOLDFAST_DEADLINE_DRAIN", "3s")];
    let Some(lone) = Lone::start("nobody_waits_for_a_delete", &limit, None) else {
        return;
    };
    let init = lone.run(None);
    let out = fifo(&lone, "out");
    let _client = hold(&out);
    let args = ["sh", "-c", "sleep 600 & exit 6"];
    lone.shim
        .exec_with_streams("box", "parent", &args, ["", &text(&out), ""])
        .unwrap();
    lone.shim.start("box", "parent").unwrap();
    assert_eq!(lone.shim.wait("box", "parent"), Ok(6));
    let deleted = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| {
            let gone = in_time("Delete", || lone.shim.delete("box", "parent"));
            deleted.store(true, Ordering::SeqCst);
            gone
        });
        // A child of it holds the stream: for as long as that may be, all else is answered.
        let mut during = 0;
        while !deleted.load(Ordering::SeqCst) {
            lone.shim.state("box", "").unwrap();
            assert_ne!(lone.shim.pids("box").unwrap(), [init]);
            lone.shim.exec("box", "other", &["true"]).unwrap();
            lone.shim.start("box", "other").unwrap();
            assert_eq!(lone.shim.wait("box", "other"), Ok(0));
            lone.shim.delete("box", "other").unwrap();
            if !deleted.load(Ordering::SeqCst) {
                during += 1;
            }
        }
        assert_eq!(deleting.join().unwrap().unwrap().exit_status, 6);
        assert!(during > 0, "nothing was answered while the delete drained");
    });
    lone.end("box");
    lone.finish();
}

#[test]
fn an_exec_without_its_standard_input_is_not_started_unseen() {
    let Some(lone) = Lone::start("an_exec_without_its_standard_input", &[], None) else {
        return;
    };
    let init = lone.run(None);
    let missing = lone.path("in");
    lone.shim
        .exec_with_streams("box", "cat", &["cat"], [&text(&missing), "", ""])
        .unwrap();
    for _ in 0..2 {
        let refused = in_time("Start", || lone.shim.start("box", "cat")).unwrap_err();
        assert!(refused.message.contains(&text(&missing)), "{refused:?}");
        assert_eq!(lone.shim.state("box", "cat").unwrap().status.value(), 1);
        assert_eq!(lone.shim.pids("box").unwrap(), [init]);
    }
    fifo(&lone, "in");
    let pid = lone.shim.start("box", "cat").unwrap();
    assert!(lone.shim.pids("box").unwrap().contains(&pid));
    lone.shim.close_stdin("box", "cat").unwrap();
    assert_eq!(in_time("Wait", || lone.shim.wait("box", "cat")), Ok(0));
    lone.end("box");
    lone.finish();
}

#[test]
fn an_exec_that_hangs_can_be_asked_about() {
    let Some(pod) = Pod::new("an_exec_that_hangs", Kind::Holdfast, &[]) else {
        return;
    };
    let shim = &pod.lone.shim;
    let init = pod.lone.run(Some(&pod.options));
    shim.exec("box", "other", &["sh", "-c", "exit 7"]).unwrap();
    shim.start("box", "other").unwrap();
    shim.exec("box", "hangs", &["true"]).unwrap();
    pod.faulty.order("exec", &Fault::Hang);
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| {
            let started = shim.start("box", "hangs");
            answered.store(true, Ordering::SeqCst);
            started
        });
        let hanging = eventually("the runtime hangs", LIMIT, || hanging(&pod.lone));
        // What concerns this process, what concerns all, and another's exit.
        assert_eq!(shim.state("box", "hangs").unwrap().pid, 0);
        assert_eq!(shim.pids("box").unwrap(), [init]);
        assert_eq!(shim.wait("box", "other"), Ok(7));
        assert_eq!(shim.delete("box", "other").unwrap().exit_status, 7);
        let refused = shim.kill("box", "hangs", 9).unwrap_err();
        assert_eq!(refused.code, FAILED_PRECONDITION, "{refused:?}");
        assert!(!answered.load(Ordering::SeqCst), "it has not hung");
        kill(Pid::from_raw(hanging), Signal::SIGKILL).unwrap();
        let refused = starting.join().unwrap().unwrap_err();
        assert!(refused.message.contains("SIGKILL"), "{refused:?}");
    });
    pod.faulty.call_off("exec");
    pod.finish();
}

#[test]
fn a_paused_container_ends_without_its_runtime() {
    for kind in [Kind::Holdfast, Kind::Runc] {
        let Some(pod) = Pod::new("a_paused_container", kind, &[]) else {
            return;
        };
        let lone = &pod.lone;
        for verb in ["pause", "resume", "kill", "state"] {
            pod.faulty.order(verb, &Fault::Hang);
        }
        lone.run(Some(&pod.options));
        let mut request = api::PauseRequest::new();
        request.id = "box".to_owned();
        in_time("Pause", || {
            lone.shim.call::<_, api::Empty>("Pause", &request)
        })
        .unwrap();
        assert_eq!(lone.shim.state("box", "").unwrap().status.value(), 4);
        in_time("Kill", || lone.shim.kill("box", "", 9)).unwrap();
        assert_eq!(in_time("Wait", || lone.shim.wait("box", "")), Ok(137));
        in_time("Delete", || lone.shim.delete("box", "")).unwrap();
        pod.lone.finish();
    }
}

#[test]
fn every_failed_exec_is_told_its_own_cause() {
    for kind in [Kind::Holdfast, Kind::Runc] {
        let Some(pod) = Pod::new("every_failed_exec", kind, &[]) else {
            return;
        };
        let shim = &pod.lone.shim;
        let init = pod.lone.run(Some(&pod.options));
        let programs: Vec<String> = (0..8).map(|number| format!("nosuch-{number}-")).collect();
        for program in &programs {
            shim.exec("box", program, &[program]).unwrap();
        }
        std::thread::scope(|scope| {
            for own in &programs {
                let programs = &programs;
                scope.spawn(move || {
                    let said = shim.start("box", own).unwrap_err().message;
                    for program in programs {
                        assert_eq!(said.contains(program), program == own, "{own}: {said}");
                    }
                });
            }
        });
        pod.has_init_alone(init);
        pod.finish();
    }
}
