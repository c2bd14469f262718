//! Mount options: words to flags.
//!
//! Sources: mount(8), runtime-spec `config.md#linux-mount-options`.

/// `MOUNT_ATTR_*` of mount_setattr(2), from linux/mount.h.
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Ignore set-user-ID.
    pub const NOSUID: u64 = 0x2;
    /// No device nodes.
    pub const NODEV: u64 = 0x4;
    /// No execution.
    pub const NOEXEC: u64 = 0x8;
    /// The bits that choose how access times are kept.
    pub const ATIME: u64 = 0x70;
    /// Update relative to modification.
    pub const RELATIME: u64 = 0x0;
    /// Never update.
    pub const NOATIME: u64 = 0x10;
    /// Always update.
    pub const STRICTATIME: u64 = 0x20;
    /// Never update for directories.
    pub const NODIRATIME: u64 = 0x80;
    /// Do not follow symlinks.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// What a list of options means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// `MS_*` for mount(2), without bind, remount and propagation.
    pub flags: u64,
    /// `Some(recursive)` for a bind mount.
    pub bind: Option<bool>,
    /// Propagation `MS_*` with `MS_REC`; 0 when nothing was asked.
    pub propagation: u64,
    /// `MOUNT_ATTR_*` to set on the mount.
    pub attr_set: u64,
    /// `MOUNT_ATTR_*` to clear on the mount.
    pub attr_clr: u64,
    /// The same, for it and all mounts below.
    pub rec_attr_set: u64,
    /// The same, for it and all mounts below.
    pub rec_attr_clr: u64,
    /// `Some(recursive)` for an id-mapped mount.
    pub idmap: Option<bool>,
    /// `tmpcopyup`: what a tmpfs covers is copied into it.
    pub copy_up: bool,
    /// `copy-symlink`: a source that is a symlink is made anew, not followed.
    pub copy_symlink: bool,
    /// `src-nofollow` (crun): a source that is a symlink is what is mounted.
    pub source_nofollow: bool,
    /// `dest-nofollow` (crun): a destination that is a symlink is what is mounted on.
    pub target_nofollow: bool,
    /// What the file system itself understands.
    pub data: Vec<String>,
}

/// name, `MS_*`, `MOUNT_ATTR_*`, whether the word clears it.
const FLAGS: &[(&str, u64, u64, bool)] = &[
    ("ro", libc::MS_RDONLY, attr::RDONLY, false),
    ("rw", libc::MS_RDONLY, attr::RDONLY, true),
    ("nosuid", libc::MS_NOSUID, attr::NOSUID, false),
    ("suid", libc::MS_NOSUID, attr::NOSUID, true),
    ("nodev", libc::MS_NODEV, attr::NODEV, false),
    ("dev", libc::MS_NODEV, attr::NODEV, true),
    ("noexec", libc::MS_NOEXEC, attr::NOEXEC, false),
    ("exec", libc::MS_NOEXEC, attr::NOEXEC, true),
    ("nodiratime", libc::MS_NODIRATIME, attr::NODIRATIME, false),
    ("diratime", libc::MS_NODIRATIME, attr::NODIRATIME, true),
    ("nosymfollow", 256, attr::NOSYMFOLLOW, false),
    ("symfollow", 256, attr::NOSYMFOLLOW, true),
];

/// Access times are one choice of several, not bits: name, `MS_*`, `MOUNT_ATTR_*`.
const ATIMES: &[(&str, u64, u64)] = &[
    ("relatime", libc::MS_RELATIME, attr::RELATIME),
    ("noatime", libc::MS_NOATIME, attr::NOATIME),
    ("strictatime", libc::MS_STRICTATIME, attr::STRICTATIME),
    // Their opposites mean the kernel's default, relatime.
    ("norelatime", 0, attr::RELATIME),
    ("atime", 0, attr::RELATIME),
    ("nostrictatime", 0, attr::RELATIME),
];

/// Flags of the superblock, which mount(2) takes and a bind mount does not have.
const SUPERBLOCK: &[(&str, u64, bool)] = &[
    ("sync", libc::MS_SYNCHRONOUS, false),
    ("async", libc::MS_SYNCHRONOUS, true),
    ("dirsync", libc::MS_DIRSYNC, false),
    ("mand", libc::MS_MANDLOCK, false),
    ("nomand", libc::MS_MANDLOCK, true),
    ("silent", libc::MS_SILENT, false),
    ("loud", libc::MS_SILENT, true),
    ("iversion", libc::MS_I_VERSION, false),
    ("noiversion", libc::MS_I_VERSION, true),
    ("lazytime", libc::MS_LAZYTIME, false),
    ("nolazytime", libc::MS_LAZYTIME, true),
    ("acl", libc::MS_POSIXACL, false),
    ("noacl", libc::MS_POSIXACL, true),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("private", libc::MS_PRIVATE),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
];

/// Words that mount(8) interprets itself.
const IGNORED: &[&str] = &[
    "defaults", "remount", "auto", "noauto", "user", "nouser", "_netdev",
];

/// The propagation flags of a word.
pub fn propagation(word: &str) -> Option<u64> {
    PROPAGATION
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, flags)| *flags)
}

/// All words that are not passed to the file system, for `features`.
pub fn known_words() -> Vec<&'static str> {
    let mut words = vec![
        "bind",
        "rbind",
        "defaults",
        "remount",
        "idmap",
        "ridmap",
        "tmpcopyup",
        "copy-symlink",
        "src-nofollow",
        "dest-nofollow",
    ];
    words.extend(FLAGS.iter().map(|f| f.0));
    words.extend(ATIMES.iter().map(|f| f.0));
    words.extend(SUPERBLOCK.iter().map(|f| f.0));
    words.extend(PROPAGATION.iter().map(|f| f.0));
    words.extend(RECURSIVE.iter().map(|f| f.0));
    words.sort_unstable();
    words
}

/// name, `MOUNT_ATTR_*` to set, `MOUNT_ATTR_*` to clear; applied with `AT_RECURSIVE`.
const RECURSIVE: &[(&str, u64, u64)] = &[
    ("rro", attr::RDONLY, 0),
    ("rrw", 0, attr::RDONLY),
    ("rnosuid", attr::NOSUID, 0),
    ("rsuid", 0, attr::NOSUID),
    ("rnodev", attr::NODEV, 0),
    ("rdev", 0, attr::NODEV),
    ("rnoexec", attr::NOEXEC, 0),
    ("rexec", 0, attr::NOEXEC),
    ("rnodiratime", attr::NODIRATIME, 0),
    ("rdiratime", 0, attr::NODIRATIME),
    ("rrelatime", attr::RELATIME, attr::ATIME),
    ("rnorelatime", attr::RELATIME, attr::ATIME),
    ("rnoatime", attr::NOATIME, attr::ATIME),
    ("ratime", attr::RELATIME, attr::ATIME),
    ("rstrictatime", attr::STRICTATIME, attr::ATIME),
    ("rnostrictatime", attr::RELATIME, attr::ATIME),
    ("rnosymfollow", attr::NOSYMFOLLOW, 0),
    ("rsymfollow", 0, attr::NOSYMFOLLOW),
];

fn change(value: &mut u64, bit: u64, clears: bool) {
    if clears {
        *value &= !bit;
    } else {
        *value |= bit;
    }
}

/// Reads the options of one mount; a later word wins over an earlier one.
pub fn parse(words: &[String]) -> Options {
    let mut out = Options::default();
    for word in words {
        let word = word.as_str();
        if let Some((_, ms, bit, clears)) = FLAGS.iter().find(|f| f.0 == word) {
            change(&mut out.flags, *ms, *clears);
            change(&mut out.attr_set, *bit, *clears);
            change(&mut out.attr_clr, *bit, !*clears);
        } else if let Some((_, ms, value)) = ATIMES.iter().find(|f| f.0 == word) {
            out.flags &= !(libc::MS_RELATIME | libc::MS_NOATIME | libc::MS_STRICTATIME);
            out.flags |= ms;
            out.attr_set = (out.attr_set & !attr::ATIME) | value;
            out.attr_clr |= attr::ATIME;
        } else if let Some((_, ms, clears)) = SUPERBLOCK.iter().find(|f| f.0 == word) {
            change(&mut out.flags, *ms, *clears);
        } else if let Some((_, set, clear)) = RECURSIVE.iter().find(|f| f.0 == word) {
            out.rec_attr_set = (out.rec_attr_set & !clear) | set;
            out.rec_attr_clr = (out.rec_attr_clr & !set) | clear;
        } else if let Some(flags) = propagation(word) {
            out.propagation = flags;
        } else if word == "bind" || word == "rbind" {
            out.bind = Some(word == "rbind");
        } else if word == "idmap" || word == "ridmap" {
            out.idmap = Some(word == "ridmap");
        } else if word == "tmpcopyup" {
            out.copy_up = true;
        } else if word == "copy-symlink" {
            out.copy_symlink = true;
        } else if word == "src-nofollow" {
            out.source_nofollow = true;
        } else if word == "dest-nofollow" {
            out.target_nofollow = true;
        } else if !IGNORED.contains(&word) && !word.is_empty() {
            out.data.push(word.to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Options {
        parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_word_wins() {
        let options = parsed(&["ro", "rw", "noexec"]);
        assert_eq!(options.flags, libc::MS_NOEXEC);
        assert_eq!(options.attr_set, attr::NOEXEC);
        assert_eq!(options.attr_clr, attr::RDONLY);
    }

    #[test]
    fn access_times_exclude_each_other() {
        let options = parsed(&["noatime", "strictatime"]);
        assert_eq!(options.flags, libc::MS_STRICTATIME);
        assert_eq!(options.attr_set, attr::STRICTATIME);
        assert_eq!(options.attr_clr, attr::ATIME);
    }

    #[test]
    fn file_system_options_stay_words() {
        let options = parsed(&["nosuid", "size=65536k", "mode=755", "defaults"]);
        assert_eq!(options.data, ["size=65536k", "mode=755"]);
    }

    #[test]
    fn propagation_and_recursion_are_kept_apart() {
        let options = parsed(&["rbind", "rslave", "rro"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.propagation, libc::MS_SLAVE | libc::MS_REC);
        assert_eq!(options.rec_attr_set, attr::RDONLY);
        assert_eq!(options.attr_set, 0);
    }

    #[test]
    fn each_end_has_its_own_word() {
        let options = parsed(&["bind", "src-nofollow"]);
        assert!(options.source_nofollow && !options.target_nofollow);
        let options = parsed(&["bind", "dest-nofollow"]);
        assert!(!options.source_nofollow && options.target_nofollow);
    }
}
