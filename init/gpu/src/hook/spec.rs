//! The parts of `config.json` that the hook reads, with the hook's own tolerance: unknown fields are fine, known ones
//! have their types.

use crate::image::{Image, InvalidVariable, Mount};
use crate::json::{self, Json};
use crate::version::Version;

/// Why a specification cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON, or a field has another type.
    #[error(transparent)]
    Json(#[from] json::Error),
    /// A field has to be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The environment.
    #[error(transparent)]
    Variable(#[from] InvalidVariable),
}

/// What the hook wants to know.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) image: Image,
    /// `root.path`; empty when it is not there.
    pub(super) root: String,
}

/// The capability that makes a container privileged.
const SYS_ADMIN: &str = "CAP_SYS_ADMIN";

pub(super) fn read(bytes: &[u8]) -> Result<Spec, Error> {
    let json = Json::first(bytes)?;
    if json != Json::Null {
        json.object("the specification")?;
    }
    // Types first, because the original's decoder sees them before it looks for what is missing.
    let version = json
        .get("ociVersion")
        .map(|value| value.text("ociVersion"))
        .transpose()?;
    let process = object(&json, "process")?;
    let env = match process.and_then(|process| process.get("env")) {
        Some(env) => env.texts("process.env")?,
        None => Vec::new(),
    };
    let root = object(&json, "root")?;
    let path = match root.and_then(|root| root.get_plain("path")) {
        Some(path) => path.text("root.path")?.to_owned(),
        None => String::new(),
    };
    let mounts = mounts(&json)?;

    let version = version.ok_or(Error::Missing("ociVersion"))?;
    let process = process.ok_or(Error::Missing("process"))?;
    root.ok_or(Error::Missing("root"))?;
    let privileged = privileged(version, process.get("capabilities"))?;
    let mut image = Image::strict(env)?;
    image.mounts = mounts;
    image.privileged = privileged;
    Ok(Spec { image, root: path })
}

fn object<'a>(json: &'a Json, key: &'static str) -> Result<Option<&'a Json>, Error> {
    let Some(value) = json.get(key) else {
        return Ok(None);
    };
    value.object(key)?;
    Ok(Some(value))
}

fn mounts(json: &Json) -> Result<Vec<Mount>, Error> {
    let Some(list) = json.get("mounts") else {
        return Ok(Vec::new());
    };
    let mut mounts = Vec::new();
    for entry in list.array("mounts")? {
        if *entry != Json::Null {
            entry.object("an entry of mounts")?;
        }
        let text = |key: &str, field| {
            entry
                .get_plain(key)
                .map_or(Ok(""), |value| value.text(field))
        };
        text("type", "mounts.type")?;
        if let Some(options) = entry.get("options") {
            options.texts("mounts.options")?;
        }
        mounts.push(Mount {
            source: text("source", "mounts.source")?.to_owned(),
            destination: text("destination", "mounts.destination")?.to_owned(),
        });
    }
    Ok(mounts)
}

/// Whether the bounding set has [`SYS_ADMIN`]. Between two early versions of the specification there was but one set, a
/// plain list.
fn privileged(version: &str, capabilities: Option<&Json>) -> Result<bool, Error> {
    const FIELD: &str = "process.capabilities";
    let Some(capabilities) = capabilities else {
        return Ok(false);
    };
    if Version::had_one_capability_set(version) {
        return Ok(capabilities.texts(FIELD)?.contains(&SYS_ADMIN));
    }
    capabilities.object(FIELD)?;
    let mut privileged = false;
    for (set, field) in [
        ("bounding", "process.capabilities.bounding"),
        ("effective", "process.capabilities.effective"),
        ("inheritable", "process.capabilities.inheritable"),
        ("permitted", "process.capabilities.permitted"),
        ("ambient", "process.capabilities.ambient"),
    ] {
        let Some(list) = capabilities.get(set) else {
            continue;
        };
        let list = list.texts(field)?;
        privileged |= set == "bounding" && list.contains(&SYS_ADMIN);
    }
    Ok(privileged)
}
