//! The rules of the house that no compiler checks: who may depend on whom, and where `unsafe` is.
//! `make check` runs this.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_integration::{deadline, place};
use serde_json::Value;

/// Which of our crates each of our crates may use at run time.
const ALLOWED: &[(&str, &[&str])] = &[
    ("holdfast-seccomp", &[]),
    ("holdfast-plan", &[]),
    ("holdfast-init", &["holdfast-plan"]),
    ("holdfast-record", &[]),
    ("holdfast-cgroups", &[]),
    ("holdfast-cdi", &[]),
    ("holdfast-nvml", &[]),
    ("holdfast-gpu", &["holdfast-record", "holdfast-cdi"]),
    ("holdfast-check", &["holdfast-record"]),
    (
        "holdfast",
        &[
            "holdfast-plan",
            "holdfast-record",
            "holdfast-cgroups",
            "holdfast-check",
            "holdfast-gpu",
            "holdfast-seccomp",
        ],
    ),
    (
        "holdfast-shim",
        &[
            "holdfast-plan",
            "holdfast-record",
            "holdfast-cgroups",
            "holdfast-keeper",
        ],
    ),
    ("holdfast-keeper", &[]),
    // Only in build scripts of the others.
    ("holdfast-embed", &[]),
    // Only in tests of the others.
    ("holdfast-corpus", &[]),
    ("holdfast-integration", &[]),
];

/// What the runtime, init and the libraries below them must never pull in.
const NOT_BELOW_THE_SHIM: &[&str] = &[
    "tokio",
    "ttrpc",
    "containerd-shim",
    "containerd-shim-protos",
];

struct Graph {
    names: BTreeMap<String, String>,
    edges: BTreeMap<String, Vec<String>>,
    members: Vec<String>,
}

fn graph() -> Graph {
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--all-features",
    ]);
    command.current_dir(place::repository());
    let said = deadline::run(&mut command, Duration::from_secs(120));
    let data: Value = serde_json::from_str(said.ok()).unwrap();
    let names = data["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            (
                p["id"].as_str().unwrap().to_owned(),
                p["name"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let is_normal = |dep: &Value| {
        dep["dep_kinds"]
            .as_array()
            .unwrap()
            .iter()
            .any(|kind| kind["kind"].is_null())
    };
    let edges = data["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let uses = node["deps"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|dep| is_normal(dep));
            let uses = uses
                .map(|dep| dep["pkg"].as_str().unwrap().to_owned())
                .collect();
            (node["id"].as_str().unwrap().to_owned(), uses)
        })
        .collect();
    let members = data["workspace_members"].as_array().unwrap();
    let members = members
        .iter()
        .map(|id| id.as_str().unwrap().to_owned())
        .collect();
    Graph {
        names,
        edges,
        members,
    }
}

impl Graph {
    fn member(&self, name: &str) -> &str {
        self.members
            .iter()
            .find(|id| self.names[*id] == name)
            .unwrap_or_else(|| panic!("no crate {name}"))
    }

    fn direct(&self, name: &str) -> BTreeSet<&str> {
        self.edges[self.member(name)]
            .iter()
            .map(|id| self.names[id].as_str())
            .collect()
    }

    fn all(&self, name: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![self.member(name)];
        while let Some(id) = open.pop() {
            for used in &self.edges[id] {
                if seen.insert(used.as_str()) {
                    open.push(used);
                }
            }
        }
        seen.into_iter().map(|id| self.names[id].as_str()).collect()
    }
}

#[test]
fn dependencies_point_one_way() {
    let graph = graph();
    let ours: BTreeSet<&str> = graph
        .members
        .iter()
        .map(|id| graph.names[id].as_str())
        .collect();
    let listed: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        ours, listed,
        "the crates of the workspace and those of this test"
    );
    for (name, allowed) in ALLOWED {
        for used in graph.direct(name).intersection(&ours) {
            assert!(allowed.contains(used), "{name} must not depend on {used}");
        }
        assert!(
            !graph.all(name).contains("holdfast-integration"),
            "{name} depends on the tests"
        );
    }
}

#[test]
fn nothing_below_the_shim_is_asynchronous() {
    let graph = graph();
    for (name, _) in ALLOWED {
        if ["holdfast-shim", "holdfast-integration"].contains(name) {
            continue;
        }
        let all = graph.all(name);
        for banned in NOT_BELOW_THE_SHIM {
            assert!(!all.contains(banned), "{name} pulls in {banned}");
        }
    }
}

#[test]
fn the_plan_has_no_dependencies() {
    let graph = graph();
    assert!(
        graph.direct("holdfast-plan").is_empty(),
        "{:?}",
        graph.direct("holdfast-plan")
    );
}

#[test]
fn unsafe_code_is_in_modules_named_sys() {
    let mut found = Vec::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        let in_sys_file = file.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            part == "sys.rs" || part == "sys"
        });
        // holdfast-init has no libc below it: it is the sys module of the runtime as a whole.
        let is_init = file.starts_with(place::repository().join("init/init"));
        if in_sys_file || is_init {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            let opens = code.contains("unsafe {")
                || code.contains("unsafe fn")
                || code.contains("unsafe impl");
            let of_this_test = file.ends_with("tests/house.rs");
            if opens && !of_this_test && !in_sys_module(&text, number) {
                found.push(format!(
                    "{}:{}: {}",
                    file.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(
        found.is_empty(),
        "unsafe outside of a module named sys:\n{}",
        found.join("\n")
    );
}

/// Whether a line lies in an inline `mod sys { … }`: its closing brace, in the first column, is
/// after the line.
fn in_sys_module(text: &str, line: usize) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    let Some(start) = lines[..line]
        .iter()
        .rposition(|l| l.trim_end().ends_with("mod sys {"))
    else {
        return false;
    };
    let indent = lines[start].len() - lines[start].trim_start().len();
    let closing = format!("{}}}", " ".repeat(indent));
    !lines[start..line].contains(&closing.as_str())
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut found = Vec::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            if !code.contains("unsafe {") || file.ends_with("tests/house.rs") {
                continue;
            }
            let before = &lines[number.saturating_sub(12)..number];
            if !before.iter().any(|l| l.contains("SAFETY:")) && !line.contains("SAFETY:") {
                found.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    assert!(
        found.is_empty(),
        "unsafe without a SAFETY line:\n{}",
        found.join("\n")
    );
}

/// The attributes `allow` and `expect` of a file outside of its tests, with their lines.
fn exceptions(text: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines.iter().position(|line| line.trim() == "#[cfg(test)]");
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate().take(tests.unwrap_or(lines.len())) {
        let code = line.trim_start();
        let starts = ["#[allow(", "#![allow(", "#[expect(", "#![expect("];
        if starts.iter().any(|start| code.starts_with(start)) {
            let rest = &lines[number..];
            let end = rest.iter().position(|line| line.contains(")]")).unwrap();
            found.push((number + 1, rest[..=end].join(" ")));
        }
    }
    found
}

#[test]
fn every_exception_from_a_lint_says_why() {
    let mut found = Vec::new();
    for file in sources() {
        let is_test = file.components().any(|part| part.as_os_str() == "tests")
            || file.to_string_lossy().ends_with("tests.rs");
        if is_test {
            continue;
        }
        for (line, attribute) in exceptions(&fs::read_to_string(&file).unwrap()) {
            // That unsafe code is where it may be is another rule.
            let is_sys = attribute.contains("(unsafe_code)");
            if !is_sys && !attribute.contains("reason = ") && !attribute.contains("// ") {
                found.push(format!("{}:{line}: {attribute}", file.display()));
            }
        }
    }
    assert!(found.is_empty(), "without a reason:\n{}", found.join("\n"));
}

#[test]
fn exceptions_are_found() {
    let text = "#![allow(a)]\n#[expect(\n  b,\n  reason = \"c\"\n)]\nfn d() {}\n\
                #[cfg(test)]\nmod tests {\n    #![allow(e)]\n}\n";
    let found = exceptions(text);
    let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 2]);
    assert!(found[1].1.contains("reason = "));
}

/// The lines of a table of a `Cargo.toml`.
fn table(manifest: &str, name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(place::repository().join(manifest)).unwrap();
    let lines = text.lines().skip_while(|line| *line != name).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// `clippy.toml` allows it in tests of all crates; this is for the rest of the harness.
#[test]
fn only_the_harness_may_fail_by_panicking() {
    for kind in ["rust", "clippy"] {
        let everybody = table("Cargo.toml", &format!("[workspace.lints.{kind}]"));
        let harness = table("integration/Cargo.toml", &format!("[lints.{kind}]"));
        assert!(!harness.is_empty() && harness.is_subset(&everybody));
        for missing in everybody.difference(&harness) {
            let panics = ["unwrap_used", "expect_used", "panic"];
            assert!(
                panics.iter().any(|lint| missing.starts_with(lint)),
                "{missing}"
            );
        }
    }
}

/// What a document says is shown by `file::test` is shown by it.
#[test]
fn tests_that_documents_name_are_there() {
    let tests = place::repository().join("integration/tests");
    let mut named = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let Some((file, test)) = name.split_once("::") else {
                continue;
            };
            let Ok(mut source) = fs::read_to_string(tests.join(file).with_extension("rs")) else {
                continue;
            };
            let mut parts = Vec::new();
            if tests.join(file).is_dir() {
                collect(&tests.join(file), "rs", &mut parts);
            }
            for part in parts {
                source += &fs::read_to_string(part).unwrap();
            }
            assert!(
                source.contains(&format!("fn {test}(")),
                "{} names {name}, which is not there",
                document.display()
            );
            named += 1;
        }
    }
    assert!(named > 50, "only {named} tests are named: are they found?");
}

/// Markdown, and the tests, whose heads have tables.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![place::repository().join("README.md")];
    for folder in FOLDERS.iter().chain(&["packaging"]) {
        collect(&place::repository().join(folder), "md", &mut found);
    }
    collect(
        &place::repository().join("integration/tests"),
        "rs",
        &mut found,
    );
    found
}

/// Where our sources are.
const FOLDERS: [&str; 4] = ["seccomp", "init", "shim", "integration"];

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        collect(&place::repository().join(folder), "rs", &mut found);
    }
    assert!(found.len() > 10, "sources not found");
    found
}

fn collect(folder: &Path, wanted: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, wanted, found);
        } else if path
            .extension()
            .is_some_and(|extension| extension == wanted)
        {
            found.push(path);
        }
    }
}
