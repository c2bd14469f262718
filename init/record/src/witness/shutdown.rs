//! Whether the node is being shut down.

use std::path::Path;

/// What says so; none if nothing does. `root` is `/`, or what a test has put in its place.
///
/// At the end of a shutdown systemd replaces itself by `systemd-shutdown`, which ends every process that is left. Before
/// that, `/run/nologin` keeps people from logging in: it is written by systemd-user-sessions and by shutdown(8) (and is
/// there early at boot, too, when nothing runs yet that could end).
#[must_use]
pub fn node_is_stopping(root: &Path) -> Option<String> {
    let init = std::fs::read_to_string(root.join("proc/1/comm")).unwrap_or_default();
    if init.trim() == "systemd-shutdow" {
        return Some("pid 1 is systemd-shutdown".to_owned());
    }
    for flag in ["run/systemd/shutdown/scheduled", "run/nologin"] {
        if root.join(flag).exists() {
            return Some(format!("/{flag} exists"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sign_of_it_is_seen_and_named() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("proc/1/comm", "systemd\n");
        assert_eq!(node_is_stopping(root.path()), None);
        put("run/nologin", "System is going down.\n");
        assert_eq!(
            node_is_stopping(root.path()).unwrap(),
            "/run/nologin exists"
        );
        put("proc/1/comm", "systemd-shutdow\n");
        let said = node_is_stopping(root.path()).unwrap();
        assert!(said.contains("systemd-shutdown"), "{said}");
    }
}
