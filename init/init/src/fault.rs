//! Why a step failed: the call, its object and errno, without an allocator.

use crate::sys::Errno;

const LIMIT: usize = 104;

/// A failed step. The text is cut at 104 bytes; the parent knows the whole path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// 0 when it is not a system call that failed.
    pub(crate) errno: i32,
    text: [u8; LIMIT],
    len: usize,
}

impl Fault {
    /// A system call failed.
    pub(crate) fn call(name: &[u8], errno: Errno) -> Self {
        Self::new(name, &[], errno.0)
    }

    /// A system call failed on an object (a path, mostly).
    pub(crate) fn on(name: &[u8], object: &[u8], errno: Errno) -> Self {
        Self::new(name, object, errno.0)
    }

    /// A check of ours failed.
    pub(crate) fn check(what: &[u8]) -> Self {
        Self::new(what, &[], 0)
    }

    fn new(name: &[u8], object: &[u8], errno: i32) -> Self {
        let mut fault = Self {
            errno,
            text: [0; LIMIT],
            len: 0,
        };
        fault.push(name);
        if !object.is_empty() {
            fault.push(b" ");
            fault.push(object);
        }
        fault
    }

    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(slot) = self.text.get_mut(self.len) {
                *slot = *byte;
                self.len += 1;
            }
        }
    }

    pub(crate) fn detail(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

pub(crate) type Done = Result<(), Fault>;
