//! A runtime that fails at any verb, in any way, ours or a foreign one: the RPC says so in bounded
//! time and in its words, the state is what it was, nothing is left, and once the runtime works
//! again so does everything.

use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use holdfast_integration::fault::Fault;
use holdfast_integration::lone::{Faulty, Lone};
use holdfast_integration::runtime::{Kind, Runtime};
use holdfast_integration::shim::{Refused, Shim, runc_options};
use holdfast_integration::skip;

const WORDS: &str = "no such luck";
/// Short, and far from what a busy machine needs for a container.
const DEADLINE: &str = "8s";
/// Any answer has to be there by then.
const LIMIT: Duration = Duration::from_secs(40);

/// The ways to fail, and what the refusal says.
fn faults() -> [(Fault, &'static str); 4] {
    [
        (Fault::Fail(WORDS), WORDS),
        (Fault::Killed, "SIGKILL"),
        (Fault::Nothing, "the runtime"),
        (Fault::Hang, "did not finish within"),
    ]
}

struct Pod {
    lone: Lone,
    faulty: Faulty,
    options: Any,
}

impl Pod {
    fn new(test: &str, kind: Kind) -> Option<Self> {
        let runtime = match Runtime::find(kind) {
            Ok(runtime) => runtime,
            Err(why) => {
                skip(test, &why);
                return None;
            }
        };
        let limits = ["CREATE", "EXEC", "START", "DELETE", "CHECKPOINT"]
            .map(|step| (format!("HOLDFAST_DEADLINE_{step}"), DEADLINE));
        let limits = limits
            .each_ref()
            .map(|(name, limit)| (name.as_str(), *limit));
        let lone = Lone::start(test, &limits, None)?;
        let faulty = Faulty::new(&lone.path(""), &runtime);
        let options = runc_options(&faulty.program, &lone.path("state"));
        Some(Self {
            lone,
            faulty,
            options,
        })
    }

    fn create(&self) -> Result<u32, Refused> {
        self.lone.create("box", Some(&self.options))
    }
}

/// The code of the reason that is recorded when `verb` fails so; none where nothing is.
fn reason(verb: &str, fault: &Fault) -> Option<&'static str> {
    let of = |others, timeout| match fault {
        Fault::Killed => "HF162",
        Fault::Hang => timeout,
        Fault::Fail(_)
        | Fault::Nothing
        | Fault::Delay(_)
        | Fault::Die(_)
        | Fault::NoTerminal
        | Fault::Child(_) => others,
    };
    match verb {
        "create" => Some(of("HF151", "HF152")),
        "start" => Some(of("HF153", "HF152")),
        "exec" => Some(of("HF154", "HF155")),
        "delete" => Some(of("HF161", "HF161")),
        // It ends nothing.
        _ => None,
    }
}

/// The refusal of a call, which came in time and says how the reason is called.
#[track_caller]
fn refused<T: std::fmt::Debug>(
    (verb, fault): (&str, &Fault),
    said: &str,
    call: impl FnOnce() -> Result<T, Refused>,
) {
    let what = format!("{verb} with {fault:?}");
    let began = Instant::now();
    let refused = call().expect_err(&what);
    assert!(began.elapsed() < LIMIT, "{what}: {:?}", began.elapsed());
    assert!(refused.message.contains(said), "{what}: {refused:?}");
    let code = if said.contains("within") { 4 } else { 2 };
    assert_eq!(refused.code, code, "{what}: {refused:?}");
    match reason(verb, fault) {
        Some(code) => {
            let ending = format!(" [{code}]");
            assert!(refused.message.ends_with(&ending), "{what}: {refused:?}");
        }
        None => assert!(!refused.message.contains("[HF"), "{what}: {refused:?}"),
    }
}

#[track_caller]
fn status(shim: &Shim, exec: &str, status: i32) {
    let state = shim.state("box", exec).unwrap();
    assert_eq!(state.status.value(), status, "{state:?}");
}

fn every_verb_fails_in_every_way(test: &str, kind: Kind) {
    let Some(pod) = Pod::new(test, kind) else {
        return;
    };
    let shim = &pod.lone.shim;
    for (fault, said) in faults() {
        let what = |verb| format!("{verb} with {fault:?}");

        pod.faulty.order("create", &fault);
        refused(("create", &fault), said, || pod.create());
        assert_eq!(shim.state("box", "").unwrap_err().code, 5);
        pod.lone.assert_nothing_left(&what("create"));
        pod.faulty.call_off("create");

        let pid = pod.create().unwrap();
        // That nothing was done cannot be told from a start that took its time.
        if !matches!(fault, Fault::Nothing) {
            pod.faulty.order("start", &fault);
            refused(("start", &fault), said, || shim.start("box", ""));
            pod.faulty.call_off("start");
            status(shim, "", 1);
        }
        assert_eq!(shim.start("box", "").unwrap(), pid);

        if !matches!(fault, Fault::Nothing) {
            let mut request = api::CheckpointTaskRequest::new();
            request.id = "box".to_owned();
            pod.faulty.order("checkpoint", &fault);
            refused(("checkpoint", &fault), said, || {
                shim.call::<_, api::Empty>("Checkpoint", &request)
            });
            pod.faulty.call_off("checkpoint");
            status(shim, "", 2);
        }

        shim.exec("box", "exec", &["sleep", "600"]).unwrap();
        pod.faulty.order("exec", &fault);
        for _ in 0..2 {
            refused(("exec", &fault), said, || shim.start("box", "exec"));
            status(shim, "exec", 1);
        }
        pod.faulty.call_off("exec");
        let exec = shim.start("box", "exec").unwrap();
        assert!(shim.pids("box").unwrap().contains(&exec));
        shim.kill("box", "exec", 9).unwrap();
        assert_eq!(shim.wait("box", "exec").unwrap(), 137);
        shim.delete("box", "exec").unwrap();

        shim.kill("box", "", 15).unwrap();
        shim.kill("box", "", 9).unwrap();
        assert_eq!(shim.wait("box", "").unwrap(), 137);
        if !matches!(fault, Fault::Nothing) {
            pod.faulty.order("delete", &fault);
            refused(("delete", &fault), said, || shim.delete("box", ""));
            pod.faulty.call_off("delete");
            status(shim, "", 3);
        }
        assert_eq!(shim.delete("box", "").unwrap().exit_status, 137);
        assert_eq!(shim.state("box", "").unwrap_err().code, 5);
        pod.lone.assert_nothing_left(&what("all"));
    }
    pod.lone.finish();
}

fn a_slow_runtime_works(test: &str, kind: Kind) {
    let Some(pod) = Pod::new(test, kind) else {
        return;
    };
    let shim = &pod.lone.shim;
    for verb in ["create", "start", "exec", "delete"] {
        pod.faulty
            .order(verb, &Fault::Delay(Duration::from_millis(300)));
    }
    let pid = pod.create().unwrap();
    assert_eq!(shim.start("box", "").unwrap(), pid);
    shim.exec("box", "exec", &["sh", "-c", "exit 5"]).unwrap();
    shim.start("box", "exec").unwrap();
    assert_eq!(shim.wait("box", "exec").unwrap(), 5);
    pod.lone.end("box");
    pod.lone.finish();
}

/// With a foreign runtime the process may have ended before its pid is known.
fn an_end_before_the_pid_is_known_is_not_lost(test: &str, kind: Kind) {
    let Some(pod) = Pod::new(test, kind) else {
        return;
    };
    let shim = &pod.lone.shim;
    pod.lone.bundle("box").write();
    pod.create().unwrap();
    shim.start("box", "").unwrap();
    for number in 0..40 {
        let exec = format!("exec-{number}");
        shim.exec("box", &exec, &["sh", "-c", "exit 9"]).unwrap();
        assert_ne!(shim.start("box", &exec).unwrap(), 0);
        assert_eq!(shim.wait("box", &exec).unwrap(), 9, "{exec}");
        assert_eq!(shim.delete("box", &exec).unwrap().exit_status, 9);
    }
    pod.lone.end("box");
    pod.lone.bundle("box").args(&["sh", "-c", "exit 4"]).write();
    for _ in 0..10 {
        pod.create().unwrap();
        shim.start("box", "").unwrap();
        assert_eq!(shim.wait("box", "").unwrap(), 4);
        assert_eq!(shim.delete("box", "").unwrap().exit_status, 4);
    }
    pod.lone.finish();
}

macro_rules! on_shimmed {
    ($($name:ident: $($runtime:ident)+;)+) => { $(
        mod $name {
            $(
                #[test]
                fn $runtime() {
                    super::$name(
                        concat!(stringify!($name), "::", stringify!($runtime)),
                        super::Kind::named(stringify!($runtime)),
                    );
                }
            )+
        }
    )+ };
}

on_shimmed! {
    every_verb_fails_in_every_way: holdfast runc crun;
    a_slow_runtime_works: holdfast runc crun;
    an_end_before_the_pid_is_known_is_not_lost: holdfast runc crun;
}
