//! What the words of a mount's options mean.

use nix::mount::MsFlags;

use super::OURS;
use super::idmap::Maps;

/// What the options of one mount mean to mount(2).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    /// mount(2)'s flags, propagation excepted.
    pub(super) flags: MsFlags,
    /// For a call of its own; empty for none.
    pub(super) propagation: MsFlags,
    /// What is the file system's own.
    pub(super) data: Vec<String>,
    /// The source is a file, to be mounted through a loop device.
    pub(super) image: bool,
    /// How owners are shifted.
    pub(super) maps: Maps,
}

/// Sorts the options by what they are for.
pub(super) fn parse(options: &[String]) -> Parsed {
    let mut parsed = Parsed {
        flags: MsFlags::empty(),
        propagation: MsFlags::empty(),
        data: Vec::new(),
        image: false,
        maps: Maps::default(),
    };
    for option in options {
        let (clear, flag) = match option.as_str() {
            "defaults" => continue,
            "async" => (true, MsFlags::MS_SYNCHRONOUS),
            "atime" => (true, MsFlags::MS_NOATIME),
            "bind" => (false, MsFlags::MS_BIND),
            "dev" => (true, MsFlags::MS_NODEV),
            "diratime" => (true, MsFlags::MS_NODIRATIME),
            "dirsync" => (false, MsFlags::MS_DIRSYNC),
            "exec" => (true, MsFlags::MS_NOEXEC),
            "mand" => (false, MsFlags::MS_MANDLOCK),
            "noatime" => (false, MsFlags::MS_NOATIME),
            "nodev" => (false, MsFlags::MS_NODEV),
            "nodiratime" => (false, MsFlags::MS_NODIRATIME),
            "noexec" => (false, MsFlags::MS_NOEXEC),
            "nomand" => (true, MsFlags::MS_MANDLOCK),
            "norelatime" => (true, MsFlags::MS_RELATIME),
            "nostrictatime" => (true, MsFlags::MS_STRICTATIME),
            "nosuid" => (false, MsFlags::MS_NOSUID),
            "rbind" => (false, MsFlags::MS_BIND | MsFlags::MS_REC),
            "relatime" => (false, MsFlags::MS_RELATIME),
            "remount" => (false, MsFlags::MS_REMOUNT),
            "ro" => (false, MsFlags::MS_RDONLY),
            "rw" => (true, MsFlags::MS_RDONLY),
            "strictatime" => (false, MsFlags::MS_STRICTATIME),
            "suid" => (true, MsFlags::MS_NOSUID),
            "sync" => (false, MsFlags::MS_SYNCHRONOUS),
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable"
            | "runbindable" => {
                let kind = option.strip_prefix('r').unwrap_or(option);
                let recursive = option.starts_with('r');
                let mut flag = match kind {
                    "private" => MsFlags::MS_PRIVATE,
                    "slave" => MsFlags::MS_SLAVE,
                    "shared" => MsFlags::MS_SHARED,
                    _ => MsFlags::MS_UNBINDABLE,
                };
                if recursive {
                    flag |= MsFlags::MS_REC;
                }
                parsed.propagation = flag;
                continue;
            }
            "loop" => {
                parsed.image = true;
                continue;
            }
            other => {
                if let Some(map) = other.strip_prefix("uidmap=") {
                    map.clone_into(&mut parsed.maps.uid);
                } else if let Some(map) = other.strip_prefix("gidmap=") {
                    map.clone_into(&mut parsed.maps.gid);
                } else if !other.starts_with(OURS) {
                    parsed.data.push(option.clone());
                }
                continue;
            }
        };
        if clear {
            parsed.flags.remove(flag);
        } else {
            parsed.flags.insert(flag);
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_become_flags_propagation_and_data() {
        let parsed = parse(&words(
            "rbind ro rslave nosuid suid size=1k X-containerd.x=1",
        ));
        assert_eq!(
            parsed.flags,
            MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY
        );
        assert_eq!(parsed.propagation, MsFlags::MS_SLAVE | MsFlags::MS_REC);
        assert_eq!(parsed.data, ["size=1k"]);
        assert!(parse(&words("loop ro")).image);
        let shifted = parse(&words("uidmap=0:1:2 gidmap=0:3:4 index=off"));
        let maps = ("0:1:2", "0:3:4");
        assert_eq!((shifted.maps.uid.as_str(), shifted.maps.gid.as_str()), maps);
        assert_eq!(shifted.data, ["index=off"]);
    }
}
