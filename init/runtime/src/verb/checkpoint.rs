//! `checkpoint`: a running container written to disk by criu.

use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_record::{ContainerId, Deadline};
use oci_spec::runtime::LinuxNamespaceType as Type;

use super::{Context, delete};
use crate::bundle::{Bundle, clean, namespace};
use crate::criu::message::{Kind, Message, opt, request};
pub use crate::criu::request::{CgroupsMode, Common};
use crate::criu::request::{DESCRIPTORS, Folders, ROOT_NETWORK, ROOT_PIDS, binds, common_opts};
use crate::criu::session::{Criu, Setting};
use crate::error::{Doing, Error, Result};
use crate::state::{Container, Status};

/// How long a checkpoint may take: all memory of the container is written.
const LIMIT: Duration = Duration::from_secs(300);

/// Options of `checkpoint`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Those that `restore` has, too.
    pub common: Common,
    /// `--parent-path`: images of a pre-dump, relative to the images.
    pub parent_path: Option<PathBuf>,
    /// `--leave-running`.
    pub leave_running: bool,
    /// `--pre-dump`: memory only, the container runs on.
    pub pre_dump: bool,
    /// `--tcp-skip-in-flight`.
    pub tcp_skip_in_flight: bool,
    /// `--link-remap`.
    pub link_remap: bool,
    /// `--status-fd`: gets a byte when lazy pages can be served.
    pub status_fd: Option<i32>,
    /// `--page-server` as address and port.
    pub page_server: Option<(String, u16)>,
}

/// Writes the container to disk. Unless it is left running it is gone afterwards, as with runc.
///
/// # Errors
/// [`Error::Criu`] with criu's own words; the container runs on then.
pub fn checkpoint(context: &Context, id: &ContainerId, options: &Options) -> Result<()> {
    let container = context.container(id)?;
    match container.status() {
        Status::Running | Status::Paused => {}
        status @ (Status::Creating | Status::Created | Status::Stopped) => {
            return Err(Error::Status {
                operation: "checkpoint",
                status: status.name(),
            });
        }
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Unsupported {
            what: "checkpoint by an ordinary user (criu needs root)".into(),
        });
    }
    let criu = Criu::find(&context.criu)?;
    let bundle = Bundle::load(&container.saved.bundle)?;
    let folders = Folders::open(&options.common, true, "dump.log")?;
    check_parent(options, &folders)?;
    if options.pre_dump || options.common.lazy_pages {
        criu.require(options.pre_dump, options.common.lazy_pages, &folders.work)?;
    }
    let pid = container.live_init()?;
    let opts = opts(&container, &bundle, options, &folders, pid)?;
    let kind = if options.pre_dump {
        Kind::PreDump
    } else {
        write_descriptors(&folders, pid)?;
        Kind::Dump
    };
    let deadline = Deadline::named("checkpoint", LIMIT, "checkpoint: waiting for criu");
    let session = criu.start(&Setting::default(), &deadline)?;
    // Nothing has to be done at any moment of a dump; criu only wants to be told to go on.
    let answer = session.perform(&request(kind, Some(&opts)), &deadline, &mut |_, _| Ok(()))?;
    if !answer.success {
        return Err(criu.failure("checkpoint the container", kind, &answer, &folders.work));
    }
    drop(session);
    if options.leave_running || options.pre_dump {
        return Ok(());
    }
    delete::delete(context, id, true)
}

fn check_parent(options: &Options, folders: &Folders) -> Result<()> {
    let Some(parent) = &options.parent_path else {
        return Ok(());
    };
    if parent.is_absolute() || !folders.images_path.join(parent).is_dir() {
        return Err(Error::Usage(format!(
            "--parent-path {} is not the path of an existing directory relative to {}",
            parent.display(),
            folders.images_path.display()
        )));
    }
    Ok(())
}

fn opts(
    container: &Container,
    bundle: &Bundle,
    options: &Options,
    folders: &Folders,
    pid: i32,
) -> Result<Message> {
    let mut opts = common_opts(&options.common, folders, bundle);
    opts.number(opt::PID, pid.into())
        .text(opt::ROOT, bundle.rootfs.as_os_str().as_bytes())
        .flag(opt::LEAVE_RUNNING, options.leave_running)
        .flag(opt::TCP_SKIP_IN_FLIGHT, options.tcp_skip_in_flight)
        .flag(opt::LINK_REMAP, options.link_remap)
        .flag(
            opt::TRACK_MEM,
            options.pre_dump || options.parent_path.is_some(),
        );
    if let Some(parent) = &options.parent_path {
        opts.text(opt::PARENT_IMG, parent.as_os_str().as_bytes());
    }
    if let Some(fd) = options.status_fd {
        opts.number(opt::STATUS_FD, fd.into());
    }
    if let Some((address, port)) = &options.page_server {
        let mut server = Message::default();
        server.text(1, address).number(2, i64::from(*port));
        opts.message(opt::PAGE_SERVER, &server);
    }
    if let Some(freezer) = freezer(container) {
        opts.text(opt::FREEZE_CGROUP, freezer.as_os_str().as_bytes());
    }
    for (typ, file, key) in [
        (Type::Network, "net", ROOT_NETWORK),
        (Type::Pid, "pid", ROOT_PIDS),
    ] {
        let joined = namespace(bundle.namespaces(), typ).and_then(|n| n.path().as_ref());
        if let Some(path) = joined {
            let meta = std::fs::metadata(path)
                .doing(|| format!("find the {typ} namespace {}", path.display()))?;
            let inode = std::os::unix::fs::MetadataExt::ino(&meta);
            opts.text(opt::EXTERNAL, format!("{file}[{inode}]:{key}"));
        }
    }
    if !options.pre_dump {
        external_mounts(&mut opts, bundle, pid)?;
    }
    Ok(opts)
}

/// Where the container's processes are frozen.
fn freezer(container: &Container) -> Option<PathBuf> {
    let places = &container.saved.cgroup.as_ref()?.places;
    let frozen_by = |place: &&holdfast_cgroups::SavedPlace| match &place.kind {
        holdfast_cgroups::Kind::V1 { controllers, .. } => {
            controllers.iter().any(|controller| controller == "freezer")
        }
        holdfast_cgroups::Kind::V2 => false,
    };
    let place = places.iter().find(frozen_by);
    place.or(places.last()).map(|place| place.path.clone())
}

/// Mounts that are not the container's own: criu writes down only that they are there.
fn external_mounts(opts: &mut Message, bundle: &Bundle, pid: i32) -> Result<()> {
    let mut external = |path: &Path, name: &Path| {
        opts.pair(
            opt::EXT_MNT,
            path.as_os_str().as_bytes(),
            name.as_os_str().as_bytes(),
        );
    };
    for (target, _) in binds(bundle) {
        external(&target, &target);
    }
    for target in mounts_of_type(pid, "cgroup")? {
        external(&target, &target);
    }
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    for masked in bundle.linux()?.masked_paths().iter().flatten() {
        let path = clean(&Path::new("/").join(masked));
        let inside = root.join(path.strip_prefix("/").unwrap_or(&path));
        // A directory is covered by a tmpfs, which is written like any other.
        if std::fs::symlink_metadata(inside).is_ok_and(|meta| !meta.is_dir()) {
            external(&path, Path::new("/dev/null"));
        }
    }
    Ok(())
}

/// The mount points of a type in a process's mount namespace.
fn mounts_of_type(pid: i32, wanted: &str) -> Result<Vec<PathBuf>> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = std::fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    let mounts = text.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        (right.split(' ').next()? == wanted).then(|| PathBuf::from(point))
    });
    Ok(mounts.collect())
}

/// Records where the container's standard streams lead, so that a restore can give pipes new ends.
fn write_descriptors(folders: &Folders, pid: i32) -> Result<()> {
    let links: Vec<String> = (0..3)
        .map(|number| {
            std::fs::read_link(format!("/proc/{pid}/fd/{number}"))
                .map(|link| link.display().to_string())
                .unwrap_or_default()
        })
        .collect();
    let path = folders.images_path.join(DESCRIPTORS);
    let at = PathBuf::from(format!("/proc/self/fd/{}", folders.images.as_raw_fd()));
    std::fs::write(at.join(DESCRIPTORS), serde_json::json!(links).to_string())
        .doing(|| format!("write {}", path.display()))
}
