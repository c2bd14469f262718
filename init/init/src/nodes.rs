//! Device nodes, symlinks and directories inside the root.

use core::ffi::CStr;

use holdfast_plan::TargetKind;
use linux_raw_sys::general as k;

use crate::fault::{Done, Fault};
use crate::mounts::{MS_PRIVATE, set_propagation};
use crate::root::release;
use crate::steps::State;
use crate::sys::{self, EBUSY, EEXIST, EPERM, Errno};

impl State {
    /// The directory and name of a node. Nearly all live directly in `/dev`, which is opened
    /// once, without following a symlink that an image may have put there (CVE-2026-41579).
    fn node<'p>(&mut self, path: &'p CStr) -> Result<(i32, &'p CStr), Fault> {
        let in_dev = path.to_bytes_with_nul().strip_prefix(b"/dev/");
        match in_dev.and_then(|name| CStr::from_bytes_with_nul(name).ok()) {
            Some(name) if !name.to_bytes().contains(&b'/') && !name.is_empty() => {
                let dev = match self.dev {
                    Some(dev) => dev,
                    None => self.root()?.target(c"/dev", TargetKind::Directory, true)?,
                };
                self.dev = Some(dev);
                Ok((dev, name))
            }
            _ => self.root()?.parent(path),
        }
    }

    pub(crate) fn mknod(&mut self, path: &CStr, mode: u32, device: u64, owner: (u32, u32)) -> Done {
        let (dir, name) = self.node(path)?;
        match sys::mknodat(dir, name, mode, device) {
            Ok(()) => {}
            Err(Errno(EEXIST)) => match replace(dir, name, mode, device) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(errno) => {
                    let step = b"replace what is not that device";
                    return Err(Fault::on(step, path.to_bytes(), errno));
                }
            },
            // Root of a user namespace that somebody else made (podman as an ordinary user).
            Err(Errno(EPERM)) => return self.bind_host_device(path, device),
            Err(errno) => return Err(Fault::on(b"mknodat", path.to_bytes(), errno)),
        }
        if owner != (0, 0) {
            sys::chownat(dir, name, owner.0, owner.1)
                .map_err(|errno| Fault::on(b"fchownat", path.to_bytes(), errno))?;
        }
        Ok(())
    }

    /// Binds the host's node of the same path, if it is that device.
    fn bind_host_device(&mut self, path: &CStr, device: u64) -> Done {
        let fault = |call: &'static [u8]| move |errno| Fault::on(call, path.to_bytes(), errno);
        let node = sys::open(path, k::O_PATH | k::O_NOFOLLOW).map_err(fault(b"open"))?;
        let found = sys::entry(node, c"").map_err(fault(b"statx"))?;
        let is_device = matches!(found.mode & k::S_IFMT, k::S_IFCHR | k::S_IFBLK);
        if !is_device || found.device != device {
            return Err(fault(b"mknodat")(Errno(EPERM)));
        }
        let tree = sys::clone_tree(node, 0).map_err(fault(b"open_tree"))?;
        self.bind_device(tree, path)?;
        sys::close(node);
        Ok(())
    }

    pub(crate) fn bind_device(&mut self, tree: i32, path: &CStr) -> Done {
        let at = self.root()?.target(path, TargetKind::File, false)?;
        // Else a mount over the node would cover the host's own.
        set_propagation(tree, MS_PRIVATE)?;
        sys::move_mount(tree, at)
            .map_err(|errno| Fault::on(b"move_mount", path.to_bytes(), errno))?;
        release(at);
        Ok(())
    }

    pub(crate) fn symlink(&mut self, content: &CStr, path: &CStr, replace: bool) -> Done {
        let (dir, name) = self.node(path)?;
        match sys::symlinkat(content, dir, name) {
            Ok(()) => Ok(()),
            Err(Errno(EEXIST)) if !replace => Ok(()),
            Err(Errno(EEXIST)) => sys::unlinkat(dir, name)
                .and_then(|()| sys::symlinkat(content, dir, name))
                .map_err(|errno| Fault::on(b"symlinkat", path.to_bytes(), errno)),
            Err(errno) => Err(Fault::on(b"symlinkat", path.to_bytes(), errno)),
        }
    }

    pub(crate) fn mkdir(&mut self, path: &CStr, mode: u32) -> Done {
        let root = self.root()?;
        match root.open(path, k::O_DIRECTORY, false) {
            Ok(fd) => release(fd),
            Err(_) => release(root.mkdirs(path, mode)?),
        }
        Ok(())
    }
}

/// Makes a node where something is already, unless that is it. What an image brings along under the name of a device
/// (another device, a file that collects what is written to /dev/null) is not the device that was asked for.
/// False when it stays: it is right, or the specification has mounted it there (`/dev/urandom` on `/dev/random`).
fn replace(dir: i32, name: &CStr, mode: u32, device: u64) -> Result<bool, Errno> {
    let found = sys::entry(dir, name)?;
    if found.mode & k::S_IFMT == mode & k::S_IFMT && found.device == device {
        return Ok(false);
    }
    match sys::unlinkat(dir, name) {
        Ok(()) => sys::mknodat(dir, name, mode, device).map(|()| true),
        Err(Errno(EBUSY)) => Ok(false),
        Err(errno) => Err(errno),
    }
}
