//! What came from the image before: descriptors and values.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;

use nix::fcntl::{FcntlArg, fcntl};
use serde::de::DeserializeOwned;

use super::descriptor::{Descriptor, Name};
use super::sys;

/// See the module. What is not taken is closed at the end.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    values: BTreeMap<String, Vec<u8>>,
    /// Numbers that were open when this image began and that nobody has taken.
    open: BTreeSet<RawFd>,
}

impl Inherited {
    /// Everything that is open without close-on-exec, which this image sets nowhere: so the image before has
    /// left it. To be called first.
    pub(super) fn new(values: BTreeMap<String, Vec<u8>>) -> io::Result<Self> {
        let mut open = BTreeSet::new();
        for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
            let Some(number) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<RawFd>().ok())
            else {
                continue;
            };
            if number > 2 && fcntl(number, FcntlArg::F_GETFD) == Ok(0) {
                open.insert(number);
            }
        }
        for number in &open {
            let flag = nix::fcntl::FdFlag::FD_CLOEXEC;
            fcntl(*number, FcntlArg::F_SETFD(flag))?;
        }
        Ok(Self { values, open })
    }

    /// Says that this number is somebody's already.
    pub(crate) fn owned(&mut self, number: RawFd) {
        self.open.remove(&number);
    }

    /// Takes a descriptor over.
    ///
    /// # Errors
    /// `EBADF` when it did not come with us, or has been taken.
    pub(crate) fn descriptor(&mut self, name: Name) -> io::Result<Descriptor> {
        if !self.open.remove(&name.number()) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        sys::inherit(name.number()).map(Descriptor::from)
    }

    /// The highest number of the keys that are `prefix` and a number.
    pub(crate) fn highest(&self, prefix: &str) -> u64 {
        self.values
            .range(prefix.to_owned()..)
            .map_while(|(key, _)| key.strip_prefix(prefix))
            .filter_map(|number| number.parse().ok())
            .max()
            .unwrap_or(0)
    }

    /// The value under a key, taken out.
    pub(crate) fn bytes(&mut self, key: &str) -> Option<Vec<u8>> {
        self.values.remove(key)
    }

    /// The value under a key as JSON, taken out; what cannot be read is logged and absent.
    pub(crate) fn json<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let bytes = self.values.remove(key)?;
        serde_json::from_slice(&bytes)
            .inspect_err(|error| log::error!("the slate's {key} cannot be read: {error}"))
            .ok()
    }

    /// All values whose keys begin with `prefix`, in the order of the keys, taken out; keys without it.
    pub(crate) fn all(&mut self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let keys: Vec<String> = self
            .values
            .range(prefix.to_owned()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .cloned()
            .collect();
        keys.into_iter()
            .filter_map(|key| {
                let value = self.values.remove(&key)?;
                let rest = key.strip_prefix(prefix)?.to_owned();
                Some((rest, value))
            })
            .collect()
    }

    /// Closes what nobody has taken: the event loop of the image before and the like.
    pub(crate) fn close_rest(self) {
        for number in self.open {
            sys::close_stale(number);
        }
    }
}
