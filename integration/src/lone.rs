//! A shim without containerd, started as containerd would: for its environment and options, for
//! runtimes that fail, and for clients that leave.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::bundle::Bundle;
use crate::scratch::text;
use crate::shim::{Refused, Shim};
use crate::{deadline, fault, image, leaks, place};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct Lone {
    /// Speaks to it.
    pub shim: Shim,
    /// Where it listens.
    pub address: String,
    /// The containerd namespace, also the parent of its cgroups.
    pub namespace: String,
    folder: TempDir,
}

impl Lone {
    /// Starts one, with more environment and with options on its standard input; `None`, with a
    /// word on the terminal, where that cannot be done.
    ///
    /// # Panics
    /// When it does not start, or was not built.
    #[must_use]
    pub fn start(test: &str, environment: &[(&str, &str)], options: Option<&Any>) -> Option<Self> {
        Self::start_with(test, environment, options, |bundle| bundle)
    }

    /// [`Lone::start`] of a container that is not as usual.
    ///
    /// # Panics
    /// As [`Lone::start`].
    #[must_use]
    pub fn start_with(
        test: &str,
        environment: &[(&str, &str)],
        options: Option<&Any>,
        change: impl FnOnce(Bundle) -> Bundle,
    ) -> Option<Self> {
        Self::start_program(test, environment, options, change, false)
    }

    /// A shim whose program no other process executes, as on a node with a single pod.
    ///
    /// # Panics
    /// As [`Lone::start`].
    #[must_use]
    pub fn start_with_own_program(test: &str) -> Option<Self> {
        Self::start_program(test, &[], None, |bundle| bundle, true)
    }

    fn start_program(
        test: &str,
        environment: &[(&str, &str)],
        options: Option<&Any>,
        change: impl FnOnce(Bundle) -> Bundle,
        own: bool,
    ) -> Option<Self> {
        if let Err(why) = place::is_root().and_then(|()| image::busybox().map(drop)) {
            crate::skip(test, &why);
            return None;
        }
        let _ = place::built("holdfast");
        leaks::keep_own_descriptors();
        let folder = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir()
            .expect("folder");
        let namespace = place::unique("holdfast-test");
        let bundle = change(new_bundle(folder.path(), &namespace, "box"));
        bundle.write();
        let input = folder.path().join("options");
        let bytes = options.map(|any| any.write_to_bytes().expect("encode"));
        std::fs::write(&input, bytes.unwrap_or_default()).expect("options");
        let socket = folder.path().join("containerd.sock");
        let mut program = place::built("containerd-shim-holdfast-v2");
        if own {
            let copy = folder.path().join("containerd-shim-holdfast-v2");
            std::fs::copy(program, &copy).expect("copy the shim");
            // The shim looks for the runtime beside itself.
            let runtime = folder.path().join("holdfast");
            std::os::unix::fs::symlink(place::built("holdfast"), runtime).expect("link");
            program = copy;
        }
        let mut command = Command::new(program);
        command
            .args(["-namespace", &namespace, "-id", "box", "-address"])
            .arg(&socket)
            .args(["-publish-binary", "/bin/false", "start"])
            .current_dir(&bundle.path)
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", text(&socket)))
            .env("HOLDFAST_LEDGER_DIR", folder.path().join("ledger"))
            .env("HOLDFAST_EVENTS_DIR", folder.path().join("events"))
            .env("HOLDFAST_TEST_FOLDER", folder.path())
            // Nobody will take its events.
            .env("HOLDFAST_DEADLINE_FLUSH", "100ms")
            .env("HOLDFAST_DEADLINE_HANDOVER", "100ms")
            .envs(environment.iter().copied());
        let stdin = std::fs::File::open(&input).expect("options");
        let started = deadline::run_with_stdin(&mut command, stdin.into(), LIMIT);
        let address = started.ok().trim().to_owned();
        Some(Self {
            shim: Shim::dial(&address),
            address,
            namespace,
            folder,
        })
    }

    /// A path in the test's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The bundle of a container; that of `box` is there, others are made with [`Lone::bundle`].
    #[must_use]
    pub fn bundle_path(&self, id: &str) -> PathBuf {
        self.path(&format!("bundle-{id}"))
    }

    /// A bundle of a container that sleeps, to be changed and written.
    #[must_use]
    pub fn bundle(&self, id: &str) -> Bundle {
        new_bundle(self.folder.path(), &self.namespace, id)
    }

    /// What Create is asked with, for null stdio.
    #[must_use]
    pub fn create_request(&self, id: &str, options: Option<&Any>) -> api::CreateTaskRequest {
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = text(&self.bundle_path(id));
        request.options = MessageField::from_option(options.cloned());
        request
    }

    /// Creates a container in a bundle that is there; the pid of init.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn create(&self, id: &str, options: Option<&Any>) -> Result<u32, Refused> {
        let request = self.create_request(id, options);
        self.shim
            .call::<_, api::CreateTaskResponse>("Create", &request)
            .map(|created| created.pid)
    }

    /// Creates and starts `box`.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn run(&self, options: Option<&Any>) -> u32 {
        let pid = self.create("box", options).expect("Create");
        assert_eq!(self.shim.start("box", "").expect("Start"), pid);
        pid
    }

    /// Kills and deletes a container.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn end(&self, id: &str) {
        let _ = self.shim.kill(id, "", 9);
        self.shim.wait(id, "").expect("Wait");
        self.shim.delete(id, "").expect("Delete");
    }

    /// Everything of containers that is left: processes, mounts, cgroups, states of runtimes.
    #[must_use]
    pub fn left_of_containers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for process in leaks::processes_mentioning(&text(self.folder.path())) {
            if !process.is_keeper() && !process.command.contains("containerd-shim-holdfast-v2") {
                left.push(format!("process {} ({})", process.pid, process.command));
            }
        }
        for pid in leaks::cgroup_members(&self.namespace) {
            left.push(format!("process {pid} in a cgroup of the test"));
        }
        for mount in leaks::mounts_under(self.folder.path()) {
            left.push(format!("mount {}", mount.display()));
        }
        for cgroup in leaks::cgroups_below(&self.namespace) {
            left.push(format!("cgroup {}", cgroup.display()));
        }
        for root in ["/run/holdfast", "/run/containerd/runc"] {
            left.extend(leaks::states_in(&Path::new(root).join(&self.namespace)));
        }
        left
    }

    /// Fails when anything of containers is left, after a moment for what is still ending.
    ///
    /// # Panics
    /// Naming it, and `what` was done before.
    #[track_caller]
    pub fn assert_nothing_left(&self, what: &str) {
        let when = format!("after {what}");
        deadline::nothing_left(&when, Duration::from_secs(5), || self.left_of_containers());
    }

    /// Ends the test: with nothing left of its containers. The shim itself would stay to tell its
    /// events to a containerd that never comes, and is killed.
    ///
    /// # Panics
    /// When something of containers is left.
    #[track_caller]
    pub fn finish(self) {
        self.assert_nothing_left("the test");
        assert!(leaks::is_alive(self.shim.pid("")), "the shim has died");
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        for process in leaks::processes_mentioning(&text(self.folder.path())) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        leaks::remove_cgroups(&self.namespace);
        leaks::unmount_under(self.folder.path());
        for root in ["/run/holdfast", "/run/containerd/runc"] {
            let _ = std::fs::remove_dir_all(Path::new(root).join(&self.namespace));
        }
        if let Some(socket) = self.address.strip_prefix("unix://") {
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn new_bundle(folder: &Path, namespace: &str, id: &str) -> Bundle {
    let path = folder.join(format!("bundle-{id}"));
    // A bundle that is there keeps its root file system.
    let bundle = if path.exists() {
        let mut spec = crate::bundle::default_spec();
        spec["linux"]["cgroupsPath"] = format!("/{namespace}/{id}").into();
        Bundle {
            id: id.to_owned(),
            path,
            spec,
        }
    } else {
        Bundle::new(&path, id, namespace)
    };
    bundle.args(&["sleep", "600"])
}

/// A runtime that fails on order, in a folder.
#[derive(Debug)]
pub struct Faulty {
    /// The program for `BinaryName`.
    pub program: PathBuf,
    orders: PathBuf,
}

impl Faulty {
    /// Writes one that is otherwise `runtime`.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn new(folder: &Path, runtime: &crate::runtime::Runtime) -> Self {
        let name = match runtime.kind {
            // The shim tells by the name who speaks the barrier.
            crate::runtime::Kind::Holdfast => "holdfast-faulty",
            crate::runtime::Kind::Runc => "runc-faulty",
            crate::runtime::Kind::Crun => "crun-faulty",
        };
        let (program, orders) = (folder.join(name), folder.join("orders"));
        std::fs::create_dir_all(&orders).expect("folder for orders");
        fault::write_wrapper(&program, &runtime.words(), &orders);
        Self { program, orders }
    }

    /// Makes a verb fail from now on.
    pub fn order(&self, verb: &str, fault: &fault::Fault) {
        fault::order(&self.orders, verb, fault);
    }

    /// Makes it work again.
    pub fn call_off(&self, verb: &str) {
        fault::call_off(&self.orders, verb);
    }
}
