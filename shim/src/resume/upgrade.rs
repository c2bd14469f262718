//! `holdfast.shim.v1.Shim`: what `holdfast shims` and `holdfast upgrade` ask of a running shim.
//!
//! Both calls carry JSON. Nothing changes before the new program has said that it reads this
//! image's slate; and when it cannot go on after all, the old one is executed again.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_shim_protos::ttrpc::proto::Code;
use serde::{Deserialize, Serialize};

use super::{image, request, slate};
use crate::fault::Fault;
use crate::reaper::Reaper;
use crate::sys::ChildSetup;
use crate::task::Shim;

/// The service's name.
pub(crate) const SERVICE: &str = "holdfast.shim.v1.Shim";
/// The word that asks a program whether it reads a format.
pub(crate) const QUESTION: &str = "can-resume";
/// How long the new program may take to say so.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What `Info` answers.
#[derive(Debug, Serialize)]
struct Info {
    version: &'static str,
    format: u32,
    pid: u32,
    namespace: String,
    containers: Vec<String>,
    /// Milliseconds since 1970.
    began: u64,
    images: u32,
    faults: u32,
    degraded: bool,
    incident: Option<String>,
    program: PathBuf,
}

/// What `Upgrade` is asked.
#[derive(Debug, Deserialize)]
struct Wanted {
    /// The program; none: the one at the path that the present one was started from.
    #[serde(default)]
    program: Option<PathBuf>,
}

/// What `Upgrade` answers; by the image that has begun meanwhile.
#[derive(Debug, Serialize, Deserialize)]
struct Upgraded {
    program: PathBuf,
    from: String,
    /// Device and inode of the program: it may have come back to the one before.
    #[serde(default)]
    file: Option<(u64, u64)>,
}

/// Which file a program is, whatever becomes of its path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(value).map_err(|error| Fault::unknown(error.to_string()))
}

/// Answers one call.
///
/// # Errors
/// `UNIMPLEMENTED`, or why an upgrade was not made: then nothing has changed.
pub(crate) async fn call(shim: &Shim, method: &str, payload: &[u8]) -> Result<Vec<u8>, Fault> {
    match method {
        "Info" => encode(&info(shim)),
        "Upgrade" => {
            if let Some(done) = request::rejoin::<Upgraded>().await {
                let done = done?;
                if done.file.is_some() && done.file != identity(Path::new("/proc/self/exe")) {
                    let what = "it was executed, could not go on from the state of this shim, and gave it back";
                    return Err(stays(&done.program, what));
                }
                return encode(&done);
            }
            let wanted: Wanted = serde_json::from_slice(payload)
                .map_err(|error| Fault::invalid(format!("upgrade: {error}")))?;
            let program = wanted.program.unwrap_or_else(installed);
            Err(upgrade(&shim.reaper, &program).await)
        }
        other => Err(Fault::unimplemented(format!("{SERVICE}/{other}"))),
    }
}

fn info(shim: &Shim) -> Info {
    let lives = image::lives();
    Info {
        version: env!("CARGO_PKG_VERSION"),
        format: slate::FORMAT,
        pid: std::process::id(),
        namespace: shim.namespace.to_string(),
        containers: shim.ids(),
        began: lives.first,
        images: lives.number,
        faults: lives.faults,
        degraded: lives.degraded,
        incident: lives.incident,
        program: installed(),
    }
}

/// Where this program lies or lay: an upgrade of the package has put another one there.
fn installed() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    match program.to_string_lossy().strip_suffix(" (deleted)") {
        Some(path) => PathBuf::from(path),
        None => program,
    }
}

/// What a program prints that can go on from a slate of this format.
pub(crate) fn yes() -> String {
    format!("holdfast shim, resumes format {}", slate::FORMAT)
}

/// Other programs may end well, too, whatever they are asked.
fn says_yes(answer: &File) -> bool {
    let mut said = [0u8; 256];
    let size = answer.read_at(&mut said, 0).unwrap_or(0);
    said.get(..size)
        .is_some_and(|said| String::from_utf8_lossy(said).trim() == yes())
}

/// The answer of a shim that goes on with the program that it has.
fn stays(program: &Path, what: &str) -> Fault {
    Fault::new(
        Code::FAILED_PRECONDITION,
        format!(
            "the shim stays as it is: {}: {what}: failed precondition",
            program.display()
        ),
    )
}

/// Goes on with `program`; comes back only with the reason why not.
async fn upgrade(reaper: &Reaper, program: &Path) -> Fault {
    let failed = |what: String| stays(program, &what);
    let file = match image::open_program(program) {
        Ok(file) => file,
        Err(error) => return failed(error.to_string()),
    };
    // The very file that is executed afterwards is asked, whatever happens to its path.
    let mut question = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let answer = match crate::sys::memory_file(c"holdfast-answer") {
        Ok(answer) => answer,
        Err(error) => return failed(error.to_string()),
    };
    let Ok(stdout) = answer.try_clone() else {
        return failed("no descriptor is left".to_owned());
    };
    question
        .args([QUESTION, &slate::FORMAT.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::null());
    let setup = ChildSetup {
        own_group: true,
        ..ChildSetup::default()
    };
    let mut child = match reaper.spawn(question, setup) {
        Ok(child) => child,
        Err(error) => return failed(format!("cannot be executed: {error}")),
    };
    match tokio::time::timeout(ANSWER_LIMIT, &mut child.ended).await {
        Ok(Ok(ended)) if ended.status.success() && says_yes(&answer) => {}
        Ok(_) => {
            return failed(format!(
                "does not read the state of this shim (format {})",
                slate::FORMAT
            ));
        }
        Err(_) => {
            crate::runtime::kill_group(&child);
            return failed(format!("did not answer within {ANSWER_LIMIT:?}"));
        }
    }
    log::info!("going on with {}", program.display());
    // What the next image answers to this request.
    let done = Upgraded {
        program: program.to_owned(),
        from: env!("CARGO_PKG_VERSION").to_owned(),
        file: identity(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))),
    };
    let asked = request::current();
    if let Some(asked) = asked {
        request::keep(asked, &Ok(done));
    }
    let error = image::upgrade(file.as_fd());
    if let Some(asked) = asked {
        super::remove(&asked.outcome_key());
    }
    failed(format!("cannot be executed: {error}"))
}
