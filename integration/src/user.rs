//! An ordinary user of the machine, with subordinate ids, for tests of rootless use.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place;

/// The files of users are locked by whoever changes them, for a second at most.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A user who exists until this is dropped.
#[derive(Debug)]
pub struct User {
    /// The login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the user's own group.
    pub gid: u32,
    /// First subordinate uid, and how many there are.
    pub subordinate: (u32, u32),
    /// `XDG_RUNTIME_DIR`, mode 0700.
    pub runtime_dir: PathBuf,
}

impl User {
    /// Makes one with useradd(8); its `XDG_RUNTIME_DIR` is below `folder`.
    ///
    /// # Errors
    /// What is missing on this machine.
    pub fn new(folder: &Path) -> Result<Self, String> {
        for program in ["useradd", "userdel", "setpriv", "newuidmap", "newgidmap"] {
            place::program(program).ok_or(format!("{program} is not installed"))?;
        }
        let _alone = alone();
        // Names of users are short: 32 characters at most.
        let name = place::unique("hf").replace(['_', '.'], "-");
        let said = Command::new("useradd")
            .args([
                "--no-create-home",
                "--home-dir",
                "/nonexistent",
                "--shell",
                "/bin/sh",
                &name,
            ])
            .output()
            .map_err(|e| format!("useradd: {e}"))?;
        if !said.status.success() {
            return Err(format!(
                "useradd: {}",
                String::from_utf8_lossy(&said.stderr)
            ));
        }
        let found = |file: &str| -> Option<Vec<String>> {
            let text = fs::read_to_string(file).ok()?;
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name}:")))?;
            Some(line.split(':').map(str::to_owned).collect())
        };
        let mut this = Self {
            uid: 0,
            gid: 0,
            subordinate: (0, 0),
            runtime_dir: folder.join("xdg"),
            name: name.clone(),
        };
        let entry = found("/etc/passwd").ok_or("no entry in /etc/passwd")?;
        this.uid = entry[2].parse().expect("uid");
        this.gid = entry[3].parse().expect("gid");
        let range = found("/etc/subuid").ok_or("useradd gave no subordinate ids")?;
        this.subordinate = (
            range[1].parse().expect("first"),
            range[2].parse().expect("count"),
        );
        fs::create_dir(&this.runtime_dir).expect("XDG_RUNTIME_DIR");
        fs::set_permissions(&this.runtime_dir, fs::Permissions::from_mode(0o700)).expect("chmod");
        this.own(&this.runtime_dir);
        Ok(this)
    }

    /// Gives the user a file or folder.
    ///
    /// # Panics
    /// When chown fails.
    pub fn own(&self, path: &Path) {
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid)).expect("chown");
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).expect("read folder") {
                self.own(&entry.expect("entry").path());
            }
        }
    }

    /// The same command, run by the user: with nothing of this process's environment but what the
    /// command sets itself.
    #[must_use]
    pub fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("setpriv");
        let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
        command
            .args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "--"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("XDG_RUNTIME_DIR", &self.runtime_dir)
            .current_dir("/");
        for (key, value) in inner.get_envs() {
            if let Some(value) = value {
                command.env(key, value);
            }
        }
        if let Some(folder) = inner.get_current_dir() {
            command.current_dir(folder);
        }
        command
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _alone = alone();
        // Also its entries in /etc/subuid and /etc/subgid.
        let _ = Command::new("userdel")
            .arg("--force")
            .arg(&self.name)
            .output();
    }
}
