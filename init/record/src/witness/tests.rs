use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;

/// tracefs on a folder of our own and an instance of our own; both go with it.
struct Traced {
    witness: Witness,
    folder: tempfile::TempDir,
}

impl Traced {
    /// None, with the reason printed, where the kernel or our rights do not allow it.
    fn new(name: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tracefs", "tracefs"])
            .arg(folder.path())
            .output()
            .unwrap();
        if !mounted.status.success() {
            println!("SKIPPED: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        let name = format!("holdfast-test-{}-{name}", std::process::id());
        let witness = Witness::new(Some(folder.path().into()), &name, "/dev/kmsg".into());
        Some(Self { witness, folder })
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // A child that another test forks has our files open until it executes its program.
        let again = |work: &dyn Fn() -> bool| {
            (0..250).any(|_| {
                work() || {
                    std::thread::sleep(Duration::from_millis(20));
                    false
                }
            })
        };
        let removed = again(&|| self.witness.remove().is_ok());
        let unmounted = again(&|| {
            let mut umount = Command::new("umount");
            umount.arg(self.folder.path()).stderr(Stdio::null());
            umount.status().is_ok_and(|status| status.success())
        });
        if !std::thread::panicking() {
            let folder = self.folder.path().display();
            assert!(removed, "an instance of {folder} cannot be removed");
            assert!(unmounted, "{folder} is still mounted");
        }
    }
}

fn sleeper() -> std::process::Child {
    Command::new("sleep").arg("600").spawn().unwrap()
}

#[test]
fn a_killer_that_is_gone_is_named_with_its_command_and_parent() {
    let Some(traced) = Traced::new("gone") else {
        return;
    };
    let witness = &traced.witness;
    assert!(matches!(witness.check(), Err(Unwatched::NotSetUp(_))));
    witness.set_up().unwrap();
    witness.set_up().unwrap();
    witness.check().unwrap();
    let mut child = sleeper();
    let before = Timestamp::now();
    let killed = Command::new("/bin/kill")
        .args(["-KILL", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let sent = witness.sender(child.id(), Signal::KILL).unwrap().unwrap();
    assert!(!sent.by_kernel);
    assert_eq!(sent.sender.comm.as_deref(), Some("kill"));
    let command = sent.sender.cmdline.unwrap();
    assert!(command.ends_with("/kill"), "{command}");
    let parent = sent.sender.parent.unwrap();
    let thread = parent.split(' ').next().unwrap();
    let ours = format!("/proc/{}/task/{thread}", std::process::id());
    assert!(Path::new(&ours).exists(), "{parent} is no thread of ours");
    assert!(
        sent.time.since(before).as_secs() < 60 && before.before(Duration::from_secs(1)) < sent.time
    );
    assert_eq!(witness.sender(child.id(), Signal::TERM).unwrap(), None);
}

#[test]
fn a_killer_that_lives_is_named_with_all_of_its_command() {
    let Some(traced) = Traced::new("lives") else {
        return;
    };
    traced.witness.set_up().unwrap();
    let mut child = sleeper();
    let script = format!("kill -TERM {}; read line", child.id());
    let mut shell = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    let sent = traced
        .witness
        .sender(child.id(), Signal::TERM)
        .unwrap()
        .unwrap();
    drop(shell.stdin.take());
    shell.wait().unwrap();
    assert_eq!(sent.sender.pid, shell.id());
    assert_eq!(sent.sender.cmdline, Some(format!("sh -c {script}")));
    assert!(sent.sender.uid.is_some());
    let parent = format!("{} (", std::process::id());
    assert!(sent.sender.parent.unwrap().starts_with(&parent));
}

#[test]
fn without_tracefs_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let none = Witness::new(Some(folder.path().into()), "x", "/dev/null".into());
    for said in [
        none.set_up().unwrap_err(),
        none.check().unwrap_err(),
        none.sender(1, Signal::KILL).unwrap_err(),
    ] {
        assert!(matches!(said, Unwatched::NoTracefs(_)), "{said:?}");
        assert!(said.to_string().contains("mount -t tracefs"), "{said}");
    }
    let off = Witness::new(None, "x", "/dev/null".into());
    assert!(matches!(off.set_up(), Err(Unwatched::Off)));
    assert!(matches!(off.sender(1, Signal::KILL), Err(Unwatched::Off)));
    assert_eq!(off.oom_kill(|_| true).unwrap(), None);
}
