//! What attackers write and the runtime reads, as functions from bytes: each panics when the code
//! behind it breaks a promise. Tests run them over `fuzz/corpus`, cargo-fuzz over everything else
//! (`integration/docs/fuzzing.md`). No promise is made for this module.
#![expect(clippy::panic, reason = "to panic is what a fuzz target is for")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use holdfast_cgroups::{CgroupPath, Driver, Hierarchies};
use holdfast_plan::Plan;

use crate::bundle::{Bundle, check_process};
use crate::plan::namespaces::Namespaces;
use crate::plan::{PlanBuilder, PlanImage, create, exec};
use crate::{document, rdt, verb};

/// `config.json`: read, checked and turned into a plan, without a side effect on the machine.
///
/// Sources of bind mounts are cloned (detached); namespaces are not joined, nothing is executed.
///
/// # Panics
/// When a plan was made that `holdfast-init` could not read, or with other steps than were meant.
pub fn config(input: &[u8]) {
    if let Some(image) = planned(input) {
        readable(&image);
    }
}

/// The plan of a specification that has one.
fn planned(input: &[u8]) -> Option<PlanImage> {
    let mut spec = document::spec(input).ok()?;
    // Which directory it is does not matter to the checks, that there is one does.
    let folder = std::env::temp_dir();
    if let Some(root) = spec.root_mut() {
        root.set_path(folder.clone());
    }
    let bundle = Bundle::of(folder, spec).ok()?;
    let linux = bundle.linux().ok()?;
    let _ = CgroupPath::new(
        linux.cgroups_path().as_deref(),
        Driver::Cgroupfs,
        "/holdfast",
        "fuzz",
    );
    let _ = holdfast_cgroups::systemd::Unit::new(linux.cgroups_path().as_deref(), "fuzz");
    let _ = crate::user_map::denies_groups(linux);
    let _ = rdt::intent(linux, "fuzz");
    // An open of a namespace's path would be one of whatever the fuzzer wrote there.
    let list: Vec<_> = bundle
        .namespaces()
        .iter()
        .filter(|namespace| namespace.path().is_none())
        .cloned()
        .collect();
    let namespaces = Namespaces::decide(&list, false, linux.time_offsets().is_some()).ok()?;
    let process = bundle.process().ok()?;
    let gate = null().zip(null())?;
    let env = verb::environment::complete(process, None);
    let prepared = create::prepare(create::Inputs {
        bundle: &bundle,
        keyring: Some("_ses.fuzz"),
        namespaces: &namespaces,
        hierarchies: &Hierarchies::unified_at("/nowhere"),
        cgroup: None,
        attached_late: true,
        filter: None,
        env: &env,
        gate,
        console: process.terminal().unwrap_or(false).then(null).flatten(),
        preserve_fds: 0,
        no_pivot: false,
    });
    prepared.ok().map(|prepared| prepared.image)
}

/// The document of `exec --process`, as [`config`].
///
/// # Panics
/// As [`config`].
pub fn process(input: &[u8]) {
    let Ok(process) = document::process(input) else {
        return;
    };
    if check_process(&process).is_err() {
        return;
    }
    let env = verb::environment::complete(&process, None);
    let prepared = exec::prepare(exec::Inputs {
        process: &process,
        env: &env,
        attached_late: false,
        set_groups: true,
        join: null().map(|pidfd| (pidfd, 0)),
        root: None,
        user_namespace: false,
        keyring: Some("_ses.box"),
        personality: None,
        memory_policy: None,
        filter: None,
        console: process.terminal().unwrap_or(false).then(null).flatten(),
        preserve_fds: 0,
    });
    if let Ok(prepared) = prepared {
        readable(&prepared.image);
    }
}

/// The decoder of `holdfast-init`.
///
/// # Panics
/// When a step that was read is not the same step again after it was written.
pub fn plan(input: &[u8]) {
    let Ok(plan) = Plan::parse(input) else { return };
    assert!(plan.scratch_offset().is_multiple_of(8));
    assert!(plan.scratch_offset() <= input.len());
    let steps: Vec<_> = plan.steps().flatten().collect();
    let mut builder = PlanBuilder::new();
    for step in &steps {
        builder.push(*step, "");
    }
    // Too large for 32 bits is the only reason, and what was read is not.
    let Ok(again) = builder.finish() else {
        panic!("a plan of {} bytes does not fit any more", input.len());
    };
    let Ok(plan) = Plan::parse(&again.bytes) else {
        panic!("what was written is no plan");
    };
    let read: Vec<_> = plan.steps().flatten().collect();
    assert_eq!(steps, read);
}

/// Every step of a plan that was made can be read, and there are no others.
fn readable(image: &PlanImage) {
    let Ok(plan) = Plan::parse(&image.bytes) else {
        panic!("the plan cannot be read");
    };
    let mut count = 0;
    for step in plan.steps() {
        assert!(step.is_ok(), "step {count}: {:?}", image.labels.get(count));
        count += 1;
    }
    assert_eq!(count, image.labels.len());
}

fn null() -> Option<OwnedFd> {
    File::open(PathBuf::from("/dev/null"))
        .ok()
        .map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use holdfast_corpus::{Shape, replay, replay_on, seeds};

    const CRATE: &str = env!("CARGO_MANIFEST_DIR");

    #[test]
    fn config() {
        replay(CRATE, "config", Shape::Json, 3000, super::config);
    }

    #[test]
    fn process() {
        replay(CRATE, "process", Shape::Json, 4000, super::process);
    }

    /// The format changes with the code, so the plans to damage are made from the specifications.
    #[test]
    fn plan() {
        replay(CRATE, "plan", Shape::Bytes, 2000, super::plan);
        let mut plans = seeds(&Path::new(CRATE).join("fuzz/corpus/config"));
        plans.retain_mut(|(_, bytes)| match super::planned(bytes) {
            Some(image) => {
                *bytes = image.bytes;
                true
            }
            None => false,
        });
        if nix::unistd::geteuid().is_root() {
            assert!(
                plans.len() > 3,
                "only {} of the corpus have a plan",
                plans.len()
            );
        }
        replay_on(&plans, "plan", Shape::Bytes, 20_000, super::plan);
    }
}
