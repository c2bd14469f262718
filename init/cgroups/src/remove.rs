//! Removal of a cgroup and what it made below itself.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::dir::{self, Dir};
use crate::error::{Error, Holder, Result};
use crate::freezer::nap;
use crate::place::{Place, processes_below};
use crate::sys;

impl Cgroup {
    /// Removes the cgroup's directory in every hierarchy, and every cgroup that was made below it.
    ///
    /// One rmdir(2) for each hierarchy when nothing is in the way. A cgroup that is busy is tried again until `deadline`
    /// (a dying process holds its cgroup for a moment longer); all hierarchies are tried, also after one has failed.
    /// Nothing is killed: see [`Self::kill_and_remove`]. Directories above are left alone: see
    /// [`Self::remove_made_parents`]. A cgroup that is gone is no error.
    ///
    /// # Errors
    /// [`Error::Deadline`] with pid, command and state of what is in the way; [`Error::Root`].
    pub fn remove(&self, deadline: Instant) -> Result<()> {
        self.refuse_root("remove")?;
        let began = Instant::now();
        let mut left: Vec<&Place> = self.places.iter().collect();
        let mut pause = Duration::from_micros(200);
        let mut failed = None;
        loop {
            left.retain(|place| match remove_tree(place.dir.path()) {
                Ok(done) => !done,
                Err(error) => {
                    failed.get_or_insert((place.dir.path().to_owned(), error));
                    false
                }
            });
            let Some(first) = left.first() else {
                return match failed {
                    None => Ok(()),
                    Some((path, error)) => Err(Error::io("remove", path)(error)),
                };
            };
            if !nap(&mut pause, deadline) {
                return Err(Error::Deadline {
                    step: "remove",
                    path: first.dir.path().to_owned(),
                    waited: began.elapsed(),
                    holders: Holder::of_all(&processes_below(&first.dir).unwrap_or_default()),
                });
            }
        }
    }

    /// Removes the directories directly above that [`Self::create`](Cgroup::create) had to make, as far as they are
    /// empty. Best effort: another container may use them by now.
    pub fn remove_made_parents(&self) {
        self.places.iter().for_each(made_parents);
    }
}

/// As [`Cgroup::remove_made_parents`], in one hierarchy.
pub(crate) fn made_parents(place: &Place) {
    for parent in place
        .dir
        .path()
        .ancestors()
        .skip(1)
        .take(usize::from(place.made_parents))
    {
        if parent == place.hierarchy.mount_point || sys::rmdir(parent).is_err() {
            return;
        }
    }
}

/// One try: true when the directory is gone, false when it is busy.
fn remove_tree(path: &Path) -> io::Result<bool> {
    if rmdir(path)? {
        return Ok(true);
    }
    // Busy with processes or with child cgroups.
    let below = match Dir::at(path.to_owned()).walk() {
        Ok(below) => below,
        Err(error) if dir::gone(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    if below.len() == 1 {
        return Ok(false);
    }
    // Children stand behind their parents.
    for child in below.iter().skip(1).rev() {
        rmdir(child)?;
    }
    rmdir(path)
}

fn rmdir(path: &Path) -> io::Result<bool> {
    match sys::rmdir(path) {
        Ok(()) => Ok(true),
        Err(error) if dir::gone(&error) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
