//! All CDI files of a host: which device comes from which file.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::edits::ContainerEdits;
use crate::name::QualifiedName;
use crate::spec::{self, Spec, SpecError};

/// Where CDI files are looked for unless told otherwise: written by hand, and generated.
pub const DEFAULT_SPEC_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// A larger file is not read. Real ones have some tens of kilobytes.
const MAX_FILE: u64 = 8 << 20;
/// Device names that an error lists.
const LISTED: usize = 32;

/// The CDI files of some folders.
#[derive(Debug, Default)]
pub struct Registry {
    dirs: Vec<PathBuf>,
    files: Vec<File>,
    devices: HashMap<QualifiedName, Place>,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    priority: usize,
    spec: Spec,
}

/// A device: index of its file, index within it.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    device: usize,
}

/// Something that keeps devices from being found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: ProblemKind,
}

/// What is wrong with a CDI file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProblemKind {
    /// It cannot be read; the text is the system's.
    Unreadable(String),
    /// It is not a valid CDI file. None of its devices is known.
    Invalid(SpecError),
    /// Another file of the same priority has a device of the same name. Neither is used.
    Conflict {
        /// The device.
        device: QualifiedName,
        /// The other file.
        other: PathBuf,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            ProblemKind::Unreadable(why) => write!(f, "{path}: cannot be read: {why}"),
            ProblemKind::Invalid(why) => write!(f, "{path}: {why}"),
            ProblemKind::Conflict { device, other } => write!(
                f,
                "{path}: {device} is in {} too, and neither folder comes later: remove one",
                other.display()
            ),
        }
    }
}

/// Devices that no usable file has, and what is wrong with the files there are.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Unresolvable {
    /// The names asked for that were not found, in the order of the request.
    pub devices: Vec<String>,
    /// All that is wrong with CDI files.
    pub problems: Vec<Problem>,
    /// The devices that are known, sorted.
    pub known: Vec<String>,
    /// The folders looked at.
    pub dirs: Vec<PathBuf>,
}

impl fmt::Display for Unresolvable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unresolvable CDI devices {}", self.devices.join(", "))?;
        for problem in &self.problems {
            write!(f, "; {problem}")?;
        }
        if self.known.is_empty() {
            let dirs: Vec<_> = self.dirs.iter().map(|d| d.display().to_string()).collect();
            return write!(f, "; there is no usable device in {}", dirs.join(", "));
        }
        let more = self.known.len().saturating_sub(LISTED);
        let listed = &self.known[..self.known.len() - more];
        write!(f, "; known devices: {}", listed.join(", "))?;
        if more > 0 {
            write!(f, " and {more} more")?;
        }
        Ok(())
    }
}

impl Registry {
    /// Reads all `.yaml` and `.json` files of `dirs`. A later folder has priority over an earlier
    /// one; folders that do not exist are fine, folders within them are not entered.
    ///
    /// This does not fail: see [`Self::problems`].
    #[must_use]
    pub fn scan<P: AsRef<Path>>(dirs: &[P]) -> Self {
        let mut this = Self {
            dirs: dirs.iter().map(|dir| dir.as_ref().to_owned()).collect(),
            ..Self::default()
        };
        for (priority, dir) in dirs.iter().enumerate() {
            for path in this.files_of(dir.as_ref()) {
                this.read(path, priority);
            }
        }
        this.index();
        this
    }

    /// The CDI files of a folder, sorted by name.
    fn files_of(&mut self, dir: &Path) -> Vec<PathBuf> {
        let listed = fs::read_dir(dir).and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
        });
        let mut paths = match listed {
            Ok(paths) => paths,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                self.problems.push(Problem {
                    path: dir.to_owned(),
                    kind: ProblemKind::Unreadable(error.to_string()),
                });
                return Vec::new();
            }
        };
        paths.retain(|path| {
            let named = path
                .extension()
                .is_some_and(|ext| ext == "yaml" || ext == "json");
            named && !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
        });
        paths.sort();
        paths
    }

    fn read(&mut self, path: PathBuf, priority: usize) {
        let kind = match read_text(&path) {
            Err(error) => ProblemKind::Unreadable(error.to_string()),
            Ok(text) => match spec::parse(&text) {
                Ok(spec) => {
                    self.files.push(File {
                        path,
                        priority,
                        spec,
                    });
                    return;
                }
                Err(error) => ProblemKind::Invalid(error),
            },
        };
        self.problems.push(Problem { path, kind });
    }

    /// Finds the file of every device; those of equal priority cancel each other out.
    fn index(&mut self) {
        let mut conflicts = HashSet::new();
        for (f, file) in self.files.iter().enumerate() {
            for (d, device) in file.spec.devices.iter().enumerate() {
                let name = QualifiedName::of(&file.spec.kind, &device.name);
                let here = Place { file: f, device: d };
                // Files come in the order of their priority, so an earlier one never has more.
                if let Some(before) = self.devices.insert(name.clone(), here) {
                    let other = &self.files[before.file];
                    if other.priority == file.priority {
                        self.problems.push(Problem {
                            path: other.path.clone(),
                            kind: ProblemKind::Conflict {
                                device: name.clone(),
                                other: file.path.clone(),
                            },
                        });
                        conflicts.insert(name);
                    }
                }
            }
        }
        // Once in conflict a name stays unusable, whatever a later folder says: that is how the
        // reference library resolves it.
        for name in conflicts {
            self.devices.remove(&name);
        }
    }

    /// All that is wrong, in the order it was found.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The usable files, lowest priority first.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &Spec)> {
        self.files
            .iter()
            .map(|file| (file.path.as_path(), &file.spec))
    }

    /// The names of all usable devices, sorted.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        let mut names: Vec<_> = self.devices.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    /// The edits that give a container these devices: those of each file once, before the edits of
    /// its first device.
    ///
    /// # Errors
    /// When any name is unknown or no name at all.
    pub fn resolve<S: AsRef<str>>(&self, names: &[S]) -> Result<ContainerEdits, Unresolvable> {
        let mut edits = ContainerEdits::default();
        let mut used = HashSet::new();
        let mut missing = Vec::new();
        for name in names {
            let name = name.as_ref();
            let place = QualifiedName::parse(name)
                .ok()
                .and_then(|name| self.devices.get(&name));
            let Some(place) = place else {
                missing.push(name.to_owned());
                continue;
            };
            let spec = &self.files[place.file].spec;
            if used.insert(place.file) {
                edits.append(&spec.edits);
            }
            edits.append(&spec.devices[place.device].edits);
        }
        if missing.is_empty() {
            return Ok(edits);
        }
        Err(Unresolvable {
            devices: missing,
            problems: self.problems.clone(),
            known: self.devices(),
            dirs: self.dirs.clone(),
        })
    }
}

fn read_text(path: &Path) -> std::io::Result<String> {
    // Non-blocking, or the open of a pipe would wait for a writer.
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let meta = file.metadata()?;
    let refused = |why: &str| Err(std::io::Error::other(why.to_owned()));
    if !meta.is_file() {
        return refused("is no regular file");
    }
    if meta.len() > MAX_FILE {
        return refused("is larger than 8 MiB");
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
#[path = "registry/tests.rs"]
mod tests;
