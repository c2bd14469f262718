//! One of the two shims, and containers brought into every state in it. containerd does not know of
//! the containers: it only gets their events.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use containerd_shim_protos::api;
use containerd_shim_protos::api::Mount;
use holdfast_integration::bundle::Bundle;
use holdfast_integration::containerd::Containerd;
use holdfast_integration::events::{Event, Subscriber};
use holdfast_integration::image;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::Shim;

use super::calls;

/// What a container, or its exec process, is when it is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Never heard of.
    Unknown,
    /// Its create failed: there is no such program.
    FailedCreate,
    /// Created from a checkpoint's images.
    Stored,
    /// Its start failed: its program's interpreter is missing, which only execve(2) finds out.
    FailedStart,
    /// As the name says; so are those below.
    Created,
    Running,
    Paused,
    Stopped,
    Deleted,
    /// An exec process of a running container.
    ExecUnknown,
    ExecAdded,
    ExecRunning,
    ExecStopped,
    /// There is no such program.
    ExecFailed,
    ExecDeleted,
}

impl State {
    pub(crate) const ALL: [Self; 15] = [
        Self::Unknown,
        Self::FailedCreate,
        Self::Stored,
        Self::FailedStart,
        Self::Created,
        Self::Running,
        Self::Paused,
        Self::Stopped,
        Self::Deleted,
        Self::ExecUnknown,
        Self::ExecAdded,
        Self::ExecRunning,
        Self::ExecStopped,
        Self::ExecFailed,
        Self::ExecDeleted,
    ];

    /// Whether the container is there.
    pub(crate) fn has_container(self) -> bool {
        !matches!(self, Self::Unknown | Self::FailedCreate | Self::Deleted)
    }

    /// Whether it is about an exec process.
    pub(crate) fn is_exec(self) -> bool {
        self >= Self::ExecUnknown
    }

    /// Whether a call says anything about it, and both shims live through it.
    pub(crate) fn takes(self, call: &&&'static str) -> bool {
        let asked = !self.is_exec() || calls::EXEC.contains(call);
        match **call {
            // Waiting for what was never started ends with its delete, if at all.
            "Wait" => asked && !matches!(self, Self::ExecAdded | Self::ExecFailed | Self::Stored),
            // containerd's own dies: of a second failed start at once ("close of closed
            // channel"), of the others at the container's end ("makechan: size out of range").
            // Ours is asked that in the shim's contract, and both in the museum.
            "Start" => {
                asked
                    && !matches!(
                        self,
                        Self::ExecRunning | Self::ExecStopped | Self::ExecFailed
                    )
            }
            _ => asked,
        }
    }
}

/// What came of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) answer: String,
    /// The states of the processes afterwards.
    pub(crate) after: String,
    /// All that subscribers heard of the container, from its beginning to its end.
    pub(crate) events: String,
}

/// A container of a test.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    /// Empty where the container itself is meant.
    pub(crate) exec: String,
    pub(crate) bundle: PathBuf,
    /// What pids stand for.
    pub(crate) pids: Mutex<BTreeMap<u32, &'static str>>,
    /// Never more than images, so that there is a delete to be told, and no exit.
    stored: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    pub(crate) shim: Shim,
    containerd: &'a Containerd,
    name: &'static str,
    anchor: String,
    rootfs: PathBuf,
    next: AtomicU32,
}

impl<'a> Side<'a> {
    /// A shim with a container of containerd's, that keeps it alive.
    pub(crate) fn new(containerd: &'a Containerd, name: &'static str, runtime: &str) -> Self {
        let anchor = format!("{name}-anchor");
        containerd.remember(&anchor);
        containerd.ctr_ok(&[
            "run",
            "-d",
            "--null-io",
            "--runtime",
            runtime,
            image::NAME,
            &anchor,
            "sleep",
            "6000",
        ]);
        let rootfs = containerd.path(&format!("{name}-rootfs"));
        image::fill_rootfs(&rootfs);
        let script = rootfs.join("bad-script");
        std::fs::write(&script, "#!/nonexistent\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            shim: Shim::of(containerd, &anchor),
            containerd,
            name,
            anchor,
            rootfs,
            next: AtomicU32::new(0),
        }
    }

    /// The end of all.
    pub(crate) fn leave(&self) {
        self.containerd.end_task(&self.anchor);
    }

    pub(crate) fn path(&self, name: &str) -> String {
        text(&self.containerd.path(&format!("{}-{name}", self.name)))
    }

    pub(crate) fn create_request(&self, id: &str, bundle: &Path) -> api::CreateTaskRequest {
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = text(bundle);
        let mut mount = Mount::new();
        mount.type_ = "bind".to_owned();
        mount.source = text(&self.rootfs);
        mount.options = vec!["rbind".to_owned(), "rw".to_owned()];
        request.rootfs = vec![mount];
        request
    }

    /// A container in that state.
    pub(crate) fn container(&self, state: State) -> Container {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", self.name);
        let bundle = self.containerd.path(&format!("bundle-{id}"));
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let program = match state {
            State::FailedCreate => "nosuchprogram",
            State::FailedStart => "/bad-script",
            _ => "sleep",
        };
        let mut spec = Bundle {
            id: id.clone(),
            path: bundle.clone(),
            spec: holdfast_integration::bundle::default_spec(),
        }
        .args(&[program, "600"]);
        spec.spec["linux"]["cgroupsPath"] = format!("/{}/{id}", self.containerd.namespace).into();
        spec.write();
        let container = Container {
            exec: if state.is_exec() {
                "exec".to_owned()
            } else {
                String::new()
            },
            id,
            bundle,
            pids: Mutex::default(),
            stored: state == State::Stored,
        };
        self.bring(&container, state);
        container
    }

    fn bring(&self, container: &Container, state: State) {
        let (shim, id) = (&self.shim, container.id.as_str());
        let by_id = |method: &str| {
            let mut request = api::PauseRequest::new();
            request.id = id.to_owned();
            shim.call::<_, api::Empty>(method, &request).unwrap();
        };
        let create = || {
            let mut request = self.create_request(id, &container.bundle);
            if state == State::Stored {
                request.checkpoint = self.path("no-images");
            }
            shim.call::<_, api::CreateTaskResponse>("Create", &request)
        };
        match state {
            State::Unknown => return,
            State::FailedCreate => return drop(create().unwrap_err()),
            _ => {}
        }
        let pid = create().unwrap().pid;
        if state == State::Stored {
            return assert_eq!(pid, 0);
        }
        container.pids.lock().unwrap().insert(pid, "INIT");
        match state {
            State::Created => return,
            State::FailedStart => {
                // Theirs says that it runs, ours that it does not; with both that was its life.
                assert_eq!(shim.start(id, "").is_err(), self.name == "ours");
                shim.wait(id, "").unwrap();
                return;
            }
            _ => {}
        }
        assert_eq!(shim.start(id, "").unwrap(), pid);
        match state {
            State::Paused => by_id("Pause"),
            State::Stopped | State::Deleted => {
                shim.kill(id, "", 9).unwrap();
                shim.wait(id, "").unwrap();
                if state == State::Deleted {
                    shim.delete(id, "").unwrap();
                }
            }
            _ if state.is_exec() => self.bring_exec(container, state),
            _ => {}
        }
    }

    fn bring_exec(&self, container: &Container, state: State) {
        let (shim, id, exec) = (&self.shim, container.id.as_str(), container.exec.as_str());
        if state == State::ExecUnknown {
            return;
        }
        let program = if state == State::ExecFailed {
            "nosuchprogram"
        } else {
            "sleep"
        };
        shim.exec(id, exec, &[program, "600"]).unwrap();
        if state == State::ExecAdded {
            return;
        }
        let started = shim.start(id, exec);
        if state == State::ExecFailed {
            return drop(started.unwrap_err());
        }
        container
            .pids
            .lock()
            .unwrap()
            .insert(started.unwrap(), "EXEC");
        if state != State::ExecRunning {
            shim.kill(id, exec, 15).unwrap();
            assert_eq!(shim.wait(id, exec).unwrap(), 143);
        }
        if state == State::ExecDeleted {
            shim.delete(id, exec).unwrap();
        }
    }

    /// Makes the call. Wait is made beside a Kill where it would wait for ever.
    pub(crate) fn ask(&self, container: &Container, method: &str) -> Seen {
        let (id, exec) = (container.id.as_str(), container.exec.as_str());
        let alive = || {
            let state = self.shim.state(id, exec);
            state.is_ok_and(|state| [1, 2, 4].contains(&state.status.value()))
        };
        let answer = if method == "Wait" && alive() {
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| calls::call(self, container, method));
                self.kill(id, exec);
                waiting.join().unwrap()
            })
        } else {
            calls::call(self, container, method)
        };
        if method == "Kill" && answer == "ok " {
            // Theirs answers before the end; and what is frozen ends after that.
            self.kill(id, exec);
            self.shim.wait(id, exec).unwrap();
        }
        Seen {
            answer,
            ..Seen::default()
        }
    }

    /// What init, and the exec process if it is about one, are.
    pub(crate) fn status(&self, container: &Container) -> String {
        let one = |exec: &str| match self.shim.state(&container.id, exec) {
            Ok(state) => format!("{:?}", state.status.value()),
            Err(refused) => format!("refused with {}", refused.code),
        };
        if container.exec.is_empty() {
            one("")
        } else {
            format!("{} with exec {}", one(""), one(&container.exec))
        }
    }

    fn kill(&self, id: &str, exec: &str) {
        // SIGKILL reaches what is frozen only after that.
        let mut request = api::ResumeRequest::new();
        request.id = id.to_owned();
        let _ = self.shim.call::<_, api::Empty>("Resume", &request);
        let _ = self.shim.kill(id, exec, 9);
    }

    /// Ends a container in whatever state it is.
    pub(crate) fn end(&self, container: &Container) {
        let id = container.id.as_str();
        if self.shim.state(id, "").is_err() {
            return;
        }
        if self.shim.delete(id, "").is_ok() {
            return;
        }
        self.kill(id, "");
        self.shim.wait(id, "").unwrap();
        self.shim.delete(id, "").unwrap();
    }

    /// What was told of a container that is gone.
    pub(crate) fn events(&self, container: &Container, subscriber: &Subscriber) -> String {
        let of = |events: &[Event]| -> Vec<Event> {
            let mine = events
                .iter()
                .filter(|event| event.text("container_id") == container.id);
            mine.cloned().collect()
        };
        let lives = {
            let pids = container.pids.lock().unwrap();
            pids.values().filter(|word| **word != "EXEC").count()
        };
        let whole = |events: &[Event]| {
            let mine = of(events);
            let count = |topic: &str, field: &str| {
                let ends = mine.iter().filter(|one| one.topic == topic);
                ends.filter(|one| field.is_empty() || one.text(field) == container.id)
                    .count()
            };
            count("/tasks/exit", "id") == lives
                && count("/tasks/delete", "") == lives.max(usize::from(container.stored))
        };
        let what = format!("the end of {container:?} is told");
        let told = of(&subscriber.until(&what, super::LIMIT, whole));
        let words: Vec<String> = told
            .iter()
            .map(|event| self.event(container, event))
            .collect();
        self.neutral(container, &words.join("; "))
    }

    fn event(&self, container: &Container, event: &Event) -> String {
        let mut words = vec![event.topic.clone()];
        for (name, value) in event.body.as_object().into_iter().flatten() {
            let word = match name.as_str() {
                "container_id" => continue,
                "exited_at" => "its time".to_owned(),
                "pid" => {
                    let pid = u32::try_from(value.as_u64().unwrap()).unwrap();
                    self.pid_word(container, pid)
                }
                _ => value.to_string(),
            };
            words.push(format!("{name} {word}"));
        }
        words.join(" ")
    }

    /// What a pid stands for.
    pub(crate) fn pid_word(&self, container: &Container, pid: u32) -> String {
        let known = container.pids.lock().unwrap().get(&pid).copied();
        match known {
            Some(word) => word.to_owned(),
            None if pid == 0 => "0".to_owned(),
            None => "SOME".to_owned(),
        }
    }

    /// A text without what differs from one container and side to the next.
    pub(crate) fn neutral(&self, container: &Container, said: &str) -> String {
        said.replace(&text(&container.bundle), "BUNDLE")
            .replace(&container.id, "ID")
            .replace(text(&self.containerd.path("")).trim_end_matches('/'), "DIR")
            .replace(&format!("{}-", self.name), "")
    }
}
