//! Kubernetes' termination log: the file from which the kubelet takes a container's `terminated.message`.
//!
//! Where it is and when we write it is decided in `docs/0007-the-termination-log.md`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use holdfast_record::Reason;

/// The path in the container, where CRI passes it on.
const PATH_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";
/// The container's name in the pod, and the pod's uid, as CRI tells them.
const NAME_ANNOTATION: &str = "io.kubernetes.cri.container-name";
const UID_ANNOTATION: &str = "io.kubernetes.cri.sandbox-uid";
/// Most bytes that the kubelet reads of it (`MaxContainerTerminationMessageLength`).
const MAX_MESSAGE: usize = 4096;

/// The file on the node, from the container's annotations and its mounts as (destination, source).
///
/// containerd passes the annotation on only when it is told to, so the kubelet's own name for the file counts as well:
/// `…/pods/UID/containers/NAME/` and eight hexadecimal digits.
pub(super) fn find<'a>(
    annotations: &BTreeMap<String, String>,
    mounts: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<PathBuf> {
    let named = annotations.get(PATH_ANNOTATION);
    let folder = match (
        annotations.get(UID_ANNOTATION),
        annotations.get(NAME_ANNOTATION),
    ) {
        (Some(uid), Some(name)) if !uid.is_empty() && !name.is_empty() => {
            Some(format!("/pods/{uid}/containers/{name}"))
        }
        _ => None,
    };
    for (destination, source) in mounts {
        let is_named = named.is_some_and(|path| path == destination);
        let is_kubelets = folder.as_ref().is_some_and(|folder| {
            source.rsplit_once('/').is_some_and(|(parent, file)| {
                parent.ends_with(folder.as_str())
                    && file.len() == 8
                    && file.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
        });
        if is_named || is_kubelets {
            return Some(PathBuf::from(source));
        }
    }
    None
}

/// Whether Kubernetes would not know it otherwise: neither the container's own doing nor asked for.
pub(super) fn is_told(reason: &Reason) -> bool {
    match reason {
        Reason::OomKilled(_)
        | Reason::OomKilledChild(_)
        | Reason::SignalFromOutside { .. }
        | Reason::NodeShutdown { .. } => true,
        Reason::Exited { .. }
        | Reason::Faulted { .. }
        | Reason::EndedWithContainer { .. }
        | Reason::OutlivedContainer { .. }
        | Reason::KilledByRequest { .. }
        | Reason::ExitedOnRequest { .. }
        | Reason::HookFailed { .. }
        | Reason::HookTimedOut { .. }
        | Reason::CreateStepFailed { .. }
        | Reason::CreateTimedOut(_)
        | Reason::StartFailed { .. }
        | Reason::ExecFailed { .. }
        | Reason::ExecTimedOut(_)
        | Reason::RuntimeFailed { .. }
        | Reason::RuntimeKilled { .. }
        | Reason::RuntimePanicked(_)
        | Reason::CleanupIncomplete { .. }
        | Reason::ShimFinished
        | Reason::ShimPanicked(_)
        | Reason::ShimCrashed { .. }
        | Reason::ShimGone { .. }
        | Reason::ShimStalled { .. }
        | Reason::ShimKilled { .. }
        | Reason::ShimStopped { .. }
        | Reason::GpuStageFailed { .. }
        | Reason::GpuStageTimedOut(_)
        | Reason::Unknown { .. } => false,
    }
}

/// Writes `message`, unless the container has written something itself.
///
/// The container's processes can write the file but not replace it: it is a mount there. It is opened without following
/// a link all the same, and never waits, should it be a fifo.
pub(super) fn write(path: &Path, message: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > 0 {
        return Ok(());
    }
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    file.write_all(message.get(..end).unwrap_or_default().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn it_is_found_by_the_annotation_or_by_the_kubelets_name_and_not_otherwise() {
        let mounts = [
            ("/etc/hosts", "/var/lib/kubelet/pods/u-1/etc-hosts"),
            ("/data", "/var/lib/kubelet/pods/u-1/volumes/x/0123abcd"),
            ("/other", "/var/lib/kubelet/pods/u-1/containers/main/data"),
            (
                "/dev/termination-log",
                "/k/pods/u-1/containers/main/0123abcd",
            ),
        ];
        let find = |pairs: &[(&str, &str)]| find(&annotations(pairs), mounts.into_iter());
        let log = Some(PathBuf::from("/k/pods/u-1/containers/main/0123abcd"));
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[(PATH_ANNOTATION, "/dev/termination-log")]), log);
        assert_eq!(find(&[(PATH_ANNOTATION, "/not/mounted")]), None);
        assert_eq!(
            find(&[(UID_ANNOTATION, "u-1"), (NAME_ANNOTATION, "main")]),
            log
        );
        assert_eq!(
            find(&[(UID_ANNOTATION, "u-1"), (NAME_ANNOTATION, "side")]),
            None
        );
        assert_eq!(find(&[(UID_ANNOTATION, ""), (NAME_ANNOTATION, "")]), None);
    }

    #[test]
    fn what_the_container_wrote_stays_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0123abcd");
        assert!(write(&path, "x").is_err(), "it is never made");
        std::fs::write(&path, "").unwrap();
        write(&path, &"é".repeat(4000)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "é".repeat(2048));
        write(&path, "again").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(write(&link, "x").is_err());
    }
}
