//! The interpreter: one arm per step.

use core::ffi::CStr;

use holdfast_plan::report::{MAX_FRAME, Report};
use holdfast_plan::{Point, Step};
use linux_raw_sys::general as k;

use crate::fault::{Done, Fault};
use crate::identity;
use crate::mounts::clone_tree;
use crate::root::{PathBuffer, Root};
use crate::sys::{self, EACCES, EINVAL, ENOENT, ENOSYS, EPERM, Errno};

const PROC_MAGIC: u64 = 0x9fa0;
/// Inode of procfs's root directory (`PROC_ROOT_INO`, include/linux/proc_ns.h).
const PROC_ROOT: u64 = 1;

/// What later steps need from earlier ones.
pub(crate) struct State {
    /// Socket to the parent.
    sync: i32,
    /// Where faults go: the parent, and after the gate whoever opened it.
    pub(crate) reports: i32,
    /// Address of the plan's scratch area.
    pub(crate) scratch: usize,
    pub(crate) root: Option<Root>,
    pub(crate) dev: Option<i32>,
    pub(crate) null: Option<i32>,
    pub(crate) empty: Option<i32>,
    /// The directory that the next mount covers, when its content is to be copied.
    pub(crate) below: Option<i32>,
    /// The roots of what is mounted on `/proc` and `/sys` of the container.
    pub(crate) kernel: [Option<i32>; 2],
    proc: Option<i32>,
    pub(crate) program: Option<PathBuffer>,
}

impl State {
    pub(crate) fn new(sync: i32, scratch: usize) -> Self {
        Self {
            sync,
            reports: sync,
            scratch,
            root: None,
            dev: None,
            null: None,
            empty: None,
            below: None,
            kernel: [None; 2],
            proc: None,
            program: None,
        }
    }

    /// The root of paths: what a step set, or the process's own.
    pub(crate) fn root(&mut self) -> Result<Root, Fault> {
        if let Some(root) = self.root {
            return Ok(root);
        }
        let dir = sys::open(c"/", k::O_PATH | k::O_DIRECTORY)
            .map_err(|errno| Fault::on(b"open", b"/", errno))?;
        let root = Root::new(dir);
        self.root = Some(root);
        Ok(root)
    }

    /// Executes one step; [`Step::Exec`] is the caller's, since it does not come back.
    pub(crate) fn execute(&mut self, step: &Step<'_>) -> Done {
        let call = |name: &'static [u8]| move |errno| Fault::call(name, errno);
        match *step {
            Step::PreserveFds { count } => {
                sys::set_name(c"holdfast-init");
                sys::unblock_signals();
                sys::umask(0);
                sys::close_range_on_exec(3 + count).map_err(call(b"close_range"))
            }
            Step::Join { fd, flags } => {
                self.forget_proc();
                sys::setns(fd, flags).map_err(call(b"setns"))
            }
            Step::Unshare { flags } => sys::unshare(flags).map_err(call(b"unshare")),
            Step::Await {
                point,
                announce,
                wait,
            } => self.wait(point, announce, wait),
            Step::Label { target, label } => self.label(target, label),
            Step::MountAttributes {
                target,
                attr_set,
                attr_clr,
                recursive,
            } => self.mount_attributes(target, attr_set, attr_clr, recursive),
            Step::BecomeRoot {} => identity::become_root(),
            Step::NonDumpable {} => sys::non_dumpable().map_err(call(b"prctl PR_SET_DUMPABLE")),
            Step::NewSession {} => match sys::setsid() {
                // Already a session leader, as PID 1 of a new pid namespace can be.
                Ok(()) | Err(Errno(EPERM)) => Ok(()),
                Err(errno) => Err(Fault::call(b"setsid", errno)),
            },
            Step::JoinKeyring { name } => match sys::join_keyring(name) {
                // No keyrings in this kernel, or forbidden to us: nothing is shared then either.
                Ok(()) | Err(Errno(ENOSYS | EPERM | EACCES)) => Ok(()),
                Err(errno) => Err(Fault::call(b"keyctl KEYCTL_JOIN_SESSION_KEYRING", errno)),
            },
            Step::Hostname { name } => {
                sys::sethostname(name.to_bytes()).map_err(call(b"sethostname"))
            }
            Step::Domainname { name } => {
                sys::setdomainname(name.to_bytes()).map_err(call(b"setdomainname"))
            }
            Step::WriteProc { path, value } => self.write_proc(path, value),
            Step::TimeNamespace { offsets } => self.time_namespace(offsets),
            Step::Propagation { flags } => {
                sys::mount(None, c"/", None, flags, None).map_err(call(b"mount / propagation"))
            }
            Step::AttachRoot {
                fd,
                path,
                propagation,
            } => self.attach_root(fd, path, propagation),
            Step::UseRoot { fd } => {
                self.root = Some(Root::new(fd));
                Ok(())
            }
            Step::MountFs { .. } => self.mount_fs(step),
            Step::MountTree { .. } => self.mount_tree(step),
            Step::CloneTree {
                fd,
                path,
                recursive,
                nofollow,
            } => clone_tree(fd, path, recursive, nofollow),
            Step::KeepBelow { path } => self.keep_below(path),
            Step::CopyUp { target, attributes } => self.copy_up(target, attributes),
            Step::Mkdir { path, mode } => self.mkdir(path, mode),
            Step::Symlink {
                content,
                path,
                replace,
            } => self.symlink(content, path, replace),
            Step::Mknod {
                path,
                mode,
                device,
                uid,
                gid,
            } => self.mknod(path, mode, device, (uid, gid)),
            Step::BindDevice { fd, path } => self.bind_device(fd, path),
            Step::Console {
                socket,
                rows,
                columns,
                bind,
                uid,
            } => self.console(socket, rows, columns, bind, uid),
            Step::Mask { path } => self.mask(path),
            Step::Readonly { path } => self.readonly(path),
            Step::ReadonlyRoot {} => self.readonly_root(),
            Step::PivotRoot { shared } => {
                self.forget_proc();
                self.pivot_root(shared)
            }
            Step::MoveRoot {} => {
                self.forget_proc();
                self.move_root()
            }
            Step::Chroot {} => {
                self.forget_proc();
                self.chroot()
            }
            Step::Rlimit {
                resource,
                soft,
                hard,
            } => sys::prlimit(resource, soft, hard).map_err(call(b"prlimit64")),
            Step::OwnStdio { uid } => self.own_stdio(uid),
            Step::BoundingSet { keep } => identity::bound(keep),
            Step::Identity {
                uid,
                gid,
                groups,
                set_groups,
                umask,
            } => identity::become_user(uid, gid, groups, set_groups, umask),
            Step::Capabilities {
                effective,
                permitted,
                inheritable,
                ambient,
            } => identity::capabilities(effective, permitted, inheritable, ambient),
            Step::NoNewPrivileges {} => {
                sys::no_new_privileges().map_err(call(b"prctl PR_SET_NO_NEW_PRIVS"))
            }
            Step::Seccomp {
                program,
                flags,
                listener,
            } => self.seccomp(program, flags, listener),
            Step::Cwd { path, create } => self.cwd(path, create),
            Step::FindProgram { name, path } => self.find_program(name, path),
            Step::Gate { start, result } => self.gate(start, result),
            Step::Personality { persona } => {
                sys::personality(persona).map_err(call(b"personality"))
            }
            Step::Scheduler { attr } => sys::sched_setattr(attr).map_err(call(b"sched_setattr")),
            Step::Affinity { mask } => {
                sys::sched_setaffinity(mask).map_err(call(b"sched_setaffinity"))
            }
            Step::MemoryPolicy { mode, nodes } => {
                sys::set_mempolicy(mode, nodes).map_err(call(b"set_mempolicy"))
            }
            Step::IoPriority { value } => sys::ioprio_set(value).map_err(call(b"ioprio_set")),
            Step::Exec { .. } => Err(Fault::check(b"execve is not a step like the others")),
        }
    }

    fn wait(&mut self, point: Point, announce: bool, wait: bool) -> Done {
        if announce {
            let mut frame = [0; MAX_FRAME];
            let len = Report::Reached(point).write(&mut frame);
            sys::write(self.sync, frame.get(..len).unwrap_or_default())
                .map_err(|errno| Fault::on(b"write", b"to holdfast", errno))?;
        }
        if !wait {
            return Ok(());
        }
        let mut answer = [0; 1];
        match sys::read(self.sync, &mut answer) {
            Ok(1) => Ok(()),
            // The parent is gone: nobody wants this container, and nobody reads a report.
            Ok(_) => sys::exit(1),
            Err(errno) => Err(Fault::on(b"read", b"from holdfast", errno)),
        }
    }

    /// The host's `/proc`, checked to be the root of a procfs (CVE-2019-16884, CVE-2025-52881).
    fn proc(&mut self) -> Result<i32, Fault> {
        if let Some(proc) = self.proc {
            return Ok(proc);
        }
        let proc = sys::open(c"/proc", k::O_PATH | k::O_DIRECTORY | k::O_NOFOLLOW)
            .map_err(|errno| Fault::on(b"open", b"/proc", errno))?;
        let ino = sys::fstat(proc).map(|stat| stat.ino);
        if sys::fs_magic(proc) != Ok(PROC_MAGIC) || ino != Ok(PROC_ROOT) {
            return Err(Fault::check(b"/proc is not procfs"));
        }
        self.proc = Some(proc);
        Ok(proc)
    }

    /// Closes the host's `/proc`: a container with whom this process shares its pid namespace
    /// must not find it in `/proc/PID/fd` (CVE-2024-21626).
    fn forget_proc(&mut self) {
        if let Some(proc) = self.proc.take() {
            sys::close(proc);
        }
    }

    /// Makes a time namespace with these offsets and enters it.
    fn time_namespace(&mut self, offsets: &[u8]) -> Done {
        sys::unshare(k::CLONE_NEWTIME)
            .map_err(|errno| Fault::call(b"unshare CLONE_NEWTIME", errno))?;
        self.write_proc(c"self/timens_offsets", offsets)?;
        let name = c"self/ns/time_for_children";
        let fault = |call: &'static [u8]| move |errno| Fault::on(call, name.to_bytes(), errno);
        // Without restrictions: the file is a magic link by nature.
        let file = sys::openat2(self.proc()?, name, k::O_RDONLY, 0).map_err(fault(b"openat2"))?;
        sys::setns(file, k::CLONE_NEWTIME).map_err(fault(b"setns"))?;
        sys::close(file);
        Ok(())
    }

    fn write_proc(&mut self, path: &CStr, value: &[u8]) -> Done {
        let fault = |call: &'static [u8]| move |errno| Fault::on(call, path.to_bytes(), errno);
        let proc = self.proc()?;
        let resolve = k::RESOLVE_BENEATH | k::RESOLVE_NO_MAGICLINKS | k::RESOLVE_NO_XDEV;
        let file = sys::openat2(proc, path, k::O_WRONLY, resolve).map_err(fault(b"openat2"))?;
        sys::write(file, value).map_err(fault(b"write"))?;
        sys::close(file);
        Ok(())
    }

    fn seccomp(&mut self, program: &[u8], flags: u32, listener: bool) -> Done {
        let fd = sys::seccomp(program, flags).map_err(|errno| Fault::call(b"seccomp", errno))?;
        if listener {
            let mut frame = [0; MAX_FRAME];
            let len = Report::Listener.write(&mut frame);
            sys::send_fd(self.sync, frame.get(..len).unwrap_or_default(), fd)
                .map_err(|errno| Fault::on(b"sendmsg", b"seccomp listener", errno))?;
            sys::close(fd);
        }
        Ok(())
    }

    fn cwd(&mut self, path: &CStr, create: bool) -> Done {
        let fault = |errno| Fault::on(b"chdir", path.to_bytes(), errno);
        match sys::chdir(path) {
            Ok(()) => {}
            Err(Errno(ENOENT)) if create => {
                self.mkdir(path, 0o755)?;
                sys::chdir(path).map_err(fault)?;
            }
            Err(errno) => return Err(fault(errno)),
        }
        // A leaked descriptor as working directory lies outside the root: the kernel then
        // says "(unreachable)…" or fails (CVE-2024-21626).
        let mut buffer = [0; 4096];
        match sys::getcwd(&mut buffer) {
            Ok(_) if buffer.first() == Some(&b'/') => Ok(()),
            Ok(_) | Err(Errno(ENOENT | EINVAL)) => Err(Fault::on(
                b"the working directory is outside the root:",
                path.to_bytes(),
                Errno(0),
            )),
            Err(errno) => Err(Fault::call(b"getcwd", errno)),
        }
    }

    fn gate(&mut self, start: i32, result: i32) -> Done {
        // From here on nobody holds the other end of the socket.
        sys::close(self.sync);
        self.reports = result;
        let mut byte = [0; 1];
        match sys::read(start, &mut byte) {
            Ok(1) => Ok(()),
            Ok(_) => sys::exit(1),
            Err(errno) => Err(Fault::on(b"read", b"start fifo", errno)),
        }
    }
}
