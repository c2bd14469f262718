//! Containers against a runtime that is slow, hangs or lies, as a script.
//!
//! The reaper reaps every child of its process, so each test runs in a process of its own:
//! it executes itself again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use holdfast_record::logging::Places;
use holdfast_record::{ExitStatus, Signal};

use super::*;

/// `create` leaves a process that waits; each verb first runs the script of its name in the
/// folder of the script, if there is one.
const RUNTIME: &str = r#"#!/bin/sh
here=$(dirname "$0")
for last; do :; done
while [ $# -gt 0 ]; do
  case $1 in
    --pid-file) pid_file=$2; shift;;
    --log) log=$2; shift;;
    --root|--log-format|--bundle|--process) shift;;
    create|start|exec|delete|checkpoint) verb=$1; all="$*";;
  esac
  shift
done
echo "$verb" >> "$here/calls"
[ -e "$here/$verb" ] && . "$here/$verb"
case $verb in
  create) sleep 1000 & echo $! > "$pid_file"; echo $! > "$here/init";;
  exec) sh -c "$(cat "$here/command" 2>/dev/null || echo 'exit 3')" & echo $! > "$pid_file";;
  delete) kill -9 "$(cat "$here/init")" 2>/dev/null; true;;
esac
"#;

struct World {
    dir: tempfile::TempDir,
    shim: Arc<Shim>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("runtime");
        std::fs::write(&script, RUNTIME).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(dir.path().join("bundle")).unwrap();
        // No pid namespace would mean: kill the whole cgroup, which here is the test's own.
        let config = r#"{"ociVersion":"1.0.0","linux":{"namespaces":[{"type":"pid"}]}}"#;
        std::fs::write(dir.path().join("bundle/config.json"), config).unwrap();
        let namespace = Namespace::new("test").unwrap();
        let places = Places {
            stream: dir.path().join("no"),
            datagram: dir.path().join("no"),
            kmsg: dir.path().join("no"),
            file: dir.path().join("no"),
        };
        let publisher = Arc::new(Publisher::keeping_in(
            &dir.path().join("events"),
            namespace.clone(),
            Some(dir.path().join("nobody")),
        ));
        let shim = Arc::new(Shim::new(
            namespace,
            publisher,
            Arc::new(Scribe::new(places)),
        ));
        let mut children =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()).unwrap();
        let reaper = Arc::clone(&shim.reaper);
        tokio::spawn(async move {
            loop {
                children.recv().await;
                reaper.sweep();
            }
        });
        Self { dir, shim }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, verb: &str, text: &str) {
        std::fs::write(self.path(verb), text).unwrap();
    }

    fn request(&self) -> CreateRequest {
        CreateRequest {
            id: ContainerId::new("c").unwrap(),
            bundle: self.path("bundle"),
            rootfs: Vec::new(),
            stdio: StdioPaths::default(),
            options: Options {
                binary_name: self.path("runtime").to_str().unwrap().to_owned(),
                ..Options::default()
            },
            checkpoint: None,
        }
    }

    async fn running(&self) -> Handle {
        self.shim.create(self.request()).await.unwrap();
        let container = self.shim.container("c").unwrap();
        container
            .ask(|reply| Command::Start(None, reply))
            .await
            .unwrap();
        container
    }

    /// What the journal says, in the bundle or where it went with the deletion.
    fn entries(&self) -> Vec<record::Entry> {
        let folders = std::fs::read_dir(self.path("events")).into_iter().flatten();
        let gone = folders
            .flatten()
            .flat_map(|folder| crate::outbox::files(&folder.path()))
            .next();
        journal::read(&gone.unwrap_or_else(|| self.path("bundle").join(journal::JOURNAL_FILE)))
    }

    async fn gone(&self) {
        let mut count = self.shim.count();
        let wait = count.wait_for(|count| *count == 0);
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .unwrap()
            .unwrap();
    }
}

impl Drop for World {
    /// Nothing of a test stays behind.
    fn drop(&mut self) {
        if let Ok(Ok(handle)) = self.shim.container("c").map(|container| container.view())
            && let Some(process) = &handle.init.process
        {
            let _ = process.signal(libc::SIGKILL);
        }
    }
}

/// The topics of all events.
fn topics(entries: &[record::Entry]) -> Vec<String> {
    let events = entries.iter().filter_map(|entry| match entry {
        record::Entry::EventQueued { event, .. } => Some(event),
        _ => None,
    });
    events
        .map(|event| event.topic.trim_start_matches("/tasks/").to_owned())
        .collect()
}

async fn ended(view: &ProcessView) -> Ended {
    let mut exit = view.exit.clone();
    let wait = exit.wait_for(Option::is_some);
    let value = *tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap()
        .unwrap();
    value.unwrap()
}

fn kill(signal: i32) -> impl FnOnce(Reply<()>) -> Command {
    move |reply| Command::Kill {
        exec: None,
        signal,
        all: false,
        reply,
    }
}

/// Runs `body` in a process of its own that is a subreaper.
fn alone<F: Future<Output = ()>>(
    name: &str,
    environment: &[(&str, &str)],
    body: impl FnOnce() -> F,
) {
    const CHILD: &str = "HOLDFAST_TEST_ALONE";
    if std::env::var_os(CHILD).is_some() {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body());
        return;
    }
    let ledger = tempfile::tempdir().unwrap();
    let status = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("task::tests::{name}"), "--nocapture"])
        .env(CHILD, "1")
        .env("HOLDFAST_LEDGER_DIR", ledger.path())
        .envs(environment.iter().copied())
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}");
}

#[test]
fn a_container_lives_and_ends() {
    alone("a_container_lives_and_ends", &[], || async {
        let world = World::new();
        let container = world.running().await;
        let view = container.view().unwrap();
        assert_eq!(view.init.status, Status::Running);
        container.ask(kill(libc::SIGTERM)).await.unwrap();
        let status = ended(&view.init).await.status;
        assert_eq!(status.signal(), Some(Signal::TERM));
        let remains = container
            .ask(|reply| Command::Delete(None, reply))
            .await
            .unwrap();
        assert_eq!(remains.pid, view.init.pid());
        assert_eq!(remains.ended.unwrap().status, status);
        world.gone().await;
        let entries = world.entries();
        assert!(matches!(
            entries.first(),
            Some(record::Entry::Created { .. })
        ));
        // Nobody listens, so every event is still to be told, the deletion last.
        let topics = topics(&entries);
        assert_eq!(topics, ["create", "start", "exit", "delete"]);
        assert!(
            matches!(
                entries[entries.len() - 2..],
                [record::Entry::Deleted, record::Entry::EventQueued { .. }]
            ),
            "{entries:?}"
        );
    });
}

#[test]
fn create_goes_on_when_its_caller_goes_away() {
    alone("create_goes_on_when_its_caller_goes_away", &[], || async {
        let world = World::new();
        world.script("create", "sleep 0.3");
        let create = world.shim.create(world.request());
        tokio::time::timeout(Duration::from_millis(50), create)
            .await
            .unwrap_err();
        let container = world.shim.container("c").unwrap();
        assert_eq!(container.view().unwrap_err().code, Code::NOT_FOUND);
        let mut view = container.view.clone();
        let shown = view.wait_for(Option::is_some);
        drop(
            tokio::time::timeout(Duration::from_secs(10), shown)
                .await
                .unwrap()
                .unwrap(),
        );
        // And a second one of the same name is refused, not mixed up with it.
        let fault = world.shim.create(world.request()).await.unwrap_err();
        assert_eq!(fault.code, Code::ALREADY_EXISTS);
        // Delete of what was never started tells the true end.
        let remains = container
            .ask(|reply| Command::Delete(None, reply))
            .await
            .unwrap();
        assert_eq!(remains.ended.unwrap().status.signal(), Some(Signal::KILL));
        world.gone().await;
    });
}

#[test]
fn a_runtime_that_hangs_in_create_is_killed_and_named() {
    let name = "a_runtime_that_hangs_in_create_is_killed_and_named";
    alone(name, &[("HOLDFAST_DEADLINE_CREATE", "200ms")], || async {
        let world = World::new();
        world.script("create", "sleep 900 & echo $! > \"$here/hook\"; wait");
        let fault = world.shim.create(world.request()).await.unwrap_err();
        assert_eq!(fault.code, Code::DEADLINE_EXCEEDED);
        assert!(
            fault.text.contains("create did not finish within 200ms"),
            "{}",
            fault.text
        );
        world.gone().await;
        // What it had started went with it.
        let hook = std::fs::read_to_string(world.path("hook")).unwrap();
        let proc = format!("/proc/{}", hook.trim());
        let until = Instant::now() + Duration::from_secs(5);
        while Path::new(&proc).exists() {
            assert!(Instant::now() < until, "the hook {} lives", hook.trim());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // And the name is free again.
        std::fs::remove_file(world.path("create")).unwrap();
        world.shim.create(world.request()).await.unwrap();
    });
}

#[test]
fn the_runtimes_own_words_are_the_error_and_nothing_stays() {
    alone(
        "the_runtimes_own_words_are_the_error_and_nothing_stays",
        &[],
        || async {
            let world = World::new();
            world.script(
                "create",
                r#"echo '{"level":"error","msg":"no such thing"}' > "$log"; exit 1"#,
            );
            let fault = world.shim.create(world.request()).await.unwrap_err();
            assert_eq!(
                fault.text,
                "OCI runtime create failed: no such thing [HF151]"
            );
            world.gone().await;
            // A runtime that says yes and names nobody.
            world.script("create", "exit 0");
            let fault = world.shim.create(world.request()).await.unwrap_err();
            assert!(fault.text.contains("told no pid"), "{}", fault.text);
            world.gone().await;
        },
    );
}

#[test]
fn an_exec_that_ends_before_its_runtime_answers_has_start_and_exit() {
    alone(
        "an_exec_that_ends_before_its_runtime_answers_has_start_and_exit",
        &[],
        || async {
            let world = World::new();
            let container = world.running().await;
            let id = ExecId::new("e").unwrap();
            let exec =
                |reply| Command::Exec(id.clone(), StdioPaths::default(), b"{}".to_vec(), reply);
            container.ask(exec).await.unwrap();
            assert_eq!(
                container.ask(exec).await.unwrap_err().code,
                Code::ALREADY_EXISTS
            );
            let start = |reply| Command::Start(Some(id.clone()), reply);
            let pid = container.ask(start).await.unwrap();
            let view = container.view().unwrap();
            let process = view.execs.get(&id).unwrap();
            assert_eq!(ended(process).await.status, ExitStatus::Exited(3));
            let again = container.ask(start).await.unwrap_err();
            assert_eq!(again.text, "cannot start a stopped process");
            let delete = |reply| Command::Delete(Some(id.clone()), reply);
            let remains = container.ask(delete).await.unwrap();
            assert_eq!(
                (remains.pid, remains.ended.unwrap().status),
                (pid, ExitStatus::Exited(3))
            );
            assert_eq!(
                container.ask(delete).await.unwrap_err().code,
                Code::NOT_FOUND
            );
        },
    );
}

#[test]
fn a_failed_exec_start_can_be_repeated() {
    alone("a_failed_exec_start_can_be_repeated", &[], || async {
        let world = World::new();
        let container = world.running().await;
        let id = ExecId::new("e").unwrap();
        let exec = |reply| Command::Exec(id.clone(), StdioPaths::default(), b"{}".to_vec(), reply);
        container.ask(exec).await.unwrap();
        world.script(
            "exec",
            r#"echo '{"level":"error","msg":"not today"}' > "$log"; exit 1"#,
        );
        for _ in 0..3 {
            let start = |reply| Command::Start(Some(id.clone()), reply);
            let fault = container.ask(start).await.unwrap_err();
            assert_eq!(fault.text, "OCI runtime exec failed: not today [HF154]");
        }
        std::fs::remove_file(world.path("exec")).unwrap();
        container
            .ask(|reply| Command::Start(Some(id.clone()), reply))
            .await
            .unwrap();
    });
}

#[test]
fn a_hanging_exec_holds_nothing_back() {
    alone("a_hanging_exec_holds_nothing_back", &[], || async {
        let world = World::new();
        let container = world.running().await;
        let id = ExecId::new("hung").unwrap();
        let exec = |reply| Command::Exec(id.clone(), StdioPaths::default(), b"{}".to_vec(), reply);
        container.ask(exec).await.unwrap();
        world.script("exec", "sleep 900");
        let starting = {
            let (container, id) = (container.clone(), id.clone());
            tokio::spawn(
                async move { container.ask(|reply| Command::Start(Some(id), reply)).await },
            )
        };
        let calls = world.path("calls");
        let until = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&calls).unwrap().contains("exec") {
            assert!(Instant::now() < until, "the runtime was not called");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Other operations do not wait for it.
        let begin = Instant::now();
        let other = ExecId::new("other").unwrap();
        let exec =
            |reply| Command::Exec(other.clone(), StdioPaths::default(), b"{}".to_vec(), reply);
        container.ask(exec).await.unwrap();
        container.ask(kill(libc::SIGKILL)).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(1));
        let view = container.view().unwrap();
        assert_eq!(ended(&view.init).await.status.signal(), Some(Signal::KILL));
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        let fault = starting.await.unwrap().unwrap_err();
        assert_eq!(
            (fault.code, fault.text.as_str()),
            (
                Code::FAILED_PRECONDITION,
                "container c init process is not running [HF154]: failed precondition"
            )
        );
    });
}

#[test]
fn a_mount_helper_is_waited_for_and_quoted() {
    alone("a_mount_helper_is_waited_for_and_quoted", &[], || async {
        let world = World::new();
        let helper = world.path("mount.fuse3");
        let script = "#!/bin/sh\necho \"$@\" > \"$0.args\"\ncase $2 in *bad) echo 'fuse: device not found' >&2; exit 1;; esac\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mount = |target: &str| {
            let arguments = ["src", target, "-t", "x"].map(Into::into).to_vec();
            launch::mount_by_helper(&world.shim.reaper, &helper, arguments)
        };
        mount("/good").await.unwrap();
        let arguments = std::fs::read_to_string(world.path("mount.fuse3.args")).unwrap();
        assert_eq!(arguments.trim(), "src /good -t x");
        let fault = mount("/bad").await.unwrap_err();
        assert!(fault.text.ends_with("fuse: device not found"), "{fault:?}");
        let missing =
            launch::mount_by_helper(&world.shim.reaper, Path::new("/no/mount.fuse"), Vec::new());
        assert!(missing.await.unwrap_err().text.contains("is it installed?"));
    });
}

#[test]
fn an_exec_that_outlives_the_bound_is_told_before_the_delete() {
    let name = "an_exec_that_outlives_the_bound_is_told_before_the_delete";
    alone(name, &[("HOLDFAST_DEADLINE_HOLD", "100ms")], || async {
        let world = World::new();
        let container = world.running().await;
        let id = ExecId::new("e").unwrap();
        let exec = |reply| Command::Exec(id.clone(), StdioPaths::default(), b"{}".to_vec(), reply);
        container.ask(exec).await.unwrap();
        // Not in init's pid namespace, so init's end is not its own.
        std::fs::write(world.path("command"), "exec sleep 1000").unwrap();
        container
            .ask(|reply| Command::Start(Some(id.clone()), reply))
            .await
            .unwrap();
        container.ask(kill(libc::SIGKILL)).await.unwrap();
        let view = container.view().unwrap();
        ended(&view.init).await;
        let exec_view = view.execs.get(&id).unwrap();
        assert_eq!(*exec_view.exit.borrow(), None);
        // What has not ended is in the ledger, with what it does.
        let ledger = std::env::var_os("HOLDFAST_LEDGER_DIR").unwrap();
        let begun = Instant::now();
        loop {
            let files = std::fs::read_dir(&ledger).into_iter().flatten().flatten();
            let said: String = files
                .map(|file| std::fs::read_to_string(file.path()).unwrap_or_default())
                .collect();
            if said.contains("HF104") && said.contains("sleep 1000") {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{said}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        container
            .ask(|reply| Command::Delete(None, reply))
            .await
            .unwrap();
        let status = ended(exec_view).await.status;
        assert_eq!(status.signal(), Some(Signal::KILL));
        world.gone().await;
        let topics = topics(&world.entries());
        let expected = "create start exec-added exec-started exit exit delete";
        assert_eq!(topics.join(" "), expected);
    });
}

#[test]
fn a_checkpoint_is_the_runtimes_with_what_was_asked_for() {
    let name = "a_checkpoint_is_the_runtimes_with_what_was_asked_for";
    alone(name, &[], || async {
        let world = World::new();
        world.script("checkpoint", r#"echo "$all" > "$here/arguments""#);
        let container = world.running().await;
        let mut request = CheckpointRequest {
            path: "/images/one".to_owned(),
            ..CheckpointRequest::default()
        };
        request.options.open_tcp = true;
        request.options.empty_namespaces = vec!["network".to_owned()];
        let bundle = world.path("bundle");
        let ask = |request: CheckpointRequest| {
            container.ask(move |reply| Command::Checkpoint(request, reply))
        };
        ask(request.clone()).await.unwrap();
        let arguments = || std::fs::read_to_string(world.path("arguments")).unwrap();
        let expected = format!(
            "checkpoint --image-path /images/one --work-path {}/work --leave-running --tcp-established --empty-ns network c",
            bundle.display()
        );
        assert_eq!(arguments().trim(), expected);
        request.options.exit = true;
        ask(request.clone()).await.unwrap();
        assert!(!arguments().contains("--leave-running"));
        world.script(
            "checkpoint",
            r#"echo '{"level":"error","msg":"criu failed: type NOTIFY errno 0"}' > "$log"; exit 1"#,
        );
        let fault = ask(request.clone()).await.unwrap_err();
        let log = world.path("bundle").join("criu-dump.log");
        assert_eq!(
            fault.text,
            format!(
                "OCI runtime checkpoint failed: criu failed: type NOTIFY errno 0 path= {}",
                log.display()
            )
        );
        // Nothing of it changed the container.
        assert_eq!(container.view().unwrap().init.status, Status::Running);
        container.ask(kill(libc::SIGKILL)).await.unwrap();
        ended(&container.view().unwrap().init).await;
        let fault = ask(request).await.unwrap_err();
        assert_eq!(fault.text, "cannot checkpoint a stopped container");
    });
}
