//! Lines of `mountinfo`, `proc_pid_mountinfo(5)`.

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `major:minor` of the file system.
    pub(crate) device: String,
    /// Where, as its process sees it.
    pub(crate) point: String,
    /// `shared:1`, `master:2`, …
    pub(crate) propagation: Vec<String>,
    /// Type of the file system.
    pub(crate) kind: String,
}

/// All mounts of a text; lines that are not as they should be are left out.
pub(crate) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let point = unescape(fields.nth(1)?);
    let propagation = fields.skip(1).map(str::to_owned).collect();
    Some(Mount {
        device,
        point,
        propagation,
        kind: after.split(' ').next()?.to_owned(),
    })
}

/// Space, tab, line feed and backslash are written in octal.
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (written, meant) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        plain = plain.replace(written, meant);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_and_without_propagation() {
        let text = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw\n\
                    1 0 0:24 / / rw - overlay overlay rw\nnonsense\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            (mounts[0].device.as_str(), mounts[0].point.as_str()),
            ("98:0", "/mnt 2")
        );
        assert_eq!(mounts[0].propagation, ["master:1", "shared:7"]);
        assert_eq!(
            (mounts[1].kind.as_str(), mounts[1].propagation.len()),
            ("overlay", 0)
        );
    }
}
