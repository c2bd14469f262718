//! containerd's own shim and ours, asked the same over raw ttrpc: every method, in every state of a
//! container and of an exec process, on containerd 1.6 and 2.1.
//!
//! What is compared: the code and the whole text of every refusal, every field of every answer, the
//! state afterwards, and the events that containerd's subscribers got. Pids, paths and times are
//! replaced by what they stand for. Every difference has to be in [`allowed::ALLOWED`] with its reason, and
//! everything there has to be seen.

#[path = "differential/allowed.rs"]
mod allowed;
#[path = "differential/calls.rs"]
mod calls;
#[path = "differential/side.rs"]
mod side;

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::events::Subscriber;
use holdfast_integration::shim::METHODS;
use holdfast_integration::{on_containerds, place, skip};

use allowed::ALLOWED;
use calls::{EXEC, GENTLE};
use side::{Seen, Side, State};

on_containerds! { the_two_shims_answer_alike; }

/// What one side did, by state and call.
type Seens = BTreeMap<(State, &'static str), Seen>;

fn the_two_shims_answer_alike(containerd: &Containerd) {
    if peer() {
        return skip("differential", "it drives both shims by itself");
    }
    if place::program("runc").is_none() {
        return skip("differential", "runc is not installed");
    }
    let subscriber = Subscriber::new(containerd);
    let (theirs, ours) = std::thread::scope(|scope| {
        let visit = |name, kind| {
            let subscriber = &subscriber;
            scope.spawn(move || visit(&Side::new(containerd, name, kind), subscriber))
        };
        let theirs = visit("theirs", "io.containerd.runc.v2");
        let ours = visit("ours", "io.containerd.holdfast.v2");
        (theirs.join().unwrap(), ours.join().unwrap())
    });
    assert_eq!(
        theirs.keys().collect::<Vec<_>>(),
        ours.keys().collect::<Vec<_>>()
    );
    compare(containerd, &theirs, &ours);
}

fn visit(side: &Side, subscriber: &Subscriber) -> Seens {
    let mut seens = Seens::new();
    for state in State::ALL {
        // These change nothing, so one container serves them all.
        let quiet: Vec<&'static str> = if state.has_container() {
            GENTLE.to_vec()
        } else {
            let all = METHODS.iter().copied();
            all.filter(|call| *call != "Create").collect()
        };
        let container = side.container(state);
        for call in quiet.iter().filter(|call| state.takes(call)) {
            seens.insert((state, call), side.ask(&container, call));
        }
        side.end(&container);
        let loud = METHODS
            .iter()
            .filter(|call| !quiet.contains(call) && state.takes(call));
        for call in loud {
            let container = side.container(state);
            let mut seen = side.ask(&container, call);
            seen.after = side.status(&container);
            side.end(&container);
            seen.events = side.events(&container, subscriber);
            seens.insert((state, call), seen);
        }
    }
    side.leave();
    seens
}

fn compare(containerd: &Containerd, theirs: &Seens, ours: &Seens) {
    let mut unexpected = Vec::new();
    let mut used = vec![false; ALLOWED.len()];
    let mut same = 0;
    for ((state, call), theirs) in theirs {
        let ours = &ours[&(*state, *call)];
        for (what, theirs, ours) in [
            ("answer", &theirs.answer, &ours.answer),
            ("state after", &theirs.after, &ours.after),
            ("events", &theirs.events, &ours.events),
        ] {
            if theirs == ours {
                same += 1;
                continue;
            }
            let found = ALLOWED
                .iter()
                .position(|one| one.applies(containerd.version, *state, call, what, theirs, ours));
            match found {
                Some(at) => used[at] = true,
                None => unexpected.push(format!(
                    "{call} when {state:?}, {what}:\n  theirs: {theirs}\n  ours:   {ours}"
                )),
            }
        }
    }
    println!(
        "{same} equal, {} allowed differences",
        used.iter().filter(|one| **one).count()
    );
    let stale: Vec<&str> = ALLOWED
        .iter()
        .zip(&used)
        .filter(|(one, used)| !**used && one.must_be_seen(containerd.version))
        .map(|(one, _)| one.why)
        .collect();
    assert!(
        unexpected.is_empty() && stale.is_empty(),
        "{} differences without a reason:\n{}\nallowed but not seen: {stale:#?}",
        unexpected.len(),
        unexpected.join("\n")
    );
    assert!(same > 200, "only {same} compared");
}

/// Nothing of this test may take longer.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn every_call_and_both_kinds_of_process_are_covered() {
    let known = |call: &&str| METHODS.contains(call);
    assert!(GENTLE.iter().chain(EXEC).all(known));
}
