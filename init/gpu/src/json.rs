//! JSON as Go's `encoding/json` reads it into a structure, for the two documents that other programs write for the hook.
//!
//! Keys match in any case, the last of several wins, what follows the first value is not looked at, and text that is
//! not UTF-8 is replaced instead of refused.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{self, MapAccess, SeqAccess, Visitor};

/// A document's first value. Objects keep their order, because of several keys the last one counts.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`, which means "as if it were not there".
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without fraction that fits.
    Integer(i64),
    /// Any other number; nothing that is read here is one.
    OtherNumber,
    /// Text.
    String(String),
    /// A list.
    Array(Vec<Json>),
    /// Keys and values in their order.
    Object(Vec<(String, Json)>),
}

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is not JSON.
    #[error("it is not JSON")]
    Syntax(#[source] serde_json::Error),
    /// A field is of another type.
    #[error("{field} must be {wanted}, not {found}")]
    Type {
        /// With its parents: `process.env`.
        field: String,
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        found: &'static str,
    },
}

impl Json {
    /// The first value of `bytes`.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Syntax`].
    pub fn first(bytes: &[u8]) -> Result<Self, Error> {
        let text = String::from_utf8_lossy(bytes);
        let mut reader = serde_json::Deserializer::from_str(&text);
        if text.trim_ascii().is_empty() {
            return Err(Error::Empty);
        }
        reader.deserialize_any(AnyValue).map_err(Error::Syntax)
    }

    /// The value of `key` in an object: the last one that matches in any case; `None` when there is none or it is null.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Object(entries) = self else {
            return None;
        };
        let (_, value) = entries
            .iter()
            .rev()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))?;
        (*value != Self::Null).then_some(value)
    }

    /// What it is, in words.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::OtherNumber => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    fn wrong(&self, field: &str, wanted: &'static str) -> Error {
        Error::Type {
            field: field.to_owned(),
            wanted,
            found: self.kind(),
        }
    }

    /// Its entries.
    ///
    /// # Errors
    /// [`Error::Type`], naming `field`.
    pub fn object(&self, field: &str) -> Result<&[(String, Self)], Error> {
        match self {
            Self::Object(entries) => Ok(entries),
            other => Err(other.wrong(field, "an object")),
        }
    }

    /// Its text; null is empty.
    ///
    /// # Errors
    /// [`Error::Type`], naming `field`.
    pub fn text(&self, field: &str) -> Result<&str, Error> {
        match self {
            Self::Null => Ok(""),
            Self::String(text) => Ok(text),
            other => Err(other.wrong(field, "a string")),
        }
    }

    /// Its number.
    ///
    /// # Errors
    /// [`Error::Type`], naming `field`.
    pub fn integer(&self, field: &str) -> Result<i64, Error> {
        match self {
            Self::Null => Ok(0),
            Self::Integer(number) => Ok(*number),
            other => Err(other.wrong(field, "a whole number")),
        }
    }

    /// Its items; null is an empty list.
    ///
    /// # Errors
    /// [`Error::Type`], naming `field`.
    pub fn array(&self, field: &str) -> Result<&[Self], Error> {
        match self {
            Self::Null => Ok(&[]),
            Self::Array(items) => Ok(items),
            other => Err(other.wrong(field, "a list")),
        }
    }

    /// The texts of a list of strings.
    ///
    /// # Errors
    /// [`Error::Type`], naming `field`.
    pub fn texts(&self, field: &str) -> Result<Vec<&str>, Error> {
        let items = self.array(field)?;
        items.iter().map(|item| item.text(field)).collect()
    }
}

struct AnyValue;

impl<'de> de::DeserializeSeed<'de> for AnyValue {
    type Value = Json;

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<Json, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::OtherNumber, Json::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(Self)? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            entries.push((key, map.next_value_seed(Self)?));
        }
        Ok(Json::Object(entries))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_value_counts() {
        let json = Json::first(b" {\"pid\": 7} trailing {").unwrap();
        assert_eq!(json.get("pid"), Some(&Json::Integer(7)));
        assert_eq!(Json::first(b"null").unwrap(), Json::Null);
        assert!(matches!(Json::first(b" \n"), Err(Error::Empty)));
        assert!(matches!(Json::first(b"{\"pid\": 1"), Err(Error::Syntax(_))));
        assert!(matches!(
            Json::first("\u{feff}{}".as_bytes()),
            Err(Error::Syntax(_))
        ));
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_wins() {
        let json = Json::first(br#"{"PID": 1, "pid": 2, "Pid": 3}"#).unwrap();
        assert_eq!(json.get("pid").unwrap().integer("pid").unwrap(), 3);
        let json = Json::first(br#"{"pid": 2, "PID": null}"#).unwrap();
        assert_eq!(json.get("pid"), None);
    }

    #[test]
    fn types_are_not_converted() {
        let json =
            Json::first(br#"{"pid": "12", "big": 1e3, "list": ["a", null], "mixed": ["a", 1]}"#)
                .unwrap();
        let error = json.get("pid").unwrap().integer("pid").unwrap_err();
        assert_eq!(
            error.to_string(),
            "pid must be a whole number, not a string"
        );
        assert!(json.get("big").unwrap().integer("big").is_err());
        assert_eq!(json.get("list").unwrap().texts("list").unwrap(), ["a", ""]);
        assert!(json.get("mixed").unwrap().texts("mixed").is_err());
        assert!(json.object("state").is_ok());
        assert!(Json::Null.object("state").is_err());
    }

    #[test]
    fn text_that_is_not_utf8_is_replaced() {
        let json = Json::first(b"{\"bundle\": \"/a\xff\"}").unwrap();
        assert_eq!(
            json.get("bundle").unwrap().text("bundle").unwrap(),
            "/a\u{fffd}"
        );
    }
}
