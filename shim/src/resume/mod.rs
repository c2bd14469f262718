//! The shim executes itself again when it fails, and its containers do not notice
//! (`docs/0006-executes-itself-again.md`).
//!
//! | module | what it does |
//! |---|---|
//! | [`slate`] | the memory file that the next image begins from |
//! | [`request`] | which RPC is being answered, and what was answered to those of the image before |
//! | [`image`] | the life of an image: handlers, watchdog, its report, how often it came to an end |
//! | [`upgrade`] | another program takes over, and what an operator may ask |
//! | [`descriptor`] | descriptors that the slate names |
//! | [`link`] | the keeper, which holds what the slate names, too |
//! | [`inherited`] | descriptors and values that came from the image before |
//! | `sys` | signal handlers and execve(2) |
//!
//! Keys on the slate, with who writes them:
//!
//! | key | value | written by |
//! |---|---|---|
//! | `image` | [`image::Lives`] | [`image`] |
//! | `panic/WHAT` | when it panicked last | [`image::retry_after_panic`] |
//! | `keeper` | its pid | [`link`] |
//! | `conn/N` | descriptor | `wire::server` |
//! | `taken/N` | how many bytes are on the slate that the socket still has | `wire::server` |
//! | `rx/N` | bytes of a frame that is not complete | `wire::server` |
//! | `call/N/S` | deadline and payload of an open request of stream S | `wire::server` |
//! | `answer/N/Q` | a frame that is not wholly written | `wire::server` |
//! | `written/N` | how many of the first frame's bytes are | `wire::server` |
//! | `signalled/N/S` | nothing; the signal that a Kill asked for has been sent | `task::owner` |
//! | `outcome/N/S` | what a change answered, until the frame is written | [`request`] |
//! | `end/PID` | the end of a child, until somebody has made something of it | `reaper` |
//! | `box/ID`, `state/ID`, `spec/ID/EXEC` | a container: what never changes, what does, its execs' programs | `task::owner::keep` |
//! | `job/ID/WHAT` | a runtime at work | `runtime` |
//! | `io/N`, `pump/N`, `left/N`, `sent/N` | stdio of a process, its streams, and what is read but not written | `stdio` |
//!
//! Where no slate was set up (tests, the actions that are not the server) all of this does nothing.

pub(crate) mod descriptor;
pub(crate) mod image;
pub(crate) mod inherited;
pub(crate) mod link;
pub(crate) mod request;
pub(crate) mod slate;
mod symbols;
mod sys;
pub(crate) mod upgrade;

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::marker::PhantomData;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use link::Link;
use serde::Serialize;
use slate::Slate;

#[derive(Debug)]
struct Shared {
    slate: Option<Slate>,
    /// The keeper, which begins the next image when this one is killed.
    link: Option<Link>,
    steps: u32,
    /// Dropped descriptors, to be closed when the slate does not name them any more.
    leaving: Vec<Arc<File>>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared {
    slate: None,
    link: None,
    steps: 0,
    leaving: Vec::new(),
});
/// Whether there is a slate: looked at without the lock, for those who have nothing to do otherwise.
static ON: AtomicBool = AtomicBool::new(false);

fn shared() -> MutexGuard<'static, Shared> {
    // Nothing that panics is done with it.
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_up(slate: Slate, link: Option<Link>) {
    let keeper = link.as_ref().map(Link::keeper);
    {
        let mut shared = shared();
        shared.slate = Some(slate);
        shared.link = link;
    }
    ON.store(true, Ordering::SeqCst);
    if let Some(keeper) = keeper {
        link::keep(keeper);
    }
}

/// All that was taken over is on the slate with the end of the step: from there on the keeper follows.
pub(crate) fn taken_over() {
    // See `image::upgrade`.
    nix::unistd::alarm::cancel();
    let program = image::program_number();
    let mut shared = shared();
    let number = shared.slate.as_ref().map_or(-1, Slate::number);
    if let Some(link) = &mut shared.link {
        link.ready(number, program);
    }
    drop(shared);
    // In case that there is no step.
    change(|_| {});
}

impl Shared {
    /// At the end of a step: writes what it has put on the slate. What comes back may be closed now.
    fn settle(&mut self) -> Vec<Arc<File>> {
        if self.steps > 0 {
            return Vec::new();
        }
        let Some(slate) = &mut self.slate else {
            return std::mem::take(&mut self.leaving);
        };
        let changed = slate.take_changed();
        let given = self.link.as_mut().map(|link| link.give(slate, &changed));
        if let Err(error) = slate.commit() {
            // What it says is not true any more; better no next image than one that is wrong.
            log::error!("the slate takes nothing ({error}): a fault would end this shim for good");
            ON.store(false, Ordering::SeqCst);
            self.slate = None;
            if let Some(link) = self.link.take() {
                link.forget();
            }
            sys::disarm();
            return std::mem::take(&mut self.leaving);
        }
        let taken = self
            .link
            .as_mut()
            .map(|link| link.take_back(slate, &changed));
        for done in [given, taken].into_iter().flatten() {
            if let Err(error) = done
                && self.link.take().is_some()
            {
                lost(&error);
            }
        }
        self.leaving
            .extract_if(.., |file| !slate.names(file.as_raw_fd()))
            .collect()
    }
}

/// Says once that a SIGKILL of this shim would be the end of its containers.
fn lost(why: &dyn std::fmt::Display) {
    log::error!(
        "the shim's keeper is gone ({why}): the shim goes on, but should it be killed now its containers end with it"
    );
}

/// The keeper is gone, and what it held.
pub(crate) fn lose_keeper(why: &dyn std::fmt::Display) {
    let link = shared().link.take();
    if link.is_some() {
        lost(why);
    }
    link::forget_keeper();
}

/// Whether there is a process that begins the next image when this one is killed.
pub(crate) fn is_kept() -> bool {
    shared().link.is_some()
}

/// The keeper may reap this process: its end is on the slate, or of no interest.
pub(crate) fn reaped(pid: u32) {
    let told = shared().link.as_ref().map(|link| link.reaped(pid));
    if let Some(Err(error)) = told {
        lose_keeper(&error);
    }
}

/// Writes what the step under way has put so far: what it does next must not be true before that.
pub(crate) fn commit() {
    let left = {
        let mut shared = shared();
        let steps = std::mem::take(&mut shared.steps);
        let left = shared.settle();
        shared.steps = steps;
        left
    };
    drop(left);
}

/// Closes a descriptor as soon as the slate does not name it.
fn close_later(file: Arc<File>) {
    if !is_on() {
        return;
    }
    let left = {
        let mut shared = shared();
        shared.leaving.push(file);
        shared.settle()
    };
    // Without the lock: closing may take its time.
    drop(left);
}

/// While this lives, what is put on the slate waits for its end, to be there all at once; and a crash
/// that somebody sends waits, too. Short, without any waiting in it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Step(PhantomData<*const ()>);

/// Begins a [`Step`]; they may be nested.
pub(crate) fn step() -> Step {
    sys::enter_step();
    shared().steps += 1;
    Step(PhantomData)
}

impl Drop for Step {
    fn drop(&mut self) {
        let left = {
            let mut shared = shared();
            shared.steps -= 1;
            shared.settle()
        };
        drop(left);
        sys::leave_step();
    }
}

/// The slate's descriptor; -1 without one.
fn number() -> i32 {
    shared().slate.as_ref().map_or(-1, Slate::number)
}

/// Whether there will be a next image.
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Changes the slate; at once outside of a step.
fn change(change: impl FnOnce(&mut Slate)) {
    if !is_on() {
        return;
    }
    let left = {
        let mut shared = shared();
        if let Some(slate) = &mut shared.slate {
            change(slate);
        }
        shared.settle()
    };
    drop(left);
}

/// Puts bytes under a key.
pub(crate) fn put(key: &str, value: &[u8]) {
    change(|slate| slate.put(key, value, Vec::new()));
}

/// This request's signal has been sent: from now on, whatever the step comes to that sent it.
pub(crate) fn signalled(request: Option<request::RequestId>) {
    if let Some(request) = request.filter(|_| is_on()) {
        put_now(&request.signalled_key(), &[]);
    }
}

/// As [`put_json`], unless it is what was put last; `last` is that as a hash, 0 at first.
pub(crate) fn put_json_if_changed(key: &str, value: &impl Serialize, last: &mut u64) {
    if !is_on() {
        return;
    }
    match descriptor::to_json(value) {
        Ok((bytes, names)) => {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            let hash = hasher.finish();
            if std::mem::replace(last, hash) != hash {
                change(|slate| slate.put(key, &bytes, names));
            }
        }
        Err(error) => log::error!("{key} cannot be kept: {error}"),
    }
}

/// Puts a value under a key as JSON, at once and whatever the step under way comes to. It names no descriptor.
pub(crate) fn put_json_now(key: &str, value: &impl Serialize) {
    if !is_on() {
        return;
    }
    match serde_json::to_vec(value) {
        Ok(bytes) => put_now(key, &bytes),
        Err(error) => log::error!("{key} cannot be kept: {error}"),
    }
}

/// Puts bytes under a key at once, within a step that will not come to its end.
fn put_now(key: &str, value: &[u8]) {
    if let Some(slate) = &mut shared().slate
        && let Err(error) = slate.put_now(key, value)
    {
        log::error!("the slate takes nothing: {error}");
    }
}

/// Puts a value under a key, as JSON; the descriptors that it names stay open until it is removed or replaced.
pub(crate) fn put_json(key: &str, value: &impl Serialize) {
    if !is_on() {
        return;
    }
    match descriptor::to_json(value) {
        Ok((bytes, names)) => change(|slate| slate.put(key, &bytes, names)),
        Err(error) => log::error!("{key} cannot be kept: {error}"),
    }
}

/// Removes a key.
pub(crate) fn remove(key: &str) {
    change(|slate| slate.remove(key));
}

/// Removes every key that begins with `prefix`.
pub(crate) fn remove_all(prefix: &str) {
    change(|slate| {
        for key in slate.keys(prefix) {
            slate.remove(&key);
        }
    });
}

/// Whether there is something under a key.
pub(crate) fn has(key: &str) -> bool {
    is_on()
        && shared()
            .slate
            .as_ref()
            .is_some_and(|slate| slate.contains(key))
}
