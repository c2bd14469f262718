//! Paths and program search as Go's `path/filepath` and `os/exec` do them: lexically, without asking the file system.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directories in which programs are looked for besides those of `PATH`.
pub const DEFAULT_PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The shortest path that means the same without symbolic links: `filepath.Clean`. Empty becomes `.`.
#[must_use]
pub fn clean(path: &OsStr) -> PathBuf {
    let bytes = path.as_bytes();
    let rooted = bytes.first() == Some(&b'/');
    let mut kept: Vec<&[u8]> = Vec::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match kept.last() {
                Some(last) if *last != b".." => drop(kept.pop()),
                None if rooted => {}
                Some(_) | None => kept.push(part),
            },
            name => kept.push(name),
        }
    }
    let joined = kept.join(&b'/');
    let mut out = Vec::with_capacity(joined.len() + 1);
    if rooted {
        out.push(b'/');
    }
    out.extend(joined);
    if out.is_empty() {
        out.push(b'.');
    }
    OsString::from_vec(out).into()
}

/// `base` and `path`, cleaned, whether or not `path` is absolute: `filepath.Join`. Empty parts are left out.
#[must_use]
pub fn join(base: &OsStr, path: &OsStr) -> PathBuf {
    let mut whole = OsString::new();
    for part in [base, path].into_iter().filter(|part| !part.is_empty()) {
        if !whole.is_empty() {
            whole.push("/");
        }
        whole.push(part);
    }
    if whole.is_empty() {
        PathBuf::new()
    } else {
        clean(&whole)
    }
}

/// `path` as seen from the directory `cwd`: `filepath.Abs`.
#[must_use]
pub fn absolute(cwd: &Path, path: &OsStr) -> PathBuf {
    if path.as_bytes().first() == Some(&b'/') {
        clean(path)
    } else {
        join(cwd.as_os_str(), path)
    }
}

/// The directories for a search: those of `path`, then those of [`DEFAULT_PATH`] that are not among them; with a driver
/// root other than `/` all of them below the root first.
#[must_use]
pub fn search_path(path: Option<&OsStr>, root: &str) -> Vec<OsString> {
    let mut dirs: Vec<OsString> = match path {
        Some(path) if !path.is_empty() => path
            .as_bytes()
            .split(|byte| *byte == b':')
            .map(|dir| OsStr::from_bytes(dir).to_owned())
            .collect(),
        Some(_) | None => Vec::new(),
    };
    let given = dirs.clone();
    for dir in DEFAULT_PATH {
        if !given.iter().any(|have| *have == dir) {
            dirs.push(dir.into());
        }
    }
    if matches!(root, "" | "/") {
        return dirs;
    }
    let below = dirs
        .iter()
        .map(|dir| join(root.as_ref(), dir).into_os_string());
    below.chain(dirs.iter().cloned()).collect()
}

/// The first executable file called `name` in `dirs`. One in a relative directory is not taken, and ends the search.
#[must_use]
pub fn find_program(name: &str, dirs: &[OsString]) -> Option<PathBuf> {
    let found = dirs.iter().find_map(|dir| {
        let path = if dir.is_empty() {
            PathBuf::from(name)
        } else {
            join(dir, name.as_ref())
        };
        is_executable(&path).then_some(path)
    })?;
    found.is_absolute().then_some(found)
}

/// Whether `path` is a file with an executable bit.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_as_go_does() {
        let cases = [
            ("", "."),
            ("/", "/"),
            ("//a///b/", "/a/b"),
            ("/../a", "/a"),
            ("../a/..", ".."),
            ("a/../..", ".."),
            ("./a/./b/../c", "a/c"),
            ("/var/run/x/./0/../1//", "/var/run/x/1"),
        ];
        for (path, expected) in cases {
            assert_eq!(clean(path.as_ref()), Path::new(expected), "{path}");
        }
        assert_eq!(
            absolute(Path::new("/work"), "x/../rootfs".as_ref()),
            Path::new("/work/rootfs")
        );
        assert_eq!(
            absolute(Path::new("/work"), "".as_ref()),
            Path::new("/work")
        );
        assert_eq!(
            join("/drv".as_ref(), "/usr/bin".as_ref()),
            Path::new("/drv/usr/bin")
        );
    }

    #[test]
    fn missing_default_directories_are_appended() {
        let text = |path: Option<&str>, root: &str| {
            let dirs = search_path(path.map(OsStr::new), root);
            dirs.join(OsStr::new(":")).into_string().unwrap()
        };
        assert_eq!(
            text(Some("/opt:/usr/bin"), ""),
            "/opt:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin"
        );
        assert_eq!(
            text(Some(""), "/"),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        );
        assert!(text(Some("/opt"), "/drv").starts_with("/drv/opt:/drv/usr/local/sbin:"));
        assert!(
            text(None, "/drv").ends_with(
                ":/drv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            )
        );
    }

    #[test]
    fn finds_only_what_can_be_executed() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, tool) = (dir.path().join("a"), dir.path().join("b"));
        for at in [&plain, &tool] {
            fs::create_dir(at).unwrap();
            fs::write(at.join("tool"), "").unwrap();
        }
        fs::set_permissions(tool.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let dirs = [plain.into_os_string(), tool.clone().into_os_string()];
        assert_eq!(find_program("tool", &dirs), Some(tool.join("tool")));
        assert_eq!(find_program("other", &dirs), None);
        // Cargo runs tests in the crate's directory, where this is a file; it is found by a relative path only.
        assert_eq!(find_program("Cargo.toml", &[OsString::new()]), None);
    }
}
