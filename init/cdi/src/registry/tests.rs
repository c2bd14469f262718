use std::path::PathBuf;

use super::*;

struct Dirs {
    root: tempfile::TempDir,
}

impl Dirs {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, dir: &str) -> PathBuf {
        let path = self.root.path().join(dir);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, dir: &str, name: &str, text: &str) -> PathBuf {
        let path = self.path(dir).join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn spec(&self, dir: &str, name: &str, device: &str, env: &str) -> PathBuf {
        let text = format!(
            "cdiVersion: 0.5.0\nkind: a.b/c\ncontainerEdits: {{env: [SPEC={env}]}}\n\
             devices: [{{name: {device}, containerEdits: {{env: [{env}=1]}}}}]\n"
        );
        self.file(dir, name, &text)
    }
}

#[test]
fn a_file_is_applied_once_before_its_first_device() {
    let dirs = Dirs::new();
    let text = "cdiVersion: 0.5.0\nkind: a.b/c\ncontainerEdits: {env: [S=1]}\ndevices:\n\
                - {name: x, containerEdits: {env: [X=1]}}\n- {name: y1, containerEdits: {env: [Y=1]}}\n";
    dirs.file("one", "a.yaml", text);
    let registry = Registry::scan(&[dirs.path("one")]);
    assert_eq!(registry.problems(), []);
    let edits = registry.resolve(&["a.b/c=y1", "a.b/c=x"]).unwrap();
    assert_eq!(edits.env, ["S=1", "Y=1", "X=1"]);
}

#[test]
fn a_later_folder_wins() {
    let dirs = Dirs::new();
    dirs.spec("one", "a.yaml", "x", "LOW");
    dirs.spec("two", "a.yaml", "x", "HIGH");
    let registry = Registry::scan(&[dirs.path("one"), dirs.path("two")]);
    assert_eq!(
        registry.resolve(&["a.b/c=x"]).unwrap().env,
        ["SPEC=HIGH", "HIGH=1"]
    );
    assert_eq!(registry.problems(), []);
}

#[test]
fn equal_priority_is_a_conflict_even_above_a_lower_one() {
    let dirs = Dirs::new();
    dirs.spec("one", "z.yaml", "x", "LOW");
    let first = dirs.spec("two", "a.yaml", "x", "A");
    let second = dirs.spec("two", "b.yaml", "x", "B");
    let registry = Registry::scan(&[dirs.path("one"), dirs.path("two")]);
    let error = registry.resolve(&["a.b/c=x"]).unwrap_err();
    assert_eq!(error.devices, ["a.b/c=x"]);
    let said = error.to_string();
    assert!(said.contains(first.to_str().unwrap()), "{said}");
    assert!(said.contains(second.to_str().unwrap()), "{said}");
}

#[test]
fn a_broken_file_is_remembered_and_hides_nothing() {
    let dirs = Dirs::new();
    let broken = dirs.file("one", "a.yaml", "kind: [\n");
    dirs.spec("one", "b.json", "x", "OK");
    let registry = Registry::scan(&[dirs.path("one"), dirs.path("one").join("missing")]);
    assert!(registry.resolve(&["a.b/c=x"]).is_ok());
    assert_eq!(registry.problems().len(), 1);
    let said = registry
        .resolve(&["a.b/c=none", "a.b/c=x", "what"])
        .unwrap_err()
        .to_string();
    assert!(
        said.starts_with("unresolvable CDI devices a.b/c=none, what; "),
        "{said}"
    );
    assert!(said.contains(broken.to_str().unwrap()), "{said}");
    assert!(said.contains("known devices: a.b/c=x"), "{said}");
}

#[test]
fn only_yaml_and_json_and_no_folders() {
    let dirs = Dirs::new();
    dirs.spec("one", "a.txt", "x", "A");
    dirs.spec("one", "a.yml", "x", "A");
    dirs.spec("one/sub", "a.yaml", "x", "A");
    dirs.path("one/dir.yaml");
    let registry = Registry::scan(&[dirs.path("one")]);
    assert_eq!(registry.files().count(), 0);
    assert_eq!(registry.problems(), []);
}

#[test]
fn a_pipe_does_not_stop_the_scan() {
    let dirs = Dirs::new();
    let pipe = dirs.path("one").join("p.yaml");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let registry = Registry::scan(&[dirs.path("one")]);
    assert!(matches!(
        registry.problems()[0].kind,
        ProblemKind::Unreadable(_)
    ));
}
