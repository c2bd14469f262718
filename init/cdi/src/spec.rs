//! A CDI file.

use std::collections::HashSet;

use serde_json::Value;
use thiserror::Error;

use crate::decode::Fields;
use crate::edits::ContainerEdits;
use crate::name::{Kind, NameError, check_device};
use crate::version::Version;
use crate::yaml;

/// A checked CDI file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The version it declares.
    pub version: Version,
    /// `vendor/class` of its devices.
    pub kind: Kind,
    /// Annotations; they have no effect on a container.
    pub annotations: Vec<(String, String)>,
    /// Its devices, at least one, names unique.
    pub devices: Vec<Device>,
    /// Edits made once per container that gets any of the devices.
    pub edits: ContainerEdits,
}

/// A device of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Name within the kind.
    pub name: String,
    /// Annotations; they have no effect on a container.
    pub annotations: Vec<(String, String)>,
    /// Edits of this device.
    pub edits: ContainerEdits,
}

/// Why a text is not a usable CDI file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// It is neither YAML nor JSON.
    #[error("not YAML or JSON: {0}")]
    Syntax(String),
    /// A field is unknown, of the wrong type, or has a value that is not allowed.
    #[error("{0}")]
    Field(String),
    /// The version is missing or unknown to us.
    #[error(
        "cdiVersion {version:?} is not known (0.1.0 to 1.1.0 are): correct it, or update holdfast"
    )]
    Version {
        /// The text given.
        version: String,
    },
    /// A feature is newer than the declared version.
    #[error(
        "uses {feature}, so cdiVersion must be {needed} or later, not {declared}: regenerate the file or raise its version"
    )]
    TooOld {
        /// The version declared.
        declared: Version,
        /// The version needed.
        needed: Version,
        /// For what.
        feature: &'static str,
    },
    /// The kind or a device has no valid name.
    #[error("a name is not valid: {0}")]
    Name(NameError),
}

/// Reads and checks the text of a CDI file, YAML or JSON.
///
/// # Errors
/// The first thing that is wrong, with its place in the file.
pub fn parse(text: &str) -> Result<Spec, SpecError> {
    let value = yaml::read(text).map_err(SpecError::Syntax)?;
    if value.is_null() {
        return Err(SpecError::Field("the file is empty".to_owned()));
    }
    Spec::from_value(value)
}

impl Spec {
    /// Reads and checks a file's content that was decoded already.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn from_value(value: Value) -> Result<Self, SpecError> {
        let draft = Draft::decode(value).map_err(SpecError::Field)?;
        let Some(version) = Version::parse(&draft.version) else {
            return Err(SpecError::Version {
                version: draft.version,
            });
        };
        let this = Self {
            version,
            kind: Kind::parse(&draft.kind).map_err(SpecError::Name)?,
            annotations: draft.annotations,
            devices: draft.devices,
            edits: draft.edits,
        };
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<(), SpecError> {
        let (needed, feature) = Version::needed_by(self);
        // 0.1 and 0.2 are known and always too old: the reference library asks for 0.3 at least.
        if needed > self.version {
            return Err(SpecError::TooOld {
                declared: self.version,
                needed,
                feature,
            });
        }
        self.edits
            .check("containerEdits")
            .map_err(SpecError::Field)?;
        if self.devices.is_empty() {
            return Err(SpecError::Field("devices: there is none".to_owned()));
        }
        let mut seen = HashSet::new();
        for (i, device) in self.devices.iter().enumerate() {
            check_device(&device.name).map_err(SpecError::Name)?;
            let place = format!("devices[{i}].containerEdits");
            if device.edits.is_empty() {
                return Err(SpecError::Field(format!(
                    "{place}: is empty, so the device {:?} would do nothing",
                    device.name
                )));
            }
            device.edits.check(&place).map_err(SpecError::Field)?;
            if !seen.insert(&device.name) {
                return Err(SpecError::Field(format!(
                    "devices[{i}]: the device {:?} is there twice",
                    device.name
                )));
            }
        }
        Ok(())
    }
}

/// The fields before they are checked.
struct Draft {
    version: String,
    kind: String,
    annotations: Vec<(String, String)>,
    devices: Vec<Device>,
    edits: ContainerEdits,
}

impl Draft {
    fn decode(value: Value) -> Result<Self, String> {
        let mut fields = Fields::of("", value)?;
        let mut this = Self {
            version: fields.text("cdiVersion")?,
            kind: fields.text("kind")?,
            annotations: fields.text_map("annotations")?,
            devices: Vec::new(),
            edits: ContainerEdits::decode("containerEdits", fields.take("containerEdits"))?,
        };
        for (place, value) in fields.list("devices")?.unwrap_or_default() {
            let mut fields = Fields::of(&place, value)?;
            let edits = fields.take("containerEdits");
            this.devices.push(Device {
                name: fields.text("name")?,
                annotations: fields.text_map("annotations")?,
                edits: ContainerEdits::decode(&format!("{place}.containerEdits"), edits)?,
            });
            fields.end()?;
        }
        fields.end()?;
        Ok(this)
    }
}

#[cfg(test)]
#[path = "spec/tests.rs"]
mod tests;
