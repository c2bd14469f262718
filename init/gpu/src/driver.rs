//! The driver's files on the host, below its root.
//!
//! A driver is installed in `/`, or in a folder of its own (`[nvidia-container-cli] root`, as the GPU operator does).
//! Nothing here runs a program or loads a library: directories are listed and the linker's cache is read as data.

mod elf;
mod glob;
mod ldcache;

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::paths::{clean, is_executable, join, search_path};

pub use elf::soname;

/// Directories with libraries, in the order in which they are searched.
const LIBRARY_DIRS: [&str; 11] = [
    "/",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/lib64",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu/nvidia/current",
    "/lib/aarch64-linux-gnu/nvidia/current",
];

/// The libraries whose file names tell the driver's version, in the order in which they are asked.
const VERSIONED: [&str; 2] = ["libcuda.so.", "libnvidia-ml.so."];

/// Why the driver's version or libraries cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither library is there.
    #[error(
        "no driver libraries below {}: neither libcuda.so.{version} nor libnvidia-ml.so.{version} is in the usual \
         directories or in etc/ld.so.cache there. Install the driver's libraries, or correct \
         nvidia-container-cli.root in config.toml", .root.display()
    )]
    NoLibraries {
        /// The driver's root.
        root: PathBuf,
        /// The version looked for; `*.*` for any.
        version: String,
    },
}

/// The driver below one root.
#[derive(Debug)]
pub struct Driver {
    root: PathBuf,
    /// What NVML says, where it was asked.
    told: Option<String>,
    info: OnceCell<Result<Info, Error>>,
    cached: OnceCell<Vec<PathBuf>>,
}

#[derive(Clone, Debug)]
struct Info {
    version: String,
    /// Directories of the driver's libraries, seen from its root.
    dirs: Vec<PathBuf>,
}

impl Driver {
    /// The driver below `root`; empty is `/`. `told` is the version NVML told, for which libraries are looked for then.
    #[must_use]
    pub fn new(root: &str, told: Option<String>) -> Self {
        let root = if root.is_empty() {
            PathBuf::from("/")
        } else {
            clean(root.as_ref())
        };
        Self {
            root,
            told,
            info: OnceCell::new(),
            cached: OnceCell::new(),
        }
    }

    /// Its root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `path` below the root.
    #[must_use]
    pub fn below(&self, path: &str) -> PathBuf {
        join(self.root.as_os_str(), path.as_ref())
    }

    /// `path` as a container sees it: without the root.
    #[must_use]
    pub fn inside(&self, path: &Path) -> PathBuf {
        if self.root == Path::new("/") {
            return path.to_owned();
        }
        let bytes = path.as_os_str().as_bytes();
        match bytes.strip_prefix(self.root.as_os_str().as_bytes()) {
            Some(rest) => PathBuf::from(OsStr::from_bytes(rest)),
            None => path.to_owned(),
        }
    }

    /// The driver's version, from NVML or from the names of its libraries.
    ///
    /// # Errors
    /// [`Error::NoLibraries`].
    pub fn version(&self) -> Result<&str, Error> {
        if let Some(told) = &self.told {
            return Ok(told);
        }
        self.info().map(|info| info.version.as_str())
    }

    /// The directories of its libraries, seen from the root.
    ///
    /// # Errors
    /// [`Error::NoLibraries`].
    pub fn library_dirs(&self) -> Result<&[PathBuf], Error> {
        self.info().map(|info| info.dirs.as_slice())
    }

    fn info(&self) -> Result<&Info, Error> {
        self.info
            .get_or_init(|| self.look())
            .as_ref()
            .map_err(Clone::clone)
    }

    fn look(&self) -> Result<Info, Error> {
        let wanted = self.told.as_deref().unwrap_or("*.*");
        let none = || Error::NoLibraries {
            root: self.root.clone(),
            version: wanted.to_owned(),
        };
        let version = VERSIONED
            .iter()
            .find_map(|library| {
                let found = self.libraries(&format!("{library}{wanted}"));
                let name = found.first()?.file_name()?.to_str()?;
                let version = name.strip_prefix(library)?;
                (!version.is_empty()).then(|| version.to_owned())
            })
            .ok_or_else(none)?;
        let mut dirs = Vec::new();
        for library in self.libraries(&format!("lib*.so.{version}")) {
            let dir = library.parent().map(|dir| self.inside(dir));
            dirs.extend(dir.filter(|dir| !dirs.contains(dir)));
        }
        Ok(Info { version, dirs })
    }

    /// Libraries whose name matches, links resolved: of the usual directories, or else of the linker's cache.
    #[must_use]
    pub fn libraries(&self, pattern: &str) -> Vec<PathBuf> {
        let found = self.files(&LIBRARY_DIRS, pattern);
        if !found.is_empty() {
            return resolved(found);
        }
        let cached = self.cached.get_or_init(|| ldcache::libraries(&self.root));
        let name = |path: &&PathBuf| {
            path.file_name()
                .is_some_and(|name| glob::matches(pattern.as_bytes(), name.as_bytes()))
        };
        resolved(cached.iter().filter(name).cloned().collect())
    }

    /// Libraries whose name matches in the driver's own directories, and in `subdirs` of them, links resolved.
    ///
    /// # Errors
    /// [`Error::NoLibraries`].
    pub fn own_libraries(&self, subdirs: &[&str], pattern: &str) -> Result<Vec<PathBuf>, Error> {
        let dirs = self.library_dirs()?;
        let mut searched: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        for sub in subdirs {
            searched.extend(dirs.iter().map(|dir| dir.join(sub).display().to_string()));
        }
        let searched: Vec<&str> = searched.iter().map(String::as_str).collect();
        Ok(resolved(self.files(&searched, pattern)))
    }

    /// Files, not directories, that match `pattern` in `dirs` below the root.
    #[must_use]
    pub fn files(&self, dirs: &[&str], pattern: &str) -> Vec<PathBuf> {
        self.matching(dirs, pattern, |path| {
            fs::metadata(path).is_ok_and(|meta| !meta.is_dir())
        })
    }

    /// Directories that match `pattern` below the root.
    #[must_use]
    pub fn directories(&self, pattern: &str) -> Vec<PathBuf> {
        self.matching(&[""], pattern, Path::is_dir)
    }

    /// Character devices that match `pattern` below the root. Links do not count.
    #[must_use]
    pub fn char_devices(&self, pattern: &str) -> Vec<PathBuf> {
        self.matching(&["/", "/dev"], pattern, |path| {
            fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_char_device())
        })
    }

    /// A program below the root, in the directories of `path` and the usual ones.
    #[must_use]
    pub fn program(&self, name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
        let root = self.root.to_str().unwrap_or_default();
        // The root is joined with paths that may have it in front already: that is how the toolkit searches.
        search_path(path, root)
            .iter()
            .map(|dir| {
                join(
                    &join(self.root.as_os_str(), dir).into_os_string(),
                    name.as_ref(),
                )
            })
            .find(|path| is_executable(path))
    }

    fn matching(&self, dirs: &[&str], pattern: &str, keep: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        let mut seen = HashSet::new();
        dirs.iter()
            .filter(|dir| seen.insert(**dir))
            .flat_map(|dir| {
                let relative = join(dir.as_ref(), pattern.as_ref());
                glob::expand(&self.root, &relative)
            })
            .filter(|path| keep(path))
            .collect()
    }
}

/// Paths without links, each once, in the order of their first mention.
fn resolved(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    for path in paths
        .into_iter()
        .filter_map(|path| fs::canonicalize(path).ok())
    {
        if !out.contains(&path) {
            out.push(path);
        }
    }
    out
}

#[cfg(test)]
#[path = "driver/tests.rs"]
mod tests;
