//! Descriptors that the slate names.
//!
//! A descriptor's number is all that the slate has of it, so a number must not come to mean something
//! else while it is written there. Rust closes a descriptor where its owner is dropped; the slate
//! changes at the end of the step. In between the kernel would give the number to whatever is opened
//! next, and an image that ends there would take one for the other. So a [`Descriptor`] that is dropped is
//! closed only when no key on the slate names it any more.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// A descriptor that stays open until the slate has forgotten it. Where there is no slate it is closed at once.
#[derive(Debug)]
pub(crate) struct Descriptor(Arc<File>);

impl Descriptor {
    /// How the slate names it.
    pub(crate) fn name(&self) -> Name {
        Name(self.0.as_raw_fd())
    }
}

impl<T: Into<OwnedFd>> From<T> for Descriptor {
    fn from(descriptor: T) -> Self {
        Self(Arc::new(File::from(descriptor.into())))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        super::close_later(Arc::clone(&self.0));
    }
}

impl Deref for Descriptor {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Read for &Descriptor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for &Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

/// A descriptor as it is named on the slate: by its number.
///
/// Wherever one is serialised for [`super::put_json`], the key that it is put under holds the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Name(RawFd);

thread_local! {
    /// Names in the value that is being serialised on this thread.
    static NAMED: RefCell<Vec<RawFd>> = const { RefCell::new(Vec::new()) };
}

impl Name {
    /// The number.
    pub(crate) fn number(self) -> RawFd {
        self.0
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        NAMED.with_borrow_mut(|named| named.push(self.0));
        serializer.serialize_i32(self.0)
    }
}

/// A value as JSON, and the descriptors that it names.
///
/// # Errors
/// serde_json's.
pub(super) fn to_json(value: &impl Serialize) -> serde_json::Result<(Vec<u8>, Vec<RawFd>)> {
    NAMED.take();
    let bytes = serde_json::to_vec(value)?;
    Ok((bytes, NAMED.take()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_value_names_the_descriptors_in_it() {
        let (one, other) = (Name(5), Name(9));
        let (bytes, named) = to_json(&(1, Some(one), vec![other, one], None::<Name>)).unwrap();
        assert_eq!(bytes, b"[1,5,[9,5],null]");
        assert_eq!(named, [5, 9, 5]);
        assert_eq!(to_json(&7).unwrap().1, Vec::<RawFd>::new());
        assert_eq!(serde_json::from_slice::<Name>(b"12").unwrap(), Name(12));
    }
}
