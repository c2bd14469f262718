//! Where journals lie whose bundle is gone and whose last events containerd has not taken.
//!
//! containerd removes a bundle as soon as Delete is answered, and nobody may wait there for an acknowledgement. So the
//! journal leaves first, for a folder that belongs to one containerd and one containerd namespace:
//!
//! ```text
//! /run/holdfast/.events/<hash of TTRPC_ADDRESS and namespace>/<container>.<pid of the shim>-<number>
//! ```
//!
//! A file there is locked by the shim that tells it. One that nobody has locked is an orphan: its shim was killed. The
//! next `start` or `delete` of any shim of the same containerd and namespace gives it to a process that tells it
//! ([`crate::handover`]).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use holdfast_record::journal::JournalError;
use holdfast_record::{ContainerId, Namespace};
use sha2::{Digest as _, Sha256};

use crate::fault::chain;
use crate::task::journal::BundleJournal;

/// Names another parent than [`PARENT`].
const PARENT_VARIABLE: &str = "HOLDFAST_EVENTS_DIR";
/// Parent of all the folders.
const PARENT: &str = "/run/holdfast/.events";

/// Parent of all the folders, as the environment has it or by default.
pub(crate) fn parent() -> PathBuf {
    std::env::var_os(PARENT_VARIABLE).map_or_else(|| PathBuf::from(PARENT), PathBuf::from)
}

/// How often a folder may go in the moment in which it is needed.
const TRIES: u32 = 100;

/// The folder of one containerd, by its socket for events, and one namespace.
pub(crate) fn folder(parent: &Path, address: &Path, namespace: &Namespace) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(address.as_os_str().as_encoded_bytes());
    hash.update([0]);
    hash.update(namespace.as_str());
    let name: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    parent.join(name)
}

/// The file of a container of this shim; `number` is its own among all of that name.
pub(crate) fn file(folder: &Path, container: &ContainerId, number: u64) -> PathBuf {
    folder.join(format!("{container}.{}-{number}", std::process::id()))
}

/// Makes a journal lie here, in the file of its own.
///
/// # Errors
/// The whole chain of causes; the journal is then where it was.
pub(crate) fn take_in(
    journal: &mut BundleJournal,
    folder: &Path,
    container: &ContainerId,
    number: u64,
) -> Result<(), String> {
    if journal.waiting() == 0 {
        return Ok(());
    }
    let path = file(folder, container, number);
    let mut tries = 0;
    loop {
        std::fs::create_dir_all(folder)
            .map_err(|error| format!("make {}: {error}", folder.display()))?;
        match journal.leave(&path) {
            // Another shim has told its last and removed the folder in between.
            Err(JournalError::Io { source, .. })
                if source.kind() == ErrorKind::NotFound && tries < TRIES =>
            {
                tries += 1;
            }
            left => return left.map_err(|error| chain(&error)),
        }
    }
}

/// Every file in a folder but those that are only being made.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end != "new"))
        .collect();
    found.sort();
    found
}

/// The latest file of a container.
pub(crate) fn latest_of(folder: &Path, container: &ContainerId) -> Option<PathBuf> {
    files(folder)
        .into_iter()
        .filter(|path| {
            path.file_stem()
                .is_some_and(|stem| stem == container.as_str())
        })
        .max_by_key(|path| {
            path.metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
        })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::task::journal::tests::event;

    #[test]
    fn each_containerd_and_namespace_has_a_folder_and_each_container_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let namespace = |name: &str| Namespace::new(name).unwrap();
        let of =
            |address: &str, name: &str| folder(dir.path(), Path::new(address), &namespace(name));
        let here = of("/run/a.ttrpc", "k8s.io");
        assert_eq!(here, of("/run/a.ttrpc", "k8s.io"));
        assert_ne!(here, of("/run/b.ttrpc", "k8s.io"));
        assert_ne!(here, of("/run/a.ttrpc", "moby"));
        assert_eq!(files(&here), Vec::<PathBuf>::new());

        std::fs::create_dir_all(&here).unwrap();
        let box_1 = ContainerId::new("box.1").unwrap();
        let own = file(&here, &box_1, 3);
        for path in [
            own.clone(),
            here.join("box.77-3"),
            here.join("box.78-1.new"),
        ] {
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(files(&here).len(), 2);
        assert_eq!(latest_of(&here, &box_1), Some(own));
        let other = ContainerId::new("other").unwrap();
        assert_eq!(latest_of(&here, &other), None);
    }

    #[test]
    fn a_folder_that_goes_in_between_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        let over = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            // As shims do that have told their last.
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = std::fs::remove_dir(&folder);
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            });
            let result = (0..100).try_for_each(|number| {
                let bundle = dir.path().join(format!("bundle-{number}"));
                std::fs::create_dir(&bundle).unwrap();
                let mut journal = BundleJournal::create(&bundle);
                journal.queue(number, event(number));
                let id = ContainerId::new("box").unwrap();
                let taken = take_in(&mut journal, &folder, &id, number);
                journal.front();
                journal.acknowledge();
                taken
            });
            over.store(true, Ordering::Relaxed);
            result
        });
        assert_eq!(result, Ok(()));
        assert_eq!(files(&folder), Vec::<PathBuf>::new());
    }
}
