//! `tmpcopyup`: a tmpfs that starts with what it covers.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::json;

on_runtimes! {
    files_folders_and_links_are_there: holdfast runc crun;
    changes_stay_in_the_tmpfs: holdfast runc crun;
    owner_mode_and_times_are_kept: holdfast;
    set_user_id_and_capabilities_are_kept: holdfast;
    the_folder_itself_keeps_its_mode_unless_one_is_given: holdfast;
    a_read_only_copy: holdfast;
    a_folder_that_is_missing_is_made: holdfast runc crun;
    what_an_earlier_mount_brought_is_copied: holdfast runc crun;
    many_files_and_a_large_one: holdfast runc crun;
    inside_a_user_namespace: holdfast crun;
    more_than_the_tmpfs_takes_is_an_error: holdfast;
    other_file_systems_are_refused: holdfast;
}

fn filled(scratch: &Scratch, name: &str) -> Bundle {
    let bundle = scratch.bundle(name);
    let folder = bundle.in_rootfs("srv/data");
    fs::create_dir_all(folder.join("sub/deep")).unwrap();
    fs::write(folder.join("file"), "content\n").unwrap();
    fs::write(folder.join("sub/deep/file"), "below\n").unwrap();
    fs::write(folder.join("sub/empty"), "").unwrap();
    symlink("sub/deep", folder.join("link")).unwrap();
    symlink("/no/where", folder.join("dangling")).unwrap();
    bundle
}

fn over(bundle: Bundle, options: &[&str]) -> Bundle {
    let options: Vec<&str> = ["nosuid", "tmpcopyup"]
        .into_iter()
        .chain(options.iter().copied())
        .collect();
    bundle.mount(json!({
        "destination": "/srv/data", "type": "tmpfs", "source": "tmpfs", "options": options,
    }))
}

fn files_folders_and_links_are_there(scratch: &Scratch) {
    let bundle = over(filled(scratch, "box"), &[]);
    let script = "cd /srv/data; cat file sub/deep/file link/file; wc -c <sub/empty; \
                  readlink link; readlink dangling; ls -A | wc -l; grep -c ' /srv/data .* tmpfs ' /proc/mounts \
                  /proc/self/mountinfo | tail -n 1 | cut -d: -f2";
    assert_eq!(
        scratch.run(&bundle.script(script)).ok(),
        "content\nbelow\nbelow\n0\nsub/deep\n/no/where\n4\n1\n"
    );
}

fn changes_stay_in_the_tmpfs(scratch: &Scratch) {
    let bundle = over(filled(scratch, "box"), &[]);
    let folder = bundle.in_rootfs("srv/data");
    let script = "cd /srv/data; echo more >>file; rm -r sub; touch new; cat file";
    assert_eq!(scratch.run(&bundle.script(script)).ok(), "content\nmore\n");
    assert_eq!(
        fs::read_to_string(folder.join("file")).unwrap(),
        "content\n"
    );
    assert!(folder.join("sub/deep/file").exists() && !folder.join("new").exists());
}

fn owner_mode_and_times_are_kept(scratch: &Scratch) {
    let bundle = over(filled(scratch, "box"), &[]);
    let folder = bundle.in_rootfs("srv/data");
    for (name, mode) in [("file", 0o604), ("sub", 0o2751), ("sub/deep", 0o700)] {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for name in ["file", "sub"] {
        chown(folder.join(name), Some(5), Some(6)).unwrap();
    }
    fs::set_permissions(folder.join("sub"), fs::Permissions::from_mode(0o2751)).unwrap();
    std::os::unix::fs::lchown(folder.join("dangling"), Some(7), Some(8)).unwrap();
    for name in ["file", "sub/deep", "sub", "dangling"] {
        let set = Command::new("touch")
            .args(["--no-dereference", "--date", "2001-02-03 04:05:06 UTC"])
            .arg(folder.join(name))
            .status();
        assert!(set.unwrap().success());
    }
    let script = "cd /srv/data; stat -c '%n %a %u %g %Y' file sub sub/deep dangling";
    assert_eq!(
        scratch.run(&bundle.script(script)).ok(),
        "file 604 5 6 981173106\nsub 2751 5 6 981173106\nsub/deep 700 0 0 981173106\n\
         dangling 777 7 8 981173106\n"
    );
}

fn set_user_id_and_capabilities_are_kept(scratch: &Scratch) {
    let bundle = over(filled(scratch, "box"), &[]);
    let program = bundle.in_rootfs("srv/data/program");
    fs::write(&program, "x").unwrap();
    chown(&program, Some(9), Some(9)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    // struct vfs_cap_data of version 2: permitted and effective CAP_CHOWN.
    let capability: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    sys::set_capability(&program, &capability);
    let bundle = bundle.args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    let copy = format!("/proc/{pid}/root/srv/data/program");
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode(), 0o104_755);
    assert_eq!(sys::capability(Path::new(&copy)), capability);
    scratch.end(&bundle);
}

/// `security.capability` of a file.
mod sys {
    #![allow(unsafe_code)]

    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;

    use nix::libc;

    fn c_path(path: &Path) -> CString {
        CString::new(path.as_os_str().as_bytes()).unwrap()
    }

    pub(crate) fn set_capability(path: &Path, value: &[u8]) {
        let path = c_path(path);
        let name = c"security.capability";
        // SAFETY: two strings that end with NUL, and a live array with its length.
        let done = unsafe {
            let value_at = value.as_ptr().cast();
            libc::setxattr(path.as_ptr(), name.as_ptr(), value_at, value.len(), 0)
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    pub(crate) fn capability(path: &Path) -> Vec<u8> {
        let path = c_path(path);
        let name = c"security.capability";
        let mut value = vec![0u8; 64];
        // SAFETY: two strings that end with NUL, and a live array with its length.
        let len = unsafe {
            let value_at = value.as_mut_ptr().cast();
            libc::getxattr(path.as_ptr(), name.as_ptr(), value_at, value.len())
        };
        let len = usize::try_from(len).unwrap_or_else(|_| {
            panic!("{}", std::io::Error::last_os_error());
        });
        value.truncate(len);
        value
    }
}

fn the_folder_itself_keeps_its_mode_unless_one_is_given(scratch: &Scratch) {
    for (name, options, expected) in [
        ("kept", &[][..], "1751 3 4\n"),
        ("given", &["mode=711"][..], "711 0 0\n"),
    ] {
        let bundle = over(filled(scratch, name), options);
        let folder = bundle.in_rootfs("srv/data");
        chown(&folder, Some(3), Some(4)).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1751)).unwrap();
        let ran = scratch.run(&bundle.script("stat -c '%a %u %g' /srv/data"));
        assert_eq!(ran.ok(), expected, "{name}");
    }
}

fn a_read_only_copy(scratch: &Scratch) {
    let bundle = over(filled(scratch, "box"), &["ro"]);
    let ran = scratch.run(&bundle.script("cat /srv/data/file; touch /srv/data/x"));
    assert_eq!(ran.stdout, "content\n", "{ran}");
    assert!(ran.stderr.contains("Read-only file system"), "{ran}");
}

fn a_folder_that_is_missing_is_made(scratch: &Scratch) {
    let bundle = over(scratch.bundle("box"), &[]);
    let ran = scratch.run(&bundle.script("ls -A /srv/data | wc -l"));
    assert_eq!(ran.ok(), "0\n");
}

fn what_an_earlier_mount_brought_is_copied(scratch: &Scratch) {
    let source = scratch.path("source");
    fs::create_dir_all(source.join("inner")).unwrap();
    fs::write(source.join("inner/file"), "of the volume\n").unwrap();
    let bundle = scratch.bundle("box").mount(json!({
        "destination": "/srv", "type": "bind", "source": text(&source), "options": ["bind"],
    }));
    let bundle = bundle.mount(json!({
        "destination": "/srv/inner", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"],
    }));
    let ran = scratch.run(&bundle.script("cat /srv/inner/file; echo x >/srv/inner/file"));
    assert_eq!(ran.ok(), "of the volume\n");
    let file = source.join("inner/file");
    assert_eq!(fs::read_to_string(file).unwrap(), "of the volume\n");
}

fn many_files_and_a_large_one(scratch: &Scratch) {
    let bundle = over(filled(scratch, "box"), &[]);
    let folder = bundle.in_rootfs("srv/data");
    for number in 0..400 {
        let name = format!("a-rather-long-name-of-a-file-{number:04}");
        fs::write(folder.join("sub").join(name), number.to_string()).unwrap();
    }
    let large: Vec<u8> = (0..5_000_000u32).map(|at| (at % 251) as u8).collect();
    fs::write(folder.join("large"), &large).unwrap();
    let sum = Command::new("md5sum").arg(folder.join("large")).output();
    let sum = String::from_utf8(sum.unwrap().stdout).unwrap();
    let script = "cd /srv/data; ls sub | grep -c name; cat sub/*-0399; echo; md5sum <large";
    let ran = scratch.run(&bundle.script(script));
    let expected = format!("400\n399\n{}", sum.split(' ').next().unwrap());
    assert!(ran.ok().starts_with(&expected), "{ran}");
}

fn inside_a_user_namespace(scratch: &Scratch) {
    let bundle = over(filled(scratch, "box"), &[]).user_namespace(100_000);
    let ran = scratch.run(&bundle.script("cat /srv/data/link/file; stat -c %u /srv/data/file"));
    assert_eq!(ran.ok(), "below\n0\n");
}

fn more_than_the_tmpfs_takes_is_an_error(scratch: &Scratch) {
    let bundle = over(filled(scratch, "box"), &["size=64k"]);
    fs::write(bundle.in_rootfs("srv/data/large"), vec![1; 1 << 20]).unwrap();
    let ran = scratch.run(&bundle);
    assert_ne!(ran.code(), 0, "{ran}");
    for words in ["copy the content of /srv/data", "large", "No space left"] {
        assert!(ran.stderr.contains(words), "{ran}");
    }
}

fn other_file_systems_are_refused(scratch: &Scratch) {
    let bundle = scratch.bundle("box").mount(json!({
        "destination": "/srv/data", "type": "proc", "source": "proc", "options": ["tmpcopyup"],
    }));
    let ran = scratch.run(&bundle);
    assert_ne!(ran.code(), 0, "{ran}");
    assert!(ran.stderr.contains("tmpcopyup: is for tmpfs"), "{ran}");
}
