//! The options of `checkpoint` and `restore`.

use holdfast_record::ContainerId;
use lexopt::{Arg, Parser};

use super::commands::{Ids, some_path};
use super::global::{flag, path, text, usage};
use crate::error::{Error, Result};
use crate::verb::checkpoint::{self, CgroupsMode, Common};
use crate::verb::restore;

/// Reads the options of `checkpoint`.
pub(super) fn checkpoint(parser: &mut Parser) -> Result<(ContainerId, checkpoint::Options)> {
    let mut options = checkpoint::Options::default();
    let mut ids = Ids::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Value(value) => ids.push(value)?,
            Arg::Long("parent-path") => options.parent_path = some_path(parser)?,
            Arg::Long("leave-running") => options.leave_running = flag(parser)?,
            Arg::Long("pre-dump") => options.pre_dump = flag(parser)?,
            Arg::Long("tcp-skip-in-flight") => options.tcp_skip_in_flight = flag(parser)?,
            Arg::Long("link-remap") => options.link_remap = flag(parser)?,
            Arg::Long("status-fd") => options.status_fd = status_fd(&text(parser)?)?,
            Arg::Long("page-server") => options.page_server = page_server(&text(parser)?)?,
            Arg::Long(name) => {
                let name = name.to_owned();
                common(&mut options.common, &name, parser)?;
            }
            other @ Arg::Short(_) => return Err(usage(other.unexpected())),
        }
    }
    Ok((ids.one()?, options))
}

/// Reads the options of `restore`.
pub(super) fn restore(parser: &mut Parser) -> Result<(ContainerId, restore::Options)> {
    let mut options = restore::Options::default();
    options.create.bundle = ".".into();
    let mut ids = Ids::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Value(value) => ids.push(value)?,
            Arg::Short('b') | Arg::Long("bundle") => options.create.bundle = path(parser)?,
            Arg::Long("console-socket") => options.create.console_socket = some_path(parser)?,
            Arg::Long("pidfd-socket") => options.create.pidfd_socket = some_path(parser)?,
            Arg::Long("pid-file") => options.create.pid_file = some_path(parser)?,
            Arg::Short('d') | Arg::Long("detach") => options.detach = flag(parser)?,
            // criu makes the root as the images have it; we are never a subreaper.
            Arg::Long("no-pivot" | "no-subreaper") => drop(flag(parser)?),
            Arg::Long("lsm-profile") => options.lsm_profile = Some(text(parser)?),
            Arg::Long("lsm-mount-context") => options.lsm_mount_context = Some(text(parser)?),
            Arg::Long(name) => {
                let name = name.to_owned();
                common(&mut options.common, &name, parser)?;
            }
            other @ Arg::Short(_) => return Err(usage(other.unexpected())),
        }
    }
    Ok((ids.one()?, options))
}

fn common(options: &mut Common, name: &str, parser: &mut Parser) -> Result<()> {
    match name {
        "image-path" => options.image_path = some_path(parser)?,
        "work-path" => options.work_path = some_path(parser)?,
        "tcp-established" => options.tcp_established = flag(parser)?,
        "ext-unix-sk" => options.ext_unix_sk = flag(parser)?,
        "shell-job" => options.shell_job = flag(parser)?,
        "file-locks" => options.file_locks = flag(parser)?,
        "auto-dedup" => options.auto_dedup = flag(parser)?,
        "lazy-pages" => options.lazy_pages = flag(parser)?,
        "manage-cgroups-mode" => {
            let mode = text(parser)?;
            options.cgroups = (!mode.is_empty())
                .then(|| CgroupsMode::named(&mode))
                .transpose()?;
        }
        "empty-ns" => match text(parser)?.as_str() {
            // It always is: what is in there is not ours to write down.
            "network" => {}
            other => {
                return Err(Error::Usage(format!(
                    "--empty-ns {other:?}: only network can be empty"
                )));
            }
        },
        other => return Err(Error::Usage(format!("invalid option '--{other}'"))),
    }
    Ok(())
}

/// -1 is "none", the default of runc.
fn status_fd(text: &str) -> Result<Option<i32>> {
    let wrong = || {
        Error::Usage(format!(
            "--status-fd {text:?} is not the number of an open descriptor"
        ))
    };
    match text.parse::<i32>().map_err(|_| wrong())? {
        -1 => Ok(None),
        fd if fd >= 0 && nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).is_ok() => {
            Ok(Some(fd))
        }
        _ => Err(wrong()),
    }
}

/// `ADDRESS:PORT`; an empty value, as go-runc may pass it, is "none".
fn page_server(text: &str) -> Result<Option<(String, u16)>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parts = text
        .rsplit_once(':')
        .and_then(|(address, port)| Some((address.to_owned(), port.parse().ok()?)))
        .filter(|(address, _)| !address.is_empty());
    match parts {
        Some(server) => Ok(Some(server)),
        None => Err(Error::Usage(format!(
            "--page-server {text:?} is not ADDRESS:PORT of the page server"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        for (words, told) in [
            (
                &["--manage-cgroups-mode", "loose", "box"][..],
                "--manage-cgroups-mode",
            ),
            (&["--empty-ns", "pid", "box"], "--empty-ns"),
            (&["--status-fd", "987654", "box"], "--status-fd"),
            (&["--page-server", "nowhere", "box"], "--page-server"),
            (&["--nonsense", "box"], "--nonsense"),
        ] {
            let error = checkpoint(&mut Parser::from_args(words)).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn what_go_runc_passes_is_read() {
        let words = [
            "--image-path",
            "/i",
            "--work-path",
            "/w",
            "--page-server",
            "[::1]:27",
            "--status-fd",
            "1",
            "--empty-ns",
            "network",
            "--manage-cgroups-mode",
            "strict",
            "--pre-dump",
            "box",
        ];
        let (id, options) = checkpoint(&mut Parser::from_args(words)).unwrap();
        assert_eq!(id.as_str(), "box");
        assert_eq!(options.page_server, Some(("[::1]".into(), 27)));
        assert_eq!(options.status_fd, Some(1));
        assert!(options.pre_dump);
        assert_eq!(options.common.cgroups, Some(CgroupsMode::Strict));
    }
}
