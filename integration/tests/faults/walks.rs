//! Lives of containers that share a shim, with a fault in about every second call: whatever fails where, in
//! whatever state the containers are, the shim answers with what is true of them.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::types::task::Status;
use holdfast_integration::bundle::Bundle;
use holdfast_integration::containerd::Containerd;
use holdfast_integration::deadline::eventually;
use holdfast_integration::shim::{Refused, Shim, empty_options};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::base::{Base, SPACING, can_fail};

/// Containers side by side.
const CONTAINERS: usize = 3;
/// How often a walk is taken, each another way.
const WALKS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Absent,
    Created,
    Running,
    Paused,
    /// With the exit status that a shell gives it.
    Stopped(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Start,
    Exec,
    Pause,
    Resume,
    Terminate,
    Kill,
    Delete,
}

impl Call {
    /// What may be asked in a state, and is then done.
    fn possible(truth: Truth) -> &'static [Self] {
        match truth {
            Truth::Absent => &[Self::Create],
            Truth::Created => &[Self::Start, Self::Start, Self::Kill],
            Truth::Running => &[
                Self::Exec,
                Self::Exec,
                Self::Pause,
                Self::Terminate,
                Self::Kill,
            ],
            Truth::Paused => &[Self::Resume],
            Truth::Stopped(_) => &[Self::Delete],
        }
    }

    fn makes_of(self, truth: Truth) -> Truth {
        match self {
            Self::Create => Truth::Created,
            Self::Start | Self::Resume => Truth::Running,
            Self::Pause => Truth::Paused,
            Self::Exec => truth,
            Self::Terminate => Truth::Stopped(7),
            Self::Kill => Truth::Stopped(137),
            Self::Delete => Truth::Absent,
        }
    }

    /// The method that a fault in the request's handler is ordered for.
    fn method(self) -> &'static str {
        match self {
            Self::Create => "Create",
            Self::Start => "Start",
            Self::Exec => "Exec",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Terminate | Self::Kill => "Kill",
            Self::Delete => "Delete",
        }
    }

    /// The steps of the owner that it leads to.
    fn steps(self) -> &'static [&'static str] {
        match self {
            Self::Create => &["init-registered", "create-done"],
            Self::Start => &["start", "start-done"],
            Self::Exec => &[
                "exec",
                "start-exec",
                "exec-registered",
                "exec-done",
                "exec-ended",
                "delete-exec",
                "exec-cleared",
            ],
            Self::Pause => &["pause", "pause-done"],
            Self::Resume => &["resume", "resume-done"],
            Self::Terminate | Self::Kill => &["kill", "init-ended"],
            Self::Delete => &["delete", "delete-done"],
        }
    }
}

/// What a walk is made of: which container, what of the possible, and which fault, if one.
type Turn = (usize, usize, Option<(usize, bool, usize)>);

struct Life {
    id: String,
    truth: Truth,
    bundle: Option<Bundle>,
    execs: u32,
    /// Where it has failed: a second time within a minute is contained, which is another test.
    failed: BTreeSet<String>,
}

impl Life {
    fn next(&mut self, place: usize) {
        // An id is used once: faults are counted by it.
        static LIVES: AtomicU32 = AtomicU32::new(0);
        let life = LIVES.fetch_add(1, Ordering::Relaxed);
        self.id = format!("life-{place}-{life}");
        self.bundle = None;
        self.failed.clear();
        self.execs = 0;
    }

    fn left(&self) -> usize {
        let bundle = self.bundle.as_ref().expect("created");
        fs::read_to_string(bundle.in_rootfs("left")).map_or(0, |left| left.lines().count())
    }
}

struct Walk<'a> {
    base: &'a Base<'a>,
    shim: Shim,
    lives: Vec<Life>,
    latest_fault: Instant,
}

impl<'a> Walk<'a> {
    fn new(base: &'a Base<'a>) -> Self {
        let lives = (0..CONTAINERS)
            .map(|place| Life {
                id: format!("life-{place}"),
                truth: Truth::Absent,
                bundle: None,
                execs: 0,
                failed: BTreeSet::new(),
            })
            .collect();
        Self {
            base,
            shim: Shim::of(base.containerd, "base"),
            lives,
            latest_fault: Instant::now(),
        }
    }

    /// Orders a fault for `call`; whether the call is refused for it.
    fn order(&mut self, place: usize, call: Call, fault: (usize, bool, usize)) -> Option<bool> {
        let (step, before, how) = fault;
        let how = ["panic", "fault", "abort"][how % 3];
        let steps = call.steps();
        let at = match steps.get(step % (steps.len() + 1)) {
            None => format!("rpc/{}", call.method()),
            Some(step) if before => format!("owner/{step}/before"),
            Some(step) => format!("owner/{step}/after"),
        };
        if !self.lives[place].failed.insert(at.clone()) {
            return None;
        }
        // Images that live shorter are a loop.
        thread::sleep(SPACING.saturating_sub(self.latest_fault.elapsed()));
        self.base.order(&at, how);
        self.latest_fault = Instant::now();
        Some(how == "panic" && at.starts_with("rpc/"))
    }

    fn ask(&mut self, place: usize, call: Call) -> Result<(), Refused> {
        let shim = &self.shim;
        let id = self.lives[place].id.clone();
        match call {
            Call::Create => {
                let bundle = self.lives[place].bundle.get_or_insert_with(|| {
                    let script = "trap 'exit 7' TERM; : > /ready; while :; do usleep 5000; done";
                    let bundle = shim
                        .bundle_by_hand(self.base.containerd, &id)
                        .script(script);
                    bundle.write();
                    bundle
                });
                shim.create(bundle, empty_options()).map(|_| ())
            }
            Call::Start => {
                shim.start(&id, "")?;
                let bundle = self.lives[place].bundle.as_ref().expect("created");
                eventually("it can be terminated", Duration::from_secs(20), || {
                    bundle.in_rootfs("ready").exists().then_some(())
                });
                Ok(())
            }
            Call::Exec => self.exec(place),
            Call::Pause | Call::Resume => {
                let mut request = api::PauseRequest::new();
                request.id = id;
                shim.call::<_, api::Empty>(call.method(), &request)
                    .map(|_| ())
            }
            Call::Terminate | Call::Kill => {
                let (signal, status) = match call {
                    Call::Terminate => (15, 7),
                    _ => (9, 137),
                };
                shim.kill(&id, "", signal)?;
                assert_eq!(shim.wait(&id, "")?, status, "{id}");
                Ok(())
            }
            Call::Delete => {
                let Truth::Stopped(status) = self.lives[place].truth else {
                    panic!("{id} is not stopped");
                };
                assert_eq!(shim.wait(&id, "")?, status, "{id}");
                let deleted = shim.delete(&id, "")?;
                assert_eq!(deleted.exit_status, status, "{id}");
                Ok(())
            }
        }
    }

    /// A process that leaves a line and ends with a status of its own; asked until nothing refuses it.
    fn exec(&mut self, place: usize) -> Result<(), Refused> {
        let life = &mut self.lives[place];
        let status = life.execs % 100 + 10;
        let name = format!("x{}", life.execs);
        let script = format!("echo x >> /left; exit {status}");
        self.shim.exec(&life.id, &name, &["sh", "-c", &script])?;
        life.execs += 1;
        self.shim.start(&life.id, &name)?;
        assert_eq!(self.shim.wait(&life.id, &name)?, status);
        assert_eq!(self.shim.delete(&life.id, &name)?.exit_status, status);
        assert_eq!(life.left(), life.execs as usize, "{}: not once", life.id);
        Ok(())
    }

    fn take(&mut self, (place, choice, fault): Turn) {
        let place = place % CONTAINERS;
        let truth = self.lives[place].truth;
        let possible = Call::possible(truth);
        let call = possible[choice % possible.len()];
        if call == Call::Create {
            self.lives[place].next(place);
        }
        let refused = fault.and_then(|fault| self.order(place, call, fault));
        let answer = self.ask(place, call);
        let context = format!("{call:?} of {}", self.lives[place].id);
        if refused == Some(true) {
            assert_eq!(answer.expect_err(&context).code, 13, "{context}");
            self.tells_the_truth(&context);
            assert_eq!(self.ask(place, call), Ok(()), "{context}, again");
        } else {
            assert_eq!(answer, Ok(()), "{context}");
        }
        if refused.is_some() {
            // A step may come after the answer.
            eventually("the fault has happened", Duration::from_secs(20), || {
                (!self.base.file().exists()).then_some(())
            });
        }
        self.lives[place].truth = call.makes_of(truth);
        self.tells_the_truth(&context);
    }

    fn tells_the_truth(&self, after: &str) {
        for life in &self.lives {
            let state = self.shim.state(&life.id, "");
            let status = match life.truth {
                Truth::Absent => {
                    assert_eq!(state.expect_err(&life.id).code, 5, "{after}: {}", life.id);
                    continue;
                }
                Truth::Created => Status::CREATED,
                Truth::Running => Status::RUNNING,
                Truth::Paused => Status::PAUSED,
                Truth::Stopped(_) => Status::STOPPED,
            };
            let state = state.unwrap_or_else(|refused| panic!("{after}: {}: {refused:?}", life.id));
            assert_eq!(
                state.status,
                EnumOrUnknown::new(status),
                "{after}: {}",
                life.id
            );
            if let Truth::Stopped(exit) = life.truth {
                assert_eq!(state.exit_status, exit, "{after}: {}", life.id);
            }
        }
        self.base.is_well();
    }

    /// Every container comes to its end.
    fn end(&mut self) {
        for place in 0..CONTAINERS {
            while self.lives[place].truth != Truth::Absent {
                let choice = match self.lives[place].truth {
                    Truth::Running => 4,
                    Truth::Created => 2,
                    Truth::Absent | Truth::Paused | Truth::Stopped(_) => 0,
                };
                self.take((place, choice, None));
            }
        }
    }
}

/// A property test; what it prints when it fails is the whole walk.
pub(crate) fn a_walk_with_faults_ends_where_one_without_does(containerd: &Containerd) {
    if !can_fail("a_walk_with_faults_ends_where_one_without_does") {
        return;
    }
    let base = Base::start(containerd);
    let turn = (
        0..CONTAINERS,
        0usize..60,
        proptest::option::of((0usize..60, any::<bool>(), 0usize..3)),
    );
    let config = Config {
        cases: WALKS,
        // A walk takes seconds, and every one of them begins anew.
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    };
    let walks = proptest::collection::vec(turn, 20..30);
    TestRunner::new(config)
        .run(&walks, |turns| {
            let mut walk = Walk::new(&base);
            for turn in turns {
                walk.take(turn);
            }
            walk.end();
            Ok(())
        })
        .unwrap();
    base.end();
}
