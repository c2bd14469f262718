//! `nvidia-container-cli`, run at the moment of the prestart hooks: the container's namespaces and mounts are there, its
//! init waits, nothing of the user's has run.

use std::ffi::{CString, NulError, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use holdfast_gpu::class::Class;
use holdfast_gpu::legacy::{self, arguments};
use holdfast_gpu::nodes;
use holdfast_record::Deadline;
use holdfast_record::process::describe;

use super::{Call, Error, search_path};
use crate::bundle::Bundle;
use crate::hooks::running::{Running, Waited};
use crate::link::Link;
use crate::sys::spawn::{Spawn, pipe, spawn};

/// Runs it, once more if it failed for something that passes.
///
/// # Errors
/// [`crate::Error::InitDied`] when the container's init ended meanwhile, whatever the CLI said; else [`Error`].
pub(crate) fn run(call: &Call, bundle: &Bundle, link: &Link) -> crate::Result<()> {
    let deadline = Deadline::after(call.limit, "give the container its GPUs");
    let command = Command::new(call, bundle, link.pid)?;
    let mut attempts = 1;
    loop {
        let error = match command.run(&deadline, link) {
            Ok(()) => break,
            Err(Failure::InitEnded) => return Err(link.died(&deadline)),
            Err(Failure::Cli(error)) => error,
        };
        // Its complaint may be no more than that init is gone.
        if ended(link) {
            log::warn!("gpu: {error}");
            return Err(link.died(&deadline));
        }
        match error {
            Error::Failed { class, .. }
                if class.is_transient() && attempts == 1 && !deadline.is_expired() =>
            {
                log::warn!("gpu: {error}; trying once more");
                attempts += 1;
            }
            Error::Failed {
                class,
                status,
                output,
                ..
            } => {
                return Err(Error::Failed {
                    class,
                    status,
                    attempts,
                    output,
                }
                .into());
            }
            other => return Err(other.into()),
        }
    }
    check(call, bundle, link).map_err(Into::into)
}

/// Whether init has ended.
fn ended(link: &Link) -> bool {
    let fds = [Some(link.pidfd.as_fd())];
    crate::sys::spawn::poll(fds, 0).is_ok_and(|[ended]| ended)
}

enum Failure {
    InitEnded,
    Cli(Error),
}

fn start(doing: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Start { doing, source }
}

/// The command as the kernel wants it.
struct Command {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
}

impl Command {
    fn new(call: &Call, bundle: &Bundle, pid: i32) -> Result<Self, Error> {
        let program = &call.program;
        let line = arguments(
            &program.path,
            &call.config,
            &call.request,
            &legacy::Call {
                debug: false,
                no_cgroups: call.no_cgroups,
                pid: u64::try_from(pid).unwrap_or(0),
                rootfs: &bundle.rootfs,
            },
        );
        log::debug!("gpu: {line:?}");
        let path = program.search_path.clone().unwrap_or_else(search_path);
        let mut env: Vec<OsString> = vec!["PATH=".into()];
        env[0].push(path);
        env.extend(call.config.cli.environment.iter().map(|entry| entry.into()));
        let text = |text: &OsStr| CString::new(text.as_bytes());
        let list = |items: &[OsString]| {
            items
                .iter()
                .map(|item| text(item))
                .collect::<Result<Vec<_>, _>>()
        };
        let made = || -> Result<Self, NulError> {
            Ok(Self {
                path: text(program.path.as_os_str())?,
                args: list(&line)?,
                env: list(&env)?,
                cwd: text(bundle.path.as_os_str())?,
            })
        };
        made().map_err(|error| start("pass an argument with a NUL byte to it")(error.into()))
    }

    /// Once.
    fn run(&self, deadline: &Deadline, link: &Link) -> Result<(), Failure> {
        let mut running = self.start().map_err(Failure::Cli)?;
        let status = match running.wait(deadline, Some(link.pidfd.as_fd())) {
            Ok(Waited::Ended(status)) => status,
            Ok(Waited::WatchedEnded) => {
                running.kill();
                return Err(Failure::InitEnded);
            }
            Ok(Waited::Expired) => {
                let process = Box::new(describe(running.pid()));
                let gone = running.kill();
                return Err(Failure::Cli(Error::TimedOut {
                    waited: deadline.limit(),
                    process,
                    gone,
                    output: running.output(),
                }));
            }
            Err(source) => {
                running.kill();
                return Err(Failure::Cli(start("wait for it")(source)));
            }
        };
        if let Some((step, source)) = running.refused() {
            return Err(Failure::Cli(start(step.doing())(source)));
        }
        let output = running.output();
        if !status.success() {
            return Err(Failure::Cli(Error::Failed {
                class: Class::of(&output.stderr),
                status,
                attempts: 1,
                output,
            }));
        }
        for line in output.stderr.lines() {
            log::info!("gpu: {}: {line}", legacy::PROGRAM);
        }
        Ok(())
    }

    fn start(&self) -> Result<Running, Error> {
        let stdin = File::open("/dev/null").map_err(start("open /dev/null for it"))?;
        let (stdout, stdout_end) = pipe().map_err(start("make a pipe for it"))?;
        let (stderr, stderr_end) = pipe().map_err(start("make a pipe for it"))?;
        let child = spawn(&Spawn {
            path: &self.path,
            args: &self.args,
            env: &self.env,
            cwd: &self.cwd,
            root_will_do: false,
            stdio: [stdin.as_fd(), stdout_end.as_fd(), stderr_end.as_fd()],
            join: None,
        })
        .map_err(start("make a process for it"))?;
        Ok(Running::new(child, stdout, stderr))
    }
}

/// Whether everything that was asked for is in the container.
fn check(call: &Call, bundle: &Bundle, link: &Link) -> Result<(), Error> {
    // The CLI may have loaded the driver, so that more is known now.
    let nodes = call
        .nodes
        .clone()
        .or_else(|_| nodes::Host::default().nodes(&call.request));
    let missing = match nodes {
        Ok(nodes) => {
            let dev = format!("/proc/{}/root{}/dev", link.pid, bundle.rootfs.display());
            let there = |name: &String| fs::symlink_metadata(Path::new(&dev).join(name)).is_ok();
            let missing = nodes.gpus.iter().filter(|name| !there(name));
            missing.map(|name| format!("/dev/{name}")).collect()
        }
        Err(nodes::Unknown::NoDriver) if call.request.devices.names == [""] => Vec::new(),
        Err(nodes::Unknown::NoDriver) => {
            vec!["driver (/proc/driver/nvidia/gpus of the node is empty)".to_owned()]
        }
        // A MIG device: which node it has is between the CLI and the driver.
        Err(nodes::Unknown::Device(_) | nodes::Unknown::Number(_)) => Vec::new(),
    };
    if missing.is_empty() {
        return Ok(());
    }
    let error = Error::Missing {
        asked: call.request.devices.names.join(","),
        missing,
    };
    if call.config.own.strict {
        return Err(error);
    }
    log::warn!("gpu: {error}");
    Ok(())
}
