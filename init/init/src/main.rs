//! `holdfast-init`: the process that becomes the container.
//!
//! It is started by `holdfast` from a sealed memfd (so the host's file can be neither
//! seen nor overwritten: CVE-2019-5736), single-threaded by construction, without a C
//! runtime, an allocator or a parser. It reads a flat plan ([`holdfast_plan`]),
//! executes its steps in order and ends in `execve`. Whatever fails is reported as step
//! number and errno; the parent finds the words.
//!
//! What it may rely on: `argv[1]` is the plan's descriptor, `argv[2]` the socket to the
//! parent; descriptors named in steps are open. What it never does: resolve a path
//! inside the container without `openat2(RESOLVE_IN_ROOT)`, leave a descriptor open over
//! `execve` that was not asked for, wait for anything but its parent and the start gate.
#![no_std]
#![no_main]

mod console;
mod copy;
mod fault;
mod identity;
mod mounts;
mod nodes;
mod program;
mod root;
mod steps;
mod sys;

use core::ffi::CStr;

use fault::Fault;
use holdfast_plan::report::{MAX_FRAME, Report};
use holdfast_plan::{Plan, Step};
use steps::State;

/// Called by the entry code in [`sys::entry`] with the process arguments.
fn run(args: &[Option<&'static CStr>; 3]) -> i32 {
    let (Some(plan_fd), Some(sync)) = (number(args[1]), number(args[2])) else {
        return 2;
    };
    let Ok(bytes) = sys::map_plan(plan_fd) else {
        return fail(sync, 0, &Fault::check(b"map the plan"));
    };
    let Ok(plan) = Plan::parse(bytes) else {
        return fail(sync, 0, &Fault::check(b"read the plan"));
    };
    let scratch = bytes.as_ptr() as usize + plan.scratch_offset();
    let mut state = State::new(sync, scratch);
    for (index, step) in (0u32..).zip(plan.steps()) {
        let outcome = match step {
            Ok(Step::Exec { args, env }) => {
                let errno = state.exec(args, env);
                Err(Fault::call(b"execve", errno))
            }
            Ok(step) => state.execute(&step),
            Err(_) => Err(Fault::check(b"read the step")),
        };
        if let Err(fault) = outcome {
            return fail(state.reports, index, &fault);
        }
    }
    fail(state.reports, 0, &Fault::check(b"the plan has no end"))
}

/// Reports the fault and returns the exit code: 127 when a program was not found, 126
/// when it could not be executed or anything else failed (the shell's convention).
fn fail(fd: i32, step: u32, fault: &Fault) -> i32 {
    let mut frame = [0; MAX_FRAME];
    let len = Report::Failed(holdfast_plan::report::Fault {
        step,
        errno: fault.errno,
        detail: fault.detail(),
    })
    .write(&mut frame);
    // Nobody left to tell: the exit code remains.
    let _ = sys::write(fd, frame.get(..len).unwrap_or_default());
    if fault.errno == sys::ENOENT { 127 } else { 126 }
}

fn number(text: Option<&CStr>) -> Option<i32> {
    let mut value: i32 = 0;
    for digit in text?.to_bytes() {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        value = value.checked_mul(10)?.checked_add(i32::from(digit))?;
    }
    Some(value)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Reached only through a bug; the parent sees a dead process before "ready" and says so.
    sys::exit(125)
}
