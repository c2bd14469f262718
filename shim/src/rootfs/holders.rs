//! Who keeps a mount busy.

use std::collections::BTreeSet;
use std::path::Path;

use holdfast_record::process::Stat;

/// Most holders named.
const MAX_HOLDERS: usize = 8;

/// Who keeps a mount busy: pid, command and how.
pub(super) fn holders(mount_point: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return vec!["nobody known (/proc cannot be read)".to_owned()];
    };
    let mut found = BTreeSet::new();
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let dir = entry.path();
        let mut how = Vec::new();
        for (name, word) in [("cwd", "working directory"), ("root", "root directory")] {
            if std::fs::read_link(dir.join(name)).is_ok_and(|to| to.starts_with(mount_point)) {
                how.push(word);
            }
        }
        let open = std::fs::read_dir(dir.join("fd")).is_ok_and(|fds| {
            fds.flatten()
                .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(mount_point)))
        });
        if open {
            how.push("open file");
        }
        if !how.is_empty() {
            let comm = Stat::read(pid).map_or_else(|_| "?".to_owned(), |stat| stat.comm);
            found.insert(format!("{pid} ({comm}: {})", how.join(", ")));
        }
        if found.len() >= MAX_HOLDERS {
            break;
        }
    }
    if found.is_empty() {
        found.insert(
            "nobody in sight (a mount below it in another mount namespace, or the kernel)"
                .to_owned(),
        );
    }
    found.into_iter().collect()
}
