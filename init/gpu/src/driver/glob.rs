//! File name patterns with `*` and `?`, as the shell has them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Whether `name` matches `pattern`. Both are single path components.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when the match fails: after the last star, one more byte taken by it.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            Some(_) | None => match retry {
                Some((star, taken)) => {
                    p = star;
                    n = taken + 1;
                    retry = Some((star, n));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// The paths below `root` that match `pattern`, sorted in each directory. `root` is taken literally.
pub(crate) fn expand(root: &Path, pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    for component in pattern.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        if name
            .as_bytes()
            .iter()
            .any(|byte| matches!(byte, b'*' | b'?'))
        {
            found = found.iter().flat_map(|dir| children(dir, name)).collect();
        } else {
            for path in &mut found {
                path.push(name);
            }
            found.retain(|path| fs::symlink_metadata(path).is_ok());
        }
    }
    found
}

fn children(dir: &Path, pattern: &OsStr) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<OsString> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| matches(pattern.as_bytes(), name.as_bytes()))
        .collect();
    names.sort();
    names.into_iter().map(|name| dir.join(name)).collect()
}
