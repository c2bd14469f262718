//! An OCI specification as the toolkit's runtime reads and writes it.
//!
//! The original decodes `config.json` into Go structures, refuses fields it does not know, and writes the structures
//! back. What that does to a document is done here on [`serde_json::Value`]: [`read`] checks types and names, gives
//! fields the spelling of the specification, and leaves out what Go leaves out (`"args": []`, `"readonly": false`).
//!
//! Only the drop-in `nvidia-container-runtime` uses this. `holdfast create` keeps every field as it is.

mod schema;

use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::{Map, Value};

use crate::image::{Image, InvalidVariable, Mount};
use schema::{Field, Keep, Kind};

/// Why a specification cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("failed to read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error("failed to write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not JSON.
    #[error("{} is not JSON", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field nobody knows.
    #[error("{}: unknown field {field:?} (features.allow-unknown-oci-spec-fields = true drops such fields)", .path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// With its parents.
        field: String,
    },
    /// A field of another type.
    #[error("{}: {field} must be {wanted}", .path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// With its parents.
        field: String,
        /// What it should be.
        wanted: &'static str,
    },
}

/// Reads a specification: the first JSON value of the file. Unknown fields are refused, or dropped where
/// `allow_unknown`.
///
/// # Errors
/// See [`Error`].
pub fn read(path: &Path, allow_unknown: bool) -> Result<Value, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    normalised(path, &bytes, allow_unknown)
}

fn normalised(path: &Path, bytes: &[u8], allow_unknown: bool) -> Result<Value, Error> {
    let text = String::from_utf8_lossy(bytes);
    let mut reader = serde_json::Deserializer::from_str(&text);
    let value = Value::deserialize(&mut reader).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    normalise(path, value, allow_unknown)
}

/// The value as Go would write it again. Applied again after changes it has no effect on what is right already.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Type`]; `path` is for their text.
pub fn normalise(path: &Path, value: Value, allow_unknown: bool) -> Result<Value, Error> {
    let walk = Walk {
        path,
        allow_unknown,
    };
    walk.object("", &schema::SPEC, value)
}

struct Walk<'a> {
    path: &'a Path,
    allow_unknown: bool,
}

impl Walk<'_> {
    fn wrong(&self, field: &str, wanted: &'static str) -> Error {
        let field = if field.is_empty() {
            "the document"
        } else {
            field
        };
        Error::Type {
            path: self.path.to_owned(),
            field: field.to_owned(),
            wanted,
        }
    }

    fn object(&self, place: &str, fields: &[Field], value: Value) -> Result<Value, Error> {
        let given = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(self.wrong(place, "an object"));
            }
        };
        let mut known = Map::new();
        for (key, value) in given {
            let exact = fields.iter().find(|field| field.name == key);
            let field = exact.or_else(|| fields.iter().find(|f| f.name.eq_ignore_ascii_case(&key)));
            let at = if place.is_empty() {
                key
            } else {
                format!("{place}.{key}")
            };
            match field {
                Some(field) => {
                    if !value.is_null() {
                        let value = self.value(&at, &field.kind, value)?;
                        known.insert(field.name.to_owned(), value);
                    }
                }
                None if self.allow_unknown => {}
                None => {
                    return Err(Error::Unknown {
                        path: self.path.to_owned(),
                        field: at,
                    });
                }
            }
        }
        let mut out = Map::new();
        for field in fields {
            let value = known.remove(field.name);
            let kept = match (field.keep, value) {
                (Keep::Always, None) => Some(self.zero(&field.kind)?),
                (Keep::Always | Keep::IfSet, Some(value)) => Some(value),
                (Keep::IfFilled, Some(value)) if !is_zero(&value) => Some(value),
                (Keep::IfFilled, Some(_)) | (Keep::IfSet | Keep::IfFilled, None) => None,
            };
            if let Some(value) = kept {
                out.insert(field.name.to_owned(), value);
            }
        }
        Ok(Value::Object(out))
    }

    /// What Go writes for a field that was never set.
    fn zero(&self, kind: &Kind) -> Result<Value, Error> {
        Ok(match kind {
            Kind::Text => Value::from(""),
            Kind::Flag => Value::from(false),
            Kind::Integer { .. } => Value::from(0),
            Kind::Object(fields) => self.object("", fields, Value::Null)?,
            Kind::List(_) | Kind::Map(_) | Kind::Any => Value::Null,
        })
    }

    fn value(&self, place: &str, kind: &Kind, value: Value) -> Result<Value, Error> {
        match (kind, value) {
            (Kind::Any, value) => Ok(value),
            (Kind::Text, Value::String(text)) => Ok(Value::String(text)),
            (Kind::Text, _) => Err(self.wrong(place, "a string")),
            (Kind::Flag, Value::Bool(flag)) => Ok(Value::Bool(flag)),
            (Kind::Flag, _) => Err(self.wrong(place, "true or false")),
            (Kind::Integer { min, max }, Value::Number(number)) => {
                let whole = number
                    .as_i64()
                    .map(i128::from)
                    .or(number.as_u64().map(i128::from));
                match whole {
                    Some(whole) if (*min..=*max).contains(&whole) => Ok(Value::Number(number)),
                    Some(_) | None => Err(self.wrong(place, "a whole number in range")),
                }
            }
            (Kind::Integer { .. }, _) => Err(self.wrong(place, "a whole number")),
            (Kind::Object(fields), value) => self.object(place, fields, value),
            (Kind::List(kind), Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(i, item)| self.item(&format!("{place}[{i}]"), kind, item))
                .collect(),
            (Kind::List(_), _) => Err(self.wrong(place, "a list")),
            (Kind::Map(kind), Value::Object(map)) => map
                .into_iter()
                .map(|(key, item)| {
                    let item = self.item(&format!("{place}.{key}"), kind, item)?;
                    Ok((key, item))
                })
                .collect::<Result<Map<_, _>, _>>()
                .map(Value::Object),
            (Kind::Map(_), _) => Err(self.wrong(place, "an object")),
        }
    }

    /// An item of a list or map: null is the type's zero.
    fn item(&self, place: &str, kind: &Kind, item: Value) -> Result<Value, Error> {
        if item.is_null() {
            return self.zero(kind);
        }
        self.value(place, kind, item)
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// What the specification says about GPUs. With `lenient`, environment entries that are not `NAME=VALUE` are passed
/// over.
///
/// # Errors
/// An entry of the environment that the toolkit refuses.
pub fn image_of(spec: &Value, lenient: bool) -> Result<Image, InvalidVariable> {
    let at = |path: &str| spec.pointer(path);
    let texts = |path: &str| {
        let list = at(path).and_then(Value::as_array).map(Vec::as_slice);
        list.unwrap_or_default().iter().filter_map(Value::as_str)
    };
    let env = texts("/process/env");
    let mut image = if lenient {
        Image::lenient(env)
    } else {
        Image::strict(env)?
    };
    image.privileged = texts("/process/capabilities/bounding").any(|cap| cap == "CAP_SYS_ADMIN");
    let text = |value: &Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mounts = at("/mounts").and_then(Value::as_array).map(Vec::as_slice);
    image.mounts = mounts
        .unwrap_or_default()
        .iter()
        .map(|mount| Mount {
            source: text(mount, "source"),
            destination: text(mount, "destination"),
        })
        .collect();
    if let Some(annotations) = at("/annotations").and_then(Value::as_object) {
        image.annotations = annotations
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
    }
    Ok(image)
}

#[cfg(test)]
#[path = "oci/tests.rs"]
mod tests;
