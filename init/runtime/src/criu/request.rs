//! What `checkpoint` and `restore` ask criu for in the same way.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use super::message::{Message, opt};
use super::session::Work;
use crate::bundle::{Bundle, clean, cstring, namespace};
use crate::error::{Doing, Error, Result};
use crate::sys::fd;

/// Options that `checkpoint` and `restore` share. The paths are as given.
#[derive(Debug, Clone, Default)]
pub struct Common {
    /// `--image-path`; `checkpoint` in the working directory when it is not given.
    pub image_path: Option<PathBuf>,
    /// `--work-path`: where criu's log goes; the image path when it is not given.
    pub work_path: Option<PathBuf>,
    /// `--tcp-established`.
    pub tcp_established: bool,
    /// `--ext-unix-sk`.
    pub ext_unix_sk: bool,
    /// `--shell-job`.
    pub shell_job: bool,
    /// `--file-locks`.
    pub file_locks: bool,
    /// `--auto-dedup`.
    pub auto_dedup: bool,
    /// `--lazy-pages`.
    pub lazy_pages: bool,
    /// `--manage-cgroups-mode`.
    pub cgroups: Option<CgroupsMode>,
}

/// `--manage-cgroups-mode`: how much of its cgroups is restored (criu(8)), with criu's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupsMode {
    /// Nothing.
    Ignore = 0,
    /// Limits of cgroups that criu has to make.
    Soft = 3,
    /// All limits.
    Full = 4,
    /// All limits, and nothing may be there before.
    Strict = 5,
}

impl CgroupsMode {
    /// By the name on the command line.
    ///
    /// # Errors
    /// Which names there are.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "ignore" => Ok(Self::Ignore),
            "soft" => Ok(Self::Soft),
            "full" => Ok(Self::Full),
            "strict" => Ok(Self::Strict),
            other => Err(Error::Usage(format!(
                "--manage-cgroups-mode {other:?} is not one of soft, full, strict and ignore"
            ))),
        }
    }
}

/// The two directories of a checkpoint, open.
#[derive(Debug)]
pub(crate) struct Folders {
    /// Where the images are.
    pub(crate) images: OwnedFd,
    /// Its path.
    pub(crate) images_path: PathBuf,
    /// Where the log goes.
    pub(crate) work: Work,
}

impl Folders {
    /// Opens them. The images' own is made when it is missing and `make` is given; the log's always.
    pub(crate) fn open(common: &Common, make: bool, log: &str) -> Result<Self> {
        let images_path = common
            .image_path
            .clone()
            .unwrap_or_else(|| PathBuf::from("checkpoint"));
        if make {
            make_private(&images_path)?;
        }
        let images = open(&images_path)?;
        let path = match &common.work_path {
            Some(path) => {
                make_private(path)?;
                path.clone()
            }
            None => images_path.clone(),
        };
        let dir = open(&path)?;
        Ok(Self {
            images,
            images_path,
            work: Work {
                path,
                dir,
                log: log.to_owned(),
            },
        })
    }
}

fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // Images hold the whole memory of a container.
    std::fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .doing(|| format!("make {}", path.display()))
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    fd::open_inherited(&cstring("path", path)?, flags)
        .doing(|| format!("open the directory {}", path.display()))
}

/// Most that criu writes: it is read only when something went wrong.
const LOG_LEVEL: i64 = 4;
/// `CLONE_NEWNET`, for `empty_ns`.
const NEWNET: i64 = libc::CLONE_NEWNET as i64;
/// Where an administrator sets criu's own options for containers; the name is runc's.
const CONFIG: &str = "/etc/criu/runc.conf";
/// The annotation that names another file; empty for none.
const CONFIG_ANNOTATION: &str = "org.criu.config";

/// The options that do not depend on which of the two it is.
pub(crate) fn common_opts(common: &Common, folders: &Folders, bundle: &Bundle) -> Message {
    let mut opts = Message::default();
    opts.number(opt::IMAGES_DIR_FD, folders.images.as_raw_fd().into())
        .number(opt::WORK_DIR_FD, folders.work.dir.as_raw_fd().into())
        .number(opt::LOG_LEVEL, LOG_LEVEL)
        .text(opt::LOG_FILE, &folders.work.log)
        .flag(opt::NOTIFY_SCRIPTS, true)
        .flag(opt::MANAGE_CGROUPS, true)
        .flag(opt::TCP_ESTABLISHED, common.tcp_established)
        .flag(opt::EXT_UNIX_SK, common.ext_unix_sk)
        .flag(opt::SHELL_JOB, common.shell_job)
        .flag(opt::FILE_LOCKS, common.file_locks)
        .flag(opt::AUTO_DEDUP, common.auto_dedup)
        .flag(opt::LAZY_PAGES, common.lazy_pages)
        .flag(opt::ORPHAN_PTS_MASTER, true)
        // The devices in it are whose made them: CNI's, or docker's.
        .number(opt::EMPTY_NS, NEWNET);
    if let Some(mode) = common.cgroups {
        opts.number(opt::MANAGE_CGROUPS_MODE, mode as i64);
    }
    let annotation = bundle
        .spec
        .annotations()
        .as_ref()
        .and_then(|annotations| annotations.get(CONFIG_ANNOTATION));
    match annotation.map(String::as_str) {
        None => drop(opts.text(opt::CONFIG_FILE, CONFIG)),
        Some("") => {}
        Some(path) => drop(opts.text(opt::CONFIG_FILE, path)),
    }
    opts
}

/// The targets of bind mounts, with their sources: criu knows neither and has to be told.
pub(crate) fn binds(bundle: &Bundle) -> Vec<(PathBuf, PathBuf)> {
    let mounts = bundle.spec.mounts().iter().flatten();
    let binds = mounts.filter(|mount| {
        let words = mount.options().iter().flatten();
        mount.typ().as_deref() == Some("bind")
            || words
                .into_iter()
                .any(|word| word == "bind" || word == "rbind")
    });
    binds
        .filter_map(|mount| {
            let source = bundle.path.join(mount.source().as_ref()?);
            Some((clean(&Path::new("/").join(mount.destination())), source))
        })
        .chain(bound_devices(bundle))
        .collect()
}

/// In a user namespace device nodes cannot be made, and are those of the host.
fn bound_devices(bundle: &Bundle) -> Vec<(PathBuf, PathBuf)> {
    if namespace(bundle.namespaces(), LinuxNamespaceType::User).is_none() {
        return Vec::new();
    }
    let paths = crate::plan::devices::paths(bundle);
    paths.into_iter().map(|path| (path.clone(), path)).collect()
}

/// The key under which a network namespace that the container joined is known in the images, as
/// runc writes it: its images can be restored by us, and ours by it.
pub(crate) const ROOT_NETWORK: &str = "extRootNetNS";
/// The same for a pid namespace.
pub(crate) const ROOT_PIDS: &str = "extRootPidNS";
/// File beside the images: what the container's first three descriptors were.
pub(crate) const DESCRIPTORS: &str = "descriptors.json";
