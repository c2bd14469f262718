//! Values into typed fields, with the place in every message.
//!
//! The rules are those of Go's decoder, which files are written for: a field is found by its name in
//! any case, null means "not set", a field nobody knows is an error, and text accepts any scalar
//! (`name: 0`).

use serde_json::{Map, Value};

use crate::number::scalar_as_text;

/// The fields of one object, taken out one by one.
pub(crate) struct Fields {
    place: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The fields of `value`; null has none.
    pub(crate) fn of(place: &str, value: Value) -> Result<Self, String> {
        let map = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(format!("{place}: must be an object"));
            }
        };
        Ok(Self {
            place: place.to_owned(),
            map,
        })
    }

    fn at(&self, name: &str) -> String {
        if self.place.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.place)
        }
    }

    /// Takes a field; null counts as absent. Of several spellings the last one in the order of bytes counts: Go's
    /// decoder goes through them sorted.
    pub(crate) fn take(&mut self, name: &str) -> Value {
        let mut spellings: Vec<String> = self
            .map
            .keys()
            .filter(|key| key.eq_ignore_ascii_case(name))
            .cloned()
            .collect();
        spellings.sort();
        let mut value = Value::Null;
        for spelling in spellings {
            value = self.map.remove(&spelling).unwrap_or(value);
        }
        value
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<String, String> {
        match self.take(name) {
            Value::Null => Ok(String::new()),
            value => {
                scalar_as_text(&value).ok_or_else(|| format!("{}: must be text", self.at(name)))
            }
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, String> {
        match self.take(name) {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(flag),
            Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                Err(format!("{}: must be true or false", self.at(name)))
            }
        }
    }

    /// An integer that fits `T`.
    pub(crate) fn integer<T: TryFrom<i64>>(&mut self, name: &str) -> Result<Option<T>, String> {
        let value = self.take(name);
        if value.is_null() {
            return Ok(None);
        }
        integer(&value)
            .map(Some)
            .ok_or_else(|| format!("{}: must be an integer in range", self.at(name)))
    }

    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>, String> {
        Ok(self.optional_texts(name)?.unwrap_or_default())
    }

    /// A list of texts, and whether there was one at all.
    pub(crate) fn optional_texts(&mut self, name: &str) -> Result<Option<Vec<String>>, String> {
        let Some(list) = self.list(name)? else {
            return Ok(None);
        };
        list.into_iter()
            .map(|(place, value)| match value {
                Value::Null => Ok(String::new()),
                value => scalar_as_text(&value).ok_or_else(|| format!("{place}: must be text")),
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    pub(crate) fn integers<T: TryFrom<i64>>(&mut self, name: &str) -> Result<Vec<T>, String> {
        self.list(name)?
            .unwrap_or_default()
            .into_iter()
            .map(|(place, value)| {
                let value = if value.is_null() {
                    Value::from(0)
                } else {
                    value
                };
                integer(&value).ok_or_else(|| format!("{place}: must be an integer in range"))
            })
            .collect()
    }

    /// A map of text to text.
    pub(crate) fn text_map(&mut self, name: &str) -> Result<Vec<(String, String)>, String> {
        let place = self.at(name);
        match self.take(name) {
            Value::Null => Ok(Vec::new()),
            Value::Object(map) => map
                .into_iter()
                .map(|(key, value)| match value {
                    Value::Null => Ok((key, String::new())),
                    value => match scalar_as_text(&value) {
                        Some(text) => Ok((key, text)),
                        None => Err(format!("{place}.{key}: must be text")),
                    },
                })
                .collect(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(format!("{place}: must be an object"))
            }
        }
    }

    /// The items of a list, each with its place.
    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<(String, Value)>>, String> {
        let place = self.at(name);
        match self.take(name) {
            Value::Null => Ok(None),
            Value::Array(items) => Ok(Some(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(i, item)| (format!("{place}[{i}]"), item))
                    .collect(),
            )),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                Err(format!("{place}: must be a list"))
            }
        }
    }

    /// Refuses what nobody took.
    pub(crate) fn end(self) -> Result<(), String> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("unknown field {:?}", self.at(key))),
        }
    }
}

fn integer<T: TryFrom<i64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_i64()?).ok()
}
