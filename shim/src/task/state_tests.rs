//! The guarantees of [`super`], for every interleaving.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

type Model = Container<u32>;

fn exit(code: u8) -> Ended {
    Ended {
        status: ExitStatus::Exited(code),
        at: Timestamp::new(i64::from(code), 0),
    }
}

fn exec_id(n: u8) -> ExecId {
    ExecId::new(format!("e{n}")).unwrap()
}

/// What can happen in the world; whether it can happen *now* is decided by [`World`].
#[derive(Debug, Clone, Copy)]
enum Step {
    Start,
    StartDone(bool),
    InitDies,
    HoldExpires,
    Pause,
    PauseDone(bool),
    Resume,
    ResumeDone(bool),
    Delete,
    DeleteDone(bool),
    ExecAdd(u8),
    ExecStart(u8),
    ExecSpawns(u8),
    ExecDies(u8),
    ExecDone(u8, bool),
    ExecDelete(u8),
    ExecCleared(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let exec = 0u8..3;
    prop_oneof![
        2 => Just(Step::Start),
        2 => any::<bool>().prop_map(Step::StartDone),
        1 => Just(Step::InitDies),
        1 => Just(Step::HoldExpires),
        1 => Just(Step::Pause),
        1 => any::<bool>().prop_map(Step::PauseDone),
        1 => Just(Step::Resume),
        1 => any::<bool>().prop_map(Step::ResumeDone),
        1 => Just(Step::Delete),
        1 => any::<bool>().prop_map(Step::DeleteDone),
        3 => exec.clone().prop_map(Step::ExecAdd),
        4 => exec.clone().prop_map(Step::ExecStart),
        4 => exec.clone().prop_map(Step::ExecSpawns),
        4 => exec.clone().prop_map(Step::ExecDies),
        4 => (exec.clone(), any::<bool>()).prop_map(|(n, ok)| Step::ExecDone(n, ok)),
        2 => exec.clone().prop_map(Step::ExecDelete),
        2 => exec.prop_map(Step::ExecCleared),
    ]
}

/// The kernel and the runtime, as far as the model can tell: processes die once, and only
/// after they exist; the runtime answers each call once.
#[derive(Debug, Default)]
struct World {
    next_pid: u32,
    init_alive: bool,
    starting: bool,
    /// Exec processes whose runtime call is on its way, with the process it made.
    launching: Vec<(u8, Option<u32>)>,
    /// Living exec processes.
    alive: Vec<(u8, u32)>,
    expired: bool,
}

fn apply(model: &mut Model, world: &mut World, step: Step) {
    match step {
        Step::Start => world.starting |= model.begin_start().is_ok(),
        Step::StartDone(ok) => {
            if std::mem::take(&mut world.starting) {
                model.start_done(ok).unwrap();
            }
        }
        Step::InitDies => {
            if std::mem::take(&mut world.init_alive) {
                model.init_ended(exit(9));
            }
        }
        Step::HoldExpires => {
            world.expired |= model.is_holding_exit();
            model.hold_expired();
        }
        Step::Pause => drop(model.begin_pause()),
        Step::PauseDone(ok) => drop(model.pause_done(ok)),
        Step::Resume => drop(model.begin_resume()),
        Step::ResumeDone(ok) => drop(model.resume_done(ok)),
        Step::Delete => drop(model.begin_delete()),
        Step::DeleteDone(ok) => model.delete_done(ok, exit(255)),
        Step::ExecAdd(n) => drop(model.exec_add(exec_id(n))),
        Step::ExecStart(n) => {
            if model.exec_begin_start(&exec_id(n)).is_ok() {
                assert!(world.launching.iter().all(|(other, _)| *other != n));
                world.launching.push((n, None));
            }
        }
        Step::ExecSpawns(n) => {
            if let Some((_, slot @ None)) =
                world.launching.iter_mut().find(|(other, _)| *other == n)
            {
                world.next_pid += 1;
                *slot = Some(world.next_pid);
                world.alive.push((n, world.next_pid));
                model.exec_registered(&exec_id(n), world.next_pid);
            }
        }
        Step::ExecDies(n) => {
            if let Some(index) = world.alive.iter().position(|(other, _)| *other == n) {
                world.alive.remove(index);
                model.exec_ended(&exec_id(n), exit(n));
            }
        }
        Step::ExecDone(n, ok) => {
            if let Some(index) = world.launching.iter().position(|(other, _)| *other == n) {
                let (_, pid) = world.launching.remove(index);
                // A runtime that failed has killed what it made, and the reaper has said so.
                let ok = ok && pid.is_some();
                if !ok && let Some(index) = world.alive.iter().position(|(other, _)| *other == n) {
                    world.alive.remove(index);
                    model.exec_ended(&exec_id(n), exit(n));
                }
                let known = !matches!(model.init(), Init::Deleted);
                assert_eq!(model.exec_start_done(&exec_id(n), ok).is_ok(), ok && known);
            }
        }
        Step::ExecDelete(n) => drop(model.exec_begin_delete(&exec_id(n))),
        Step::ExecCleared(n) => model.exec_deleted(&exec_id(n)),
    }
}

/// Reads what was told like a client that believes every promise.
fn check(told: &[Told<u32>], expired: bool) {
    let (mut created, mut started, mut exited, mut deleted) = (false, false, false, false);
    let mut running: BTreeSet<(ExecId, u32)> = BTreeSet::new();
    let mut seen: BTreeSet<u32> = BTreeSet::new();
    for event in told {
        assert!(!deleted, "{event:?} after the delete");
        match event {
            Told::Created(_) | Told::Stored => {
                assert!(!created);
                created = true;
            }
            Told::Restored(_) => assert!(created && !started && !exited),
            Told::Started(_) => {
                assert!(created && !started && !exited);
                started = true;
            }
            Told::ExecAdded(_) => assert!(created && !exited),
            Told::ExecStarted(id, pid) => {
                assert!(
                    !exited || expired,
                    "an exec started after the container's last exit"
                );
                assert!(seen.insert(*pid), "one process started twice");
                running.insert((id.clone(), *pid));
            }
            Told::ExecExited(id, pid, _) => {
                assert!(
                    running.remove(&(id.clone(), *pid)),
                    "an exit without its start"
                );
                assert!(!exited || expired, "an exec's exit after init's");
            }
            Told::Exited(..) => {
                assert!(created && !exited);
                assert!(
                    running.is_empty() || expired,
                    "init's exit before an exec's"
                );
                exited = true;
            }
            Told::Paused | Told::Resumed => assert!(started && !exited),
            Told::Deleted(process) => {
                assert!(exited || process.is_none(), "deleted before its exit");
                assert!(running.is_empty(), "deleted before an exec's exit");
                deleted = true;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn no_interleaving_shows_an_exit_without_its_start_or_a_pid_before_it_is_set(
        early_death in any::<bool>(),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut model = Model::new("c".to_owned());
        let mut world = World { next_pid: 100, init_alive: true, ..World::default() };
        model.init_registered(100);
        if early_death {
            world.init_alive = false;
            model.init_ended(exit(1));
        }
        prop_assert_eq!(model.create_done().unwrap(), 100);
        let mut told = model.take_told();
        for step in steps {
            apply(&mut model, &mut world, step);
            let new = model.take_told();
            if !new.is_empty() {
                told.extend(new);
                check(&told, world.expired);
            }
        }
        // Let everything come to its end: then nothing that was started lacks its exit.
        for n in 0..3 {
            apply(&mut model, &mut world, Step::ExecDies(n));
            apply(&mut model, &mut world, Step::ExecDone(n, true));
            apply(&mut model, &mut world, Step::ExecDies(n));
        }
        apply(&mut model, &mut world, Step::StartDone(true));
        apply(&mut model, &mut world, Step::InitDies);
        told.extend(model.take_told());
        check(&told, world.expired);
        let starts = told.iter().filter(|e| matches!(e, Told::ExecStarted(..))).count();
        let exits = told.iter().filter(|e| matches!(e, Told::ExecExited(..))).count();
        prop_assert_eq!(starts, exits);
        let finals = told.iter().filter(|e| matches!(e, Told::Exited(..))).count();
        prop_assert_eq!(finals, 1);
        prop_assert!(!model.is_holding_exit());
    }
}

fn created() -> Model {
    let mut model = Model::new("c".to_owned());
    model.init_registered(1);
    model.create_done().unwrap();
    model
}

fn running() -> Model {
    let mut model = created();
    model.begin_start().unwrap();
    model.start_done(true).unwrap();
    model
}

fn stored() -> Model {
    let mut model = Model::new("c".to_owned());
    model.stored();
    model
}

#[test]
fn what_is_stored_has_no_process_before_its_start() {
    let mut model = stored();
    assert_eq!(model.init().process(), None);
    assert_eq!(model.take_told(), [Told::Stored]);
    model.begin_start().unwrap();
    model.init_registered(5);
    // It may end before the runtime has answered: told after the start.
    model.init_ended(exit(4));
    model.start_done(true).unwrap();
    assert_eq!(
        model.take_told(),
        [
            Told::Restored(5),
            Told::Started(5),
            Told::Exited(5, exit(4))
        ]
    );
    assert_eq!(model.init(), &Init::Stopped(5, exit(4)));
}

#[test]
fn a_failed_restore_can_be_repeated_and_tells_nothing() {
    let mut model = stored();
    model.take_told();
    for pid in [5, 6] {
        model.begin_start().unwrap();
        model.init_registered(pid);
        model.start_done(false).unwrap();
        // The end of what it had made comes late.
        model.init_ended(exit(9));
        assert_eq!(model.init(), &Init::Stored);
    }
    model.begin_start().unwrap();
    let refused = model.start_done(true).unwrap_err();
    assert_eq!(refused.to_string(), "the runtime made no process");
    assert_eq!(model.take_told(), []);
    // A delete that fails leaves it what it was.
    model.begin_delete().unwrap();
    model.delete_done(false, exit(255));
    assert_eq!(model.init(), &Init::Stored);
    model.begin_delete().unwrap();
    model.delete_done(true, exit(255));
    assert_eq!(model.take_told(), [Told::Deleted(None)]);
}

#[test]
fn an_exit_during_start_is_told_after_the_start() {
    let mut model = created();
    model.begin_start().unwrap();
    model.init_ended(exit(3));
    assert!(matches!(model.init(), Init::Starting(..)));
    model.start_done(true).unwrap();
    let told = model.take_told();
    assert_eq!(
        told[told.len() - 2..],
        [Told::Started(1), Told::Exited(1, exit(3))]
    );
}

#[test]
fn init_waits_for_its_execs_and_refuses_new_ones() {
    let mut model = running();
    let (a, b) = (exec_id(1), exec_id(2));
    model.exec_add(a.clone()).unwrap();
    model.exec_add(b.clone()).unwrap();
    model.exec_begin_start(&a).unwrap();
    model.exec_registered(&a, 7);
    model.exec_start_done(&a, true).unwrap();
    model.init_ended(exit(0));
    assert!(model.is_holding_exit());
    assert_eq!(
        model.exec_begin_start(&b).unwrap_err().to_string(),
        "container c init process is not running: failed precondition"
    );
    model.take_told();
    model.exec_ended(&a, exit(5));
    assert_eq!(
        model.take_told(),
        [Told::ExecExited(a, 7, exit(5)), Told::Exited(1, exit(0))]
    );
}

#[test]
fn a_failed_exec_start_can_be_repeated_and_tells_nothing() {
    let mut model = running();
    let id = exec_id(1);
    model.exec_add(id.clone()).unwrap();
    model.take_told();
    for _ in 0..3 {
        model.exec_begin_start(&id).unwrap();
        model.exec_registered(&id, 9);
        model.exec_ended(&id, exit(127));
        model.exec_start_done(&id, false).unwrap_err();
        assert_eq!(model.exec(&id), Some(&Exec::Created));
    }
    assert_eq!(model.take_told(), []);
}

#[test]
fn the_tables_of_the_contract() {
    let text = |r: Result<(), Refusal>| r.unwrap_err().to_string();
    let mut model = stored();
    assert_eq!(
        text(model.begin_pause()),
        "cannot pause task in created state"
    );
    assert_eq!(
        text(model.begin_resume()),
        "cannot resume task in created state"
    );
    assert_eq!(
        text(model.may_checkpoint()),
        "cannot checkpoint a task in created state"
    );
    assert_eq!(
        text(model.exec_add(exec_id(0))),
        "cannot exec in a created state"
    );
    let mut model = created();
    assert_eq!(
        text(model.begin_pause()),
        "cannot pause task in created state"
    );
    assert_eq!(
        text(model.begin_resume()),
        "cannot resume task in created state"
    );
    assert_eq!(
        text(model.may_checkpoint()),
        "cannot checkpoint a task in created state"
    );
    let mut model = running();
    assert_eq!(text(model.begin_start()), "cannot start a running process");
    assert_eq!(
        text(model.begin_resume()),
        "cannot resume a running process"
    );
    assert_eq!(
        text(model.begin_delete()),
        "cannot delete a running process"
    );
    model.begin_pause().unwrap();
    model.pause_done(true).unwrap();
    assert_eq!(text(model.begin_start()), "cannot start a paused process");
    assert_eq!(text(model.begin_pause()), "cannot pause a paused container");
    assert_eq!(
        text(model.exec_add(exec_id(0))),
        "cannot exec in a paused state"
    );
    assert_eq!(text(model.begin_delete()), "cannot delete a paused process");
    model.init_ended(exit(0));
    assert_eq!(text(model.begin_start()), "cannot start a stopped process");
    assert_eq!(
        text(model.begin_pause()),
        "cannot pause a stopped container"
    );
    assert_eq!(
        text(model.begin_resume()),
        "cannot resume a stopped container"
    );
    assert_eq!(
        text(model.may_update()),
        "cannot update a stopped container"
    );
    assert_eq!(
        text(model.exec_add(exec_id(0))),
        "cannot exec in a stopped state"
    );
    model.begin_delete().unwrap();
    model.delete_done(true, exit(255));
    assert_eq!(text(model.begin_start()), "cannot start a deleted process");
    assert_eq!(
        text(model.begin_delete()),
        "cannot delete a deleted process: not found"
    );
    let mut model = running();
    model.exec_add(exec_id(0)).unwrap();
    assert_eq!(text(model.exec_add(exec_id(0))), "id e0: already exists");
    assert_eq!(
        text(model.exec_begin_delete(&exec_id(1)).map(drop)),
        "process does not exist e1: not found"
    );
}
