//! The shims that run on this node, and what they can be asked: `holdfast shims`, `holdfast upgrade`.
//!
//! A shim is found by its program's name in /proc, and its socket by its environment. It answers
//! `holdfast.shim.v1.Shim` over ttrpc with JSON.

mod client;

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_record::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use client::ask;

/// The shim's program.
const PROGRAM: &str = "containerd-shim-holdfast-v2";
/// Tells the path of its socket.
const SOCKET_VARIABLE: &[u8] = b"HOLDFAST_SHIM_SOCKET=";
/// How long a shim may take to say what it is.
const INFO_LIMIT: Duration = Duration::from_secs(3);
/// How long an upgrade may take.
const UPGRADE_LIMIT: Duration = Duration::from_secs(20);

/// What a shim says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its version.
    pub version: String,
    /// Of its state for the next image.
    pub format: u32,
    /// The containerd namespace.
    pub namespace: String,
    /// Its containers.
    pub containers: Vec<String>,
    /// When its first image began, milliseconds since 1970.
    pub began: u64,
    /// How often it has executed itself again.
    pub images: u32,
    /// How many of those were faults.
    pub faults: u32,
    /// Whether it serves only what containers need most.
    pub degraded: bool,
    /// The latest incident.
    pub incident: Option<String>,
    /// The program it would be upgraded to.
    pub program: PathBuf,
}

/// A shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shim {
    /// Its pid.
    pub pid: u32,
    /// Its socket; none when it cannot be known.
    pub socket: Option<PathBuf>,
    /// The containerd namespace that it was started for.
    pub namespace: Option<String>,
    /// Its share of memory in bytes (PSS).
    pub memory: Option<u64>,
    /// What it says of itself; none when it does not answer, or is too old to.
    pub info: Option<Info>,
    /// Why not.
    pub silent: Option<String>,
}

/// How many are asked at the same time: one that hangs does not hold up the others of a full node.
const ASKED_AT_ONCE: usize = 16;

/// All of them, by pid.
#[must_use]
pub fn find() -> Vec<Shim> {
    let pids: Vec<u32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_server(*pid))
        .collect();
    let mut found = Vec::new();
    for some in pids.chunks(ASKED_AT_ONCE) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = some
                .iter()
                .map(|pid| scope.spawn(move || look_at(*pid)))
                .collect();
            found.extend(asked.into_iter().filter_map(|one| one.join().ok()));
        });
    }
    found.sort_by_key(|shim| shim.pid);
    found
}

/// Whether a process is a shim that serves; `start`, `delete` and the like are not.
fn is_server(pid: u32) -> bool {
    let Ok(program) = std::fs::read_link(format!("/proc/{pid}/exe")) else {
        return false;
    };
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let last = arguments
        .split(|byte| *byte == 0)
        .rfind(|argument| !argument.is_empty());
    name.trim_end_matches(" (deleted)") == PROGRAM
        && !matches!(last, Some(b"start" | b"delete" | b"publish"))
        && socket_of(pid).is_some()
}

fn socket_of(pid: u32) -> Option<PathBuf> {
    std::fs::read(format!("/proc/{pid}/environ"))
        .ok()?
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(SOCKET_VARIABLE))
        .map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}

/// The word after `-namespace` on its command line: known of one that does not answer, too.
fn namespace_of(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    words.find(|word| *word == b"-namespace")?;
    Some(String::from_utf8_lossy(words.next()?).into_owned())
}

fn memory_of(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib * 1024)
}

fn look_at(pid: u32) -> Shim {
    let socket = socket_of(pid);
    let told = match &socket {
        Some(socket) => ask(socket, "Info", b"{}", INFO_LIMIT),
        None => Err("its socket is not known".to_owned()),
    };
    let told = told.and_then(|bytes| {
        serde_json::from_slice::<Info>(&bytes).map_err(|error| error.to_string())
    });
    let (info, silent) = match told {
        Ok(info) => (Some(info), None),
        Err(why) => (None, Some(why)),
    };
    Shim {
        pid,
        socket,
        namespace: namespace_of(pid),
        memory: memory_of(pid),
        info,
        silent,
    }
}

impl Shim {
    /// Whether `word` is its pid or one of its containers.
    #[must_use]
    pub fn is_meant(&self, word: &str) -> bool {
        word.parse() == Ok(self.pid)
            || self
                .info
                .as_ref()
                .is_some_and(|info| info.containers.iter().any(|id| id == word))
    }

    /// Moves it to another program, or to the one that is installed now. Its containers do not notice.
    ///
    /// # Errors
    /// Why it stays as it is.
    pub fn upgrade(&self, program: Option<&Path>) -> std::result::Result<Info, String> {
        let socket = self.socket.as_deref().ok_or("its socket is not known")?;
        let wanted = serde_json::json!({ "program": program });
        ask(
            socket,
            "Upgrade",
            wanted.to_string().as_bytes(),
            UPGRADE_LIMIT,
        )?;
        let told = ask(socket, "Info", b"{}", INFO_LIMIT)?;
        serde_json::from_slice(&told).map_err(|error| error.to_string())
    }
}

/// A table for people.
#[must_use]
pub fn table(shims: &[Shim], now: Timestamp) -> String {
    let mut out = format!(
        "{:<9} {:<10} {:>10} {:>9} {:>9}  {:<18} {}\n",
        "PID", "VERSION", "CONTAINERS", "MEMORY", "AGE", "LAST INCIDENT", "NAMESPACE"
    );
    for shim in shims {
        let memory = shim
            .memory
            .map_or_else(|| "?".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
        let line = match &shim.info {
            Some(info) => {
                let seconds = u64::try_from(now.seconds()).unwrap_or(0);
                let age = seconds.saturating_sub(info.began / 1000);
                let incident = match (&info.incident, info.degraded) {
                    (Some(incident), false) => incident.clone(),
                    (Some(incident), true) => format!("{incident} (degraded)"),
                    (None, _) => "-".to_owned(),
                };
                format!(
                    "{:<9} {:<10} {:>10} {memory:>9} {:>9}  {incident:<18} {}",
                    shim.pid,
                    info.version,
                    info.containers.len(),
                    in_words(age),
                    info.namespace
                )
            }
            None => format!(
                "{:<9} {:<10} {:>10} {memory:>9} {:>9}  {:<18} {}: does not answer: {}",
                shim.pid,
                "?",
                "?",
                "?",
                "?",
                shim.namespace.as_deref().unwrap_or("?"),
                shim.silent.as_deref().unwrap_or("nothing is known")
            ),
        };
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out.trim_end().to_owned()
}

fn in_words(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Which shims are to be upgraded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Their pids, or containers of theirs.
    pub words: &'a [String],
    /// All of them.
    pub all: bool,
    /// Only those of this containerd namespace.
    pub namespace: Option<&'a str>,
}

impl Wanted<'_> {
    /// The ones among `shims`.
    ///
    /// # Errors
    /// A line for each word that means none, or more than one.
    fn among<'s>(&self, shims: &'s [Shim]) -> std::result::Result<Vec<&'s Shim>, Vec<String>> {
        let here: Vec<&Shim> = shims
            .iter()
            .filter(|shim| self.namespace.is_none() || shim.namespace.as_deref() == self.namespace)
            .collect();
        if self.all {
            return Ok(here);
        }
        let place = self.namespace.map_or_else(
            || "this node".to_owned(),
            |name| format!("containerd namespace {name}"),
        );
        let mut refused = Vec::new();
        for word in self.words {
            let meant: Vec<String> = here
                .iter()
                .filter(|shim| shim.is_meant(word))
                .map(|shim| {
                    let namespace = shim.namespace.as_deref().unwrap_or("?");
                    format!("{} ({namespace})", shim.pid)
                })
                .collect();
            match meant.as_slice() {
                [] => refused.push(format!("{word}: no shim of {place} has it")),
                [_] => {}
                // Ids are unique in a containerd namespace, not on a node.
                [..] => refused.push(format!(
                    "{word}: several shims have it; give --namespace, or name one by its pid: {}",
                    meant.join(", ")
                )),
            }
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        let meant = |shim: &&Shim| self.words.iter().any(|word| shim.is_meant(word));
        Ok(here.into_iter().filter(meant).collect())
    }
}

/// Runs `holdfast upgrade`: which shims, to which program; a line for each.
///
/// # Errors
/// When nothing is meant, or what is meant is not clear: then nothing has changed. When one of them stays as it is:
/// the others have been upgraded.
pub fn upgrade(wanted: &Wanted<'_>, program: Option<&Path>) -> Result<String> {
    if wanted.all != wanted.words.is_empty() {
        return Err(Error::Usage(
            "upgrade: name containers or pids of shims, or give --all".into(),
        ));
    }
    let shims = find();
    let meant = wanted
        .among(&shims)
        .map_err(|refused| Error::Shims(refused.join("; ")))?;
    if meant.is_empty() {
        return Ok("no shim of ours runs there".to_owned());
    }
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for shim in meant {
        let before = shim.info.as_ref().map_or("?", |info| info.version.as_str());
        match shim.upgrade(program) {
            Ok(now) => lines.push(format!(
                "shim {}: {before} -> {}, {} containers go on",
                shim.pid,
                now.version,
                now.containers.len()
            )),
            Err(why) => failed.push(format!("shim {}: {why}", shim.pid)),
        }
    }
    if failed.is_empty() {
        Ok(lines.join("\n"))
    } else {
        lines.extend(failed);
        Err(Error::Shims(lines.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shim() -> Shim {
        Shim {
            pid: 77,
            socket: None,
            namespace: Some("k8s.io".into()),
            memory: Some(2048 * 1024),
            info: Some(Info {
                version: "0.1.0".into(),
                format: 1,
                namespace: "k8s.io".into(),
                containers: vec!["a".into(), "b".into()],
                began: 1_000_000,
                images: 3,
                faults: 2,
                degraded: false,
                incident: Some("00ff".into()),
                program: "/usr/bin/x".into(),
            }),
            silent: None,
        }
    }

    #[test]
    fn a_shim_is_meant_by_its_pid_or_a_container() {
        let shim = shim();
        assert!(shim.is_meant("77") && shim.is_meant("b"));
        assert!(!shim.is_meant("7") && !shim.is_meant("c"));
    }

    #[test]
    fn the_table_tells_what_is_known_and_why_the_rest_is_not() {
        let silent = Shim {
            info: None,
            silent: Some("no answer within 3s".into()),
            ..shim()
        };
        let text = table(&[shim(), silent], Timestamp::new(1_000 + 7300, 0));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("PID"));
        for word in ["77", "0.1.0", " 2 ", "2048 KiB", "2h", "00ff", "k8s.io"] {
            assert!(lines[1].contains(word), "{word}: {}", lines[1]);
        }
        assert!(lines[2].contains("does not answer: no answer within 3s"));
    }

    #[test]
    fn nothing_is_upgraded_by_accident() {
        let none = Wanted::default();
        assert!(matches!(upgrade(&none, None), Err(Error::Usage(_))));
        let words = ["x".to_owned()];
        let both = Wanted {
            words: &words,
            all: true,
            namespace: None,
        };
        assert!(matches!(upgrade(&both, None), Err(Error::Usage(_))));
    }

    #[test]
    fn a_name_means_one_shim_or_none_is_touched() {
        let elsewhere = Shim {
            pid: 78,
            namespace: Some("moby".into()),
            ..shim()
        };
        let shims = [shim(), elsewhere];
        let words = ["b".to_owned()];
        let mut wanted = Wanted {
            words: &words,
            ..Wanted::default()
        };
        let refused = wanted.among(&shims).unwrap_err();
        assert!(refused[0].contains("77 (k8s.io), 78 (moby)"), "{refused:?}");
        wanted.namespace = Some("moby");
        let pids = |wanted: &Wanted<'_>| -> Vec<u32> {
            let meant = wanted.among(&shims).unwrap();
            meant.iter().map(|shim| shim.pid).collect()
        };
        assert_eq!(pids(&wanted), [78]);
        let words = ["77".to_owned()];
        wanted.words = &words;
        let refused = wanted.among(&shims).unwrap_err();
        assert!(refused[0].contains("namespace moby"), "{refused:?}");
        (wanted.words, wanted.all) = (&[], true);
        assert_eq!(pids(&wanted), [78]);
        wanted.namespace = None;
        assert_eq!(pids(&wanted), [77, 78]);
    }
}
