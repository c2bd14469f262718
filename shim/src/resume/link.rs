//! The shim's line to its keeper (`docs/0010-what-outlives-sigkill.md`): every descriptor that the slate names is
//! held by the keeper, too, under the same number.
//!
//! At the end of a step the keeper is given what is named now, then the slate is written, then the keeper lets go of what
//! is not named any more. So whenever this process is killed, what the slate names is there. A descriptor that
//! is closed here only when the slate does not name it (see [`super::descriptor`]) keeps its number's meaning.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use holdfast_keeper::{
    BATCH, DROP, END, End, FIRST, FORGET, HELLO, KEEPER_END, PUT, REAPED, SHIM_END, SIGNALS, WORDS,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::sync::Notify;

use super::inherited::Inherited;
use super::slate::Slate;
use super::sys;

/// On the slate: the keeper's pid.
const KEY: &str = "keeper";
/// How long a keeper may take nothing before it is continued, and as long again before it is given up.
const PATIENCE: Duration = Duration::from_millis(500);

/// Told when the keeper is sent something.
static SENT: Notify = Notify::const_new();

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    keeper: u32,
    /// Numbers that it holds.
    held: BTreeSet<RawFd>,
    /// The slate and the program: always held.
    fixed: [RawFd; 2],
    /// Whether it knows this image.
    greeted: bool,
    /// Whether it is to be told of this image at the end of the step.
    ready: bool,
}

/// What the keeper has said.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Said {
    /// A child of its has ended.
    End(End),
    /// We were stopped, and it has let us go on.
    Continued {
        /// By which signal.
        signal: i32,
        /// For how long.
        waited: Duration,
        /// Since when: seconds and nanoseconds since 1970.
        since: (i64, u32),
    },
}

/// The process that has started this one and will start the next one.
fn parent() -> u32 {
    u32::try_from(nix::unistd::getppid().as_raw()).unwrap_or(0)
}

impl Link {
    /// The first image's, which was started by a keeper.
    ///
    /// # Errors
    /// `EBADF` when it was not.
    pub(super) fn first() -> io::Result<Self> {
        for number in [KEEPER_END, SIGNALS] {
            // They only take up numbers that mean something to the keeper.
            std::mem::forget(sys::inherit(number)?);
        }
        Ok(Self::new(sys::inherit(SHIM_END)?, parent()))
    }

    /// That of the image before.
    pub(super) fn again(inherited: &mut Inherited) -> Option<Self> {
        let keeper: u32 = inherited.json(KEY)?;
        if keeper != parent() {
            return None;
        }
        for number in [KEEPER_END, SIGNALS, SHIM_END] {
            inherited.owned(number);
        }
        let socket = sys::inherit(SHIM_END)
            .inspect_err(|error| log::error!("the line to the keeper: {error}"))
            .ok()?;
        Some(Self::new(socket, keeper))
    }

    fn new(socket: OwnedFd, keeper: u32) -> Self {
        Self {
            socket,
            keeper,
            held: BTreeSet::new(),
            fixed: [-1; 2],
            greeted: false,
            ready: false,
        }
    }

    /// Its pid.
    pub(super) fn keeper(&self) -> u32 {
        self.keeper
    }

    /// The socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// All that this image has taken over is on the slate at the end of the step.
    pub(super) fn ready(&mut self, slate: RawFd, program: RawFd) {
        self.fixed = [slate, program];
        self.ready = true;
    }

    /// Before the slate is written: gives the keeper what it names now.
    ///
    /// # Errors
    /// The keeper is gone, or takes nothing.
    pub(super) fn give(&mut self, slate: &Slate, changed: &[RawFd]) -> io::Result<()> {
        let wanted: BTreeSet<RawFd> = if self.greeted {
            // Also what it holds: a key that names a number anew may mean something else by it.
            let named = changed.iter().filter(|number| slate.names(**number));
            named.copied().collect()
        } else if self.ready {
            slate.all_named().chain(self.fixed).collect()
        } else {
            return Ok(());
        };
        let numbers: Vec<RawFd> = wanted.into_iter().filter(|n| *n >= FIRST).collect();
        for batch in numbers.chunks(BATCH) {
            match self.put(batch) {
                // A key that was taken over names one that did not come with us: nobody asks for it any more.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
                    let open: Vec<RawFd> = batch
                        .iter()
                        .copied()
                        .filter(|number| fcntl(*number, FcntlArg::F_GETFD).is_ok())
                        .collect();
                    log::debug!("named and not open: all of {batch:?} but {open:?}");
                    self.put(&open)?;
                }
                done => done?,
            }
        }
        Ok(())
    }

    fn put(&mut self, numbers: &[RawFd]) -> io::Result<()> {
        let words: Vec<u32> = std::iter::once(PUT)
            .chain(numbers.iter().map(|number| number.cast_unsigned()))
            .collect();
        self.send(&words, numbers)?;
        self.held.extend(numbers);
        Ok(())
    }

    /// After the slate is written: lets the keeper close what it does not name.
    ///
    /// # Errors
    /// As [`Link::give`].
    pub(super) fn take_back(&mut self, slate: &Slate, changed: &[RawFd]) -> io::Result<()> {
        let mut ranges: Vec<u32> = Vec::new();
        if self.greeted {
            for number in changed {
                if !slate.names(*number) && self.held.remove(number) {
                    ranges.extend([number.cast_unsigned(); 2]);
                }
            }
        } else if self.ready {
            let [slate, program] = self.fixed.map(RawFd::cast_unsigned);
            self.send(&[HELLO, slate, program], &[])?;
            self.greeted = true;
            // Whatever else it has from an image before.
            let mut next = FIRST.cast_unsigned();
            for number in &self.held {
                let number = number.cast_unsigned();
                if number > next {
                    ranges.extend([next, number - 1]);
                }
                next = number + 1;
            }
            ranges.extend([next, u32::MAX]);
        }
        for batch in ranges.chunks(WORDS - 1) {
            let words: Vec<u32> = std::iter::once(DROP).chain(batch.iter().copied()).collect();
            self.send(&words, &[])?;
        }
        Ok(())
    }

    /// The end of this process is on the slate.
    ///
    /// # Errors
    /// As [`Link::give`].
    pub(super) fn reaped(&self, pid: u32) -> io::Result<()> {
        self.send(&[REAPED, pid], &[])
    }

    /// The slate is not to be gone on with.
    pub(super) fn forget(&self) {
        // If it is gone it does not, either.
        let _ = self.send(&[FORGET], &[]);
    }

    /// Sends at once; a keeper that takes nothing was stopped by somebody, and is continued.
    fn send(&self, words: &[u32], descriptors: &[RawFd]) -> io::Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let send = || sys::send_with_descriptors(self.socket.as_fd(), &bytes, descriptors);
        let is_full = |done: &io::Result<()>| {
            done.as_ref()
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let mut done = send();
        for attempt in 0..2 {
            if !is_full(&done) {
                break;
            }
            if attempt == 1 {
                self.signal(nix::sys::signal::Signal::SIGCONT);
            }
            let mut poll = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
            let limit = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO);
            let _ = nix::poll::poll(&mut poll, limit);
            done = send();
        }
        if is_full(&done) {
            // What it holds is not true any more: it must not go on with that.
            self.signal(nix::sys::signal::Signal::SIGKILL);
        }
        SENT.notify_one();
        done
    }

    /// Continues a keeper that has not taken what it was sent; whether there was such.
    fn rouse(&self) -> bool {
        let waits = sys::unread(self.socket.as_fd()).is_ok_and(|bytes| bytes > 0);
        if waits {
            self.signal(nix::sys::signal::Signal::SIGCONT);
        }
        waits
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        if parent() == self.keeper
            && let Ok(pid) = i32::try_from(self.keeper)
        {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }
}

impl Said {
    /// What a message says; none if it is of a later version.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .filter_map(|word| word.first_chunk::<4>())
            .map(|word| u32::from_ne_bytes(*word))
            .collect();
        match *words.as_slice() {
            [END, ..] => End::parse(&words).map(Self::End),
            [
                holdfast_keeper::CONTINUED,
                signal,
                waited,
                first,
                second,
                nanos,
                ..,
            ] => Some(Self::Continued {
                signal: signal.cast_signed(),
                waited: Duration::from_millis(waited.into()),
                since: (holdfast_keeper::join(first, second), nanos),
            }),
            _ => None,
        }
    }
}

/// Where the keeper is named, for the next image.
pub(super) fn keep(keeper: u32) {
    super::put_json(KEY, &keeper);
}

/// The keeper is gone: there is nothing for the next image to take over.
pub(super) fn forget_keeper() {
    super::remove(KEY);
}

/// Sees to it that the keeper takes what it is sent: what it still holds, the far end does not see closed. One that has
/// taken nothing for so long was stopped by somebody, and is continued.
pub(crate) async fn keep_taking(limit: Duration) {
    loop {
        SENT.notified().await;
        tokio::time::sleep(limit).await;
        if super::shared().link.as_ref().is_some_and(Link::rouse) {
            log::error!(
                "the shim's keeper was stopped by somebody: it was let go on after {limit:?}"
            );
        }
    }
}

/// The line as the event loop reads it; none without a keeper.
///
/// # Errors
/// `EMFILE`.
pub(crate) fn listener() -> io::Result<Option<OwnedFd>> {
    match &super::shared().link {
        Some(link) => link.socket().try_clone_to_owned().map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resume::descriptor::Descriptor;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsRawFd as _;

    fn pair() -> (OwnedFd, Link) {
        let (keepers, shims) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        // Of nobody: it must not be signalled.
        (keepers, Link::new(shims, 0))
    }

    fn said(keeper: &OwnedFd) -> Option<(Vec<u32>, Option<Descriptor>)> {
        let mut bytes = [0; 4096];
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(keeper.as_raw_fd(), nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        let received = crate::sys::receive_with_fd(keeper.as_fd(), &mut bytes).ok()?;
        let words = bytes[..received.len].chunks_exact(4);
        let words = words.map(|word| u32::from_ne_bytes(*word.first_chunk().unwrap()));
        Some((words.collect(), received.fd))
    }

    /// Above the numbers that the keeper has for itself.
    fn file() -> std::fs::File {
        let file = crate::sys::memory_file(c"link-test").unwrap();
        crate::sys::move_above(&file, 100).unwrap()
    }

    fn slate() -> Slate {
        Slate::create(file()).unwrap()
    }

    fn settle(link: &mut Link, slate: &mut Slate) {
        let changed = slate.take_changed();
        link.give(slate, &changed).unwrap();
        slate.commit().unwrap();
        link.take_back(slate, &changed).unwrap();
    }

    #[test]
    fn what_is_named_is_given_before_and_taken_back_after() {
        let (keeper, mut link) = pair();
        let mut slate = slate();
        let mut file = file();
        file.write_all(b"it").unwrap();
        let number = file.as_raw_fd();
        slate.put("a", b"1", vec![number]);
        // Nothing is said before the image is ready.
        settle(&mut link, &mut slate);
        assert!(said(&keeper).is_none());
        link.ready(slate.number(), number);
        settle(&mut link, &mut slate);
        let (words, descriptor) = said(&keeper).unwrap();
        assert_eq!(words[0], PUT);
        assert!(words[1..].contains(&number.cast_unsigned()));
        assert!(words[1..].contains(&slate.number().cast_unsigned()));
        assert!(descriptor.is_some());
        assert_eq!(said(&keeper).unwrap().0[0], HELLO);
        let (words, _) = said(&keeper).unwrap();
        assert_eq!((words[0], words.last()), (DROP, Some(&u32::MAX)));
        assert!(said(&keeper).is_none());

        let other = self::file();
        slate.put("b", b"2", vec![other.as_raw_fd()]);
        slate.put("a", b"3", vec![]);
        settle(&mut link, &mut slate);
        let (words, descriptor) = said(&keeper).unwrap();
        assert_eq!(words, [PUT, other.as_raw_fd().cast_unsigned()]);
        drop(descriptor);
        let gone = number.cast_unsigned();
        assert_eq!(said(&keeper).unwrap().0, [DROP, gone, gone]);
        // What has not changed is not said again.
        slate.put("b", b"4", vec![other.as_raw_fd()]);
        settle(&mut link, &mut slate);
        assert!(said(&keeper).is_none());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "it");
    }

    #[test]
    fn what_the_keeper_has_not_taken_is_known() {
        let (keeper, link) = pair();
        assert!(!link.rouse());
        link.reaped(5).unwrap();
        assert!(link.rouse());
        assert!(said(&keeper).is_some());
        assert!(!link.rouse());
    }

    #[test]
    fn a_keeper_that_is_gone_is_an_error() {
        let (keeper, mut link) = pair();
        drop(keeper);
        link.ready(8, 9);
        assert!(link.reaped(5).is_err());
    }
}
