//! containerd: whether it runs, which version, how it is configured, and whether it knows Holdfast.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Node;
use crate::proc::Process;
use crate::report::{Finding, Level, Report};

/// Where distributions keep the configuration; k3s and RKE2 have their own.
const CONFIGURATIONS: [&str; 3] = [
    "/etc/containerd/config.toml",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
];

/// Names of the CRI plugin in configurations of version 2 and 3.
const CRI: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];

/// Our runtime type.
const OURS: &str = "io.containerd.holdfast.v2";

/// How long `containerd --version` may take.
const LIMIT: Duration = Duration::from_secs(2);

/// A runtime that containerd's CRI plugin offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runtime {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) systemd_cgroup: bool,
}

/// The daemons themselves, by the name of their program.
pub(crate) fn daemons<'a>(
    processes: &'a BTreeMap<u32, Process>,
    name: &'a str,
) -> impl Iterator<Item = &'a Process> {
    processes
        .values()
        .filter(move |process| process.comm == name)
}

pub(crate) fn look(node: &Node, processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let running: Vec<&Process> = daemons(processes, "containerd").collect();
    if running.is_empty() {
        report.add(Finding {
            check: "containerd",
            level: Level::Note,
            what: "containerd does not run".to_owned(),
            why: "Containers that run go on, but nobody is told of their ends before it is back.",
            todo: "Nothing if this node has cri-o, podman or docker's own; else systemctl start containerd.".to_owned(),
            evidence: Vec::new(),
        });
    }
    for process in running {
        judge(process.pid, version(node, process).as_deref(), report);
    }
    configuration(node, processes, report);
}

/// A containerd that runs, by what it says of its version.
fn judge(pid: u32, version: Option<&str>, report: &mut Report) {
    match version {
        Some(version) if is_older(version) => report.add(Finding {
            check: "containerd-version",
            level: Level::Warning,
            what: format!("containerd (pid {pid}) is of version {version}"),
            why: "Holdfast is tested with 1.6 and newer; older ones lose events of their own and get no fixes.",
            todo: "Upgrade containerd to a supported version.".to_owned(),
            evidence: Vec::new(),
        }),
        Some(version) => report.fine(format!("containerd {version} (pid {pid})")),
        None => report.fine(format!("containerd runs (pid {pid})")),
    }
}

fn configuration(node: &Node, processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let mut broken = Vec::new();
    for path in configurations(node, processes) {
        if let Some(Err(error)) = parse(node, &path) {
            broken.push(format!("{}: {error}", path.display()));
        }
    }
    if !broken.is_empty() {
        report.add(Finding {
            check: "containerd-config",
            level: Level::Problem,
            what: "containerd's configuration cannot be read".to_owned(),
            why: "containerd will not come up again after its next stop.",
            todo: "Correct the file; `containerd config dump` shows what containerd makes of it."
                .to_owned(),
            evidence: broken,
        });
        return;
    }
    let runtimes = runtimes(node, processes);
    let ours = runtimes.iter().find(|runtime| runtime.kind == OURS);
    let names = |runtimes: &[Runtime]| -> Vec<String> {
        let lines = runtimes.iter();
        lines
            .map(|runtime| format!("{} is {}", runtime.name, runtime.kind))
            .collect()
    };
    match ours {
        Some(runtime) => report.fine(format!("containerd's runtime {:?} is Holdfast", runtime.name)),
        None => report.add(Finding {
            check: "drop-in",
            level: Level::Note,
            what: "no runtime of containerd's configuration is Holdfast".to_owned(),
            why: "Pods get the shim that the configuration names; what Holdfast protects from stays possible.",
            todo: "Install the drop-in of the package (containerd-config-v2.toml or -v3.toml) and the RuntimeClass."
                .to_owned(),
            evidence: names(&runtimes),
        }),
    }
}

/// Every configuration that a running containerd was started with, or that lies where one is expected.
fn configurations(node: &Node, processes: &BTreeMap<u32, Process>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = daemons(processes, "containerd")
        .filter_map(|process| named_configuration(&process.arguments()))
        .map(PathBuf::from)
        .collect();
    paths.extend(CONFIGURATIONS.iter().map(PathBuf::from));
    paths.retain(|path| node.path(&path.to_string_lossy()).is_file());
    paths.sort();
    paths.dedup();
    paths
}

fn named_configuration(arguments: &[String]) -> Option<String> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.trim_start_matches('-').split_once('=') {
            Some(("config" | "c", path)) => return Some(path.to_owned()),
            _ if matches!(argument.as_str(), "-c" | "--config" | "-config") => {
                return arguments.next().cloned();
            }
            _ => {}
        }
    }
    None
}

/// The runtimes of all configurations and of what they import.
pub(crate) fn runtimes(node: &Node, processes: &BTreeMap<u32, Process>) -> Vec<Runtime> {
    let mut found = Vec::new();
    for path in configurations(node, processes) {
        let Some(Ok(table)) = parse(node, &path) else {
            continue;
        };
        for import in imports(node, &path, &table) {
            if let Some(Ok(table)) = parse(node, &import) {
                collect(&table, &mut found);
            }
        }
        collect(&table, &mut found);
    }
    found
}

fn parse(node: &Node, path: &Path) -> Option<Result<toml::Table, String>> {
    let text = node.read(&path.to_string_lossy())?;
    Some(text.parse::<toml::Table>().map_err(|error| {
        // Its Display draws the line; the message alone fits one line of evidence.
        error.message().to_owned()
    }))
}

/// `imports`, with `*` in the last component, relative to the file.
fn imports(node: &Node, path: &Path, table: &toml::Table) -> Vec<PathBuf> {
    let Some(toml::Value::Array(patterns)) = table.get("imports") else {
        return Vec::new();
    };
    let base = path.parent().unwrap_or(Path::new("/"));
    let mut files = Vec::new();
    for pattern in patterns.iter().filter_map(toml::Value::as_str) {
        let pattern = base.join(pattern);
        let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name()) else {
            continue;
        };
        let name = name.to_string_lossy();
        let Some((start, end)) = name.split_once('*') else {
            files.push(pattern);
            continue;
        };
        let Ok(entries) = std::fs::read_dir(node.path(&folder.to_string_lossy())) else {
            continue;
        };
        let matching = entries.flatten().filter_map(|entry| {
            let file = entry.file_name().to_string_lossy().into_owned();
            (file.len() >= start.len() + end.len()
                && file.starts_with(start)
                && file.ends_with(end))
            .then(|| folder.join(file))
        });
        files.extend(matching);
    }
    files.sort();
    files
}

fn collect(table: &toml::Table, found: &mut Vec<Runtime>) {
    let Some(toml::Value::Table(plugins)) = table.get("plugins") else {
        return;
    };
    for plugin in CRI {
        let runtimes = plugins
            .get(plugin)
            .and_then(|cri| cri.get("containerd"))
            .and_then(|containerd| containerd.get("runtimes"))
            .and_then(toml::Value::as_table);
        for (name, runtime) in runtimes.into_iter().flatten() {
            let kind = runtime.get("runtime_type").and_then(toml::Value::as_str);
            let systemd = runtime
                .get("options")
                .and_then(|options| options.get("SystemdCgroup"))
                .and_then(toml::Value::as_bool);
            let entry = Runtime {
                name: name.clone(),
                kind: kind.unwrap_or("io.containerd.runc.v2").to_owned(),
                systemd_cgroup: systemd.unwrap_or(false),
            };
            if !found.contains(&entry) {
                found.push(entry);
            }
        }
    }
}

/// What the daemon's own program says; only on a node, for a tree of files cannot be run.
fn version(node: &Node, process: &Process) -> Option<String> {
    if node.root != Path::new("/") {
        return None;
    }
    let mut child = Command::new(process.folder().join("exe"))
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let until = Instant::now() + LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
    // One short line: it fits the pipe, so the program did not wait for us.
    let text = std::io::read_to_string(child.stdout.take()?).ok()?;
    let version = text.split_whitespace().nth(2)?;
    let number = version.trim_start_matches('v');
    number
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| version.to_owned())
}

fn is_older(version: &str) -> bool {
    let mut numbers = version
        .trim_start_matches('v')
        .split(['.', '-', '~', '+'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (1, 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_containerd_is_a_warning_and_one_that_says_nothing_is_none() {
        let mut report = Report::default();
        judge(50, Some("v1.6.20"), &mut report);
        judge(51, None, &mut report);
        assert_eq!(report.findings, []);
        judge(52, Some("1.5.9~ds1"), &mut report);
        let finding = &report.findings[0];
        assert_eq!(
            (finding.check, finding.level),
            ("containerd-version", Level::Warning)
        );
        assert!(finding.what.contains("pid 52"), "{finding:?}");
    }

    #[test]
    fn versions_and_flags() {
        assert!(is_older("1.5.9~ds1") && is_older("v1.4.0"));
        assert!(!is_older("1.6.20~ds1") && !is_older("v2.1.9") && !is_older("2.0"));
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let named = |text| named_configuration(&words(text));
        assert_eq!(named("containerd -c /a"), Some("/a".into()));
        assert_eq!(
            named("containerd --log-level x --config=/b"),
            Some("/b".into())
        );
        assert_eq!(named("containerd"), None);
    }
}
