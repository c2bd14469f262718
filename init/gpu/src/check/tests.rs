use super::*;
use crate::config::{ChosenBy, Location};

struct Made {
    dir: tempfile::TempDir,
}

impl Made {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn check(&self, config: &str) -> Vec<Finding> {
        let root = self.dir.path().display().to_string();
        self.put("config.toml", &config.replace("ROOT", &root));
        let node = Node {
            root: self.dir.path().to_owned(),
            path: "/nonexistent".into(),
            mode: None,
            deadline: Some(Duration::from_secs(60)),
        };
        let location = Location {
            path: self.dir.path().join("config.toml"),
            chosen_by: ChosenBy::Environment,
        };
        check(&node, &location)
    }
}

fn of<'a>(findings: &'a [Finding], step: &str) -> &'a Finding {
    findings
        .iter()
        .find(|finding| finding.step == step)
        .unwrap()
}

#[test]
fn a_node_without_driver_is_told_step_by_step() {
    let made = Made::new();
    let found = made.check("[nvidia-container-cli]\nroot = \"ROOT\"\n");
    let failures: Vec<_> = found
        .iter()
        .filter(|finding| finding.level == Level::Failure)
        .map(|finding| finding.step)
        .collect();
    assert_eq!(
        failures,
        ["module", "nodes", "nodes", "libraries", "nvml", "hooks"]
    );
    assert!(
        found
            .iter()
            .all(|finding| finding.level == Level::Ok || finding.advice.is_some())
    );
    assert_eq!(of(&found, "persistence").level, Level::Warning);
}

#[test]
fn a_bad_configuration_comes_first() {
    let made = Made::new();
    let found = made.check("not toml");
    assert_eq!((found[0].step, found[0].level), ("config", Level::Failure));
    for mode in ["csv", "lgacy"] {
        let found = made.check(&format!("[nvidia-container-runtime]\nmode = \"{mode}\"\n"));
        let last = found.last().unwrap();
        assert_eq!((last.step, last.level), ("config", Level::Failure));
    }
}

#[test]
fn versions_that_differ_are_told() {
    let made = Made::new();
    made.put(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n",
    );
    made.put("usr/lib/x86_64-linux-gnu/libcuda.so.560.1", "");
    let found = made.check("[nvidia-container-cli]\nroot = \"ROOT\"\n");
    assert!(of(&found, "module").text.ends_with("550.54.15"));
    let libraries = of(&found, "libraries");
    assert_eq!(libraries.level, Level::Failure);
    assert!(libraries.text.contains("560.1") && libraries.text.contains("550.54.15"));
}

#[test]
fn stale_and_broken_cdi_files_are_told() {
    let made = Made::new();
    made.put("cdi/bad.yaml", "kind: [\n");
    made.put(
        "cdi/nvidia.yaml",
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    \
         deviceNodes: [{path: /dev/zero, type: c, major: 195, minor: 0}, {path: /dev/null}]\n",
    );
    let config = "[nvidia-container-runtime]\nmode = \"cdi\"\n[nvidia-container-runtime.modes.cdi]\nspec-dirs = [\"ROOT/cdi\"]\n";
    let found = made.check(config);
    let texts: Vec<_> = found
        .iter()
        .filter(|finding| finding.step == "cdi")
        .map(|finding| finding.text.clone())
        .collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains("bad.yaml"));
    assert!(texts[1].contains("/dev/zero is 195:0 in it and 1:5 on the node"));
}

#[test]
fn legacy_mode_wants_the_cli() {
    let made = Made::new();
    let found = made.check(
        "[nvidia-container-cli]\nroot = \"ROOT\"\n[nvidia-container-runtime]\nmode = \"legacy\"\n",
    );
    assert_eq!(of(&found, "cli").level, Level::Failure);
    assert_eq!(of(&found, "nvml").level, Level::Warning);
    made.put("tool", "");
    let found = made.check(
        "[nvidia-container-cli]\npath = \"ROOT/tool\"\n[nvidia-container-runtime]\nmode = \"legacy\"\n",
    );
    assert!(of(&found, "cli").text.contains("is no program"));
}
