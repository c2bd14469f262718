//! YAML text as values, the way Go's library reads it.
//!
//! The parser (`saphyr-parser`) follows YAML 1.2 and tells the style of every scalar; what a plain
//! scalar *means* is decided here, by the rules of YAML 1.1 that Go's `yaml.v2` keeps: `y`, `no`,
//! `on` are truth values, `0666` is octal, `1_000` is a number. JSON is YAML, so one reader
//! serves `.yaml` and `.json`.
//!
//! A file may be made by anybody: depth, size and the growth by aliases are bounded.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

/// Deeper than any CDI file, shallow enough for the stack.
const MAX_DEPTH: usize = 64;
/// Values in one file, aliases counted as what they stand for.
const MAX_VALUES: usize = 200_000;

/// Reads the first document of `text`; an empty file is null.
///
/// # Errors
/// Where the text stops being YAML, or which bound it breaks.
pub(crate) fn read(text: &str) -> Result<Value, String> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        values: 0,
        line: 1,
    };
    loop {
        match reader.next()? {
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            Event::StreamEnd | Event::DocumentEnd => return Ok(Value::Null),
            event => return reader.value(event, 0),
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, (Value, usize)>,
    values: usize,
    line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.parser.next() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(Event::StreamEnd),
        }
    }

    fn count(&mut self, values: usize) -> Result<(), String> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES {
            return Err(format!("line {}: more than {MAX_VALUES} values", self.line));
        }
        Ok(())
    }

    fn value(&mut self, event: Event<'a>, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "line {}: nested deeper than {MAX_DEPTH}",
                self.line
            ));
        }
        let before = self.values;
        self.count(1)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = resolve(&text, style, tag.as_deref())
                    .map_err(|why| format!("line {}: {why}", self.line))?;
                (value, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(id) => {
                let Some((value, size)) = self.anchors.get(&id).cloned() else {
                    return Err(format!(
                        "line {}: an alias within its own anchor",
                        self.line
                    ));
                };
                self.count(size)?;
                (value, 0)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(format!("line {}: a value is missing", self.line)),
        };
        if anchor != 0 {
            let size = self.values - before;
            self.anchors.insert(anchor, (value.clone(), size));
        }
        Ok(value)
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Value::Array(items)),
                event => items.push(self.value(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, String> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        loop {
            let event = match self.next()? {
                Event::MappingEnd => break,
                event => event,
            };
            let merge =
                matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key = self.key(event, depth)?;
            let event = self.next()?;
            let value = self.value(event, depth + 1)?;
            if merge {
                merged.push(value);
            } else if map.insert(key.clone(), value).is_some() {
                return Err(format!("line {}: key {key:?} is there twice", self.line));
            }
        }
        for value in merged {
            self.merge(&mut map, value)?;
        }
        Ok(Value::Object(map))
    }

    /// `<<`: what the map itself says wins.
    fn merge(&self, map: &mut Map<String, Value>, value: Value) -> Result<(), String> {
        let sources = match value {
            Value::Array(list) => list,
            other => vec![other],
        };
        for source in sources {
            let Value::Object(source) = source else {
                return Err(format!("line {}: << wants a map", self.line));
            };
            for (key, value) in source {
                map.entry(key).or_insert(value);
            }
        }
        Ok(())
    }

    /// Keys are text; scalars of another type are written as text.
    fn key(&mut self, event: Event<'a>, depth: usize) -> Result<String, String> {
        let value = self.value(event, depth + 1)?;
        crate::number::scalar_as_text(&value)
            .ok_or_else(|| format!("line {}: a key must be a scalar", self.line))
    }
}

/// What a scalar means: quoted ones are text, plain ones go by YAML 1.1.
fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let tag = match tag {
        Some(tag) if tag.is_yaml_core_schema() => Some(tag.suffix.as_str()),
        Some(tag) if tag.handle == "!" && tag.suffix.is_empty() => Some("str"),
        Some(_) | None => None,
    };
    if tag == Some("binary") {
        return Err("!!binary has no place in a CDI file".to_owned());
    }
    if tag == Some("str") || (style != ScalarStyle::Plain && tag.is_none()) {
        return Ok(Value::String(text.to_owned()));
    }
    let value = plain(text);
    let fits = match (tag, &value) {
        (None, _)
        | (Some("bool"), Value::Bool(_))
        | (Some("null"), Value::Null)
        | (Some("int" | "float"), Value::Number(_))
        | (Some("timestamp"), Value::String(_)) => true,
        (Some(_), _) => false,
    };
    if fits {
        Ok(value)
    } else {
        Err(format!("{text:?} is not of the type its tag says"))
    }
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Value::String(text.to_owned());
    }
    let bare = text.replace('_', "");
    if let Some(number) = integer(&bare).or_else(|| float(&bare)) {
        return Value::Number(number);
    }
    Value::String(text.to_owned())
}

/// Decimal, `0x`, `0o`, `0b`, and octal by a leading zero.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        let value = 0_i64.checked_sub_unsigned(magnitude)?;
        return Some(Number::from(value));
    }
    Some(Number::from(magnitude))
}

/// Digits with a point or an exponent. Not-a-number and infinity have no place in JSON, nor here.
fn float(text: &str) -> Option<Number> {
    let digits = text.trim_start_matches(['+', '-']);
    if text.len() - digits.len() > 1
        || !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        || !digits.contains(|c: char| c.is_ascii_digit())
        || !digits
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'))
    {
        return None;
    }
    Number::from_f64(text.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn plain_scalars_are_yaml_1_1() {
        let read = read(
            "[y, n, Yes, off, 'y', 0666, 0o17, 0x10, -3, 1.5, 1_000, ~, 1.2.3, 2001-01-01, 09]",
        )
        .unwrap();
        assert_eq!(
            read,
            json!([
                true,
                false,
                true,
                false,
                "y",
                438,
                15,
                16,
                -3,
                1.5,
                1000,
                null,
                "1.2.3",
                "2001-01-01",
                9.0
            ])
        );
    }

    #[test]
    fn json_is_yaml() {
        let text = "{\n\t\"a\": [1, {\"b\": null}],\n\t\"c\": \"x\\u00e9\\/\"\n}\n";
        assert_eq!(
            read(text).unwrap(),
            json!({"a": [1, {"b": null}], "c": "xé/"})
        );
    }

    #[test]
    fn anchors_and_merges() {
        let text = "base: &b {a: 1, b: 2}\nx:\n  <<: *b\n  b: 3\nz: *b\n";
        assert_eq!(
            read(text).unwrap(),
            json!({"base": {"a": 1, "b": 2}, "x": {"a": 1, "b": 3}, "z": {"a": 1, "b": 2}})
        );
    }

    #[test]
    fn a_key_twice_is_refused() {
        assert!(read("a: 1\na: 2\n").unwrap_err().contains("twice"));
    }

    #[test]
    fn growth_is_bounded() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let one = format!("*a{}", i - 1);
            text.push_str(&format!("a{i}: &a{i} [{}]\n", vec![one; 10].join(",")));
        }
        assert!(read(&text).unwrap_err().contains("more than"));
        assert!(read(&"[".repeat(100_000)).is_err());
        assert!(read("&a [*a]").is_err());
    }

    #[test]
    fn only_the_first_document() {
        assert_eq!(read("a: 1\n---\nb: 2\n").unwrap(), json!({"a": 1}));
        assert_eq!(read("").unwrap(), Value::Null);
        assert_eq!(read("# nothing\n").unwrap(), Value::Null);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,80}") {
            let _ = read(&text);
        }

        #[test]
        fn yaml_like_text_is_answered(text in "[a-c0-9:&*<>|!%@'\"\\[\\]{},\\-?# \n\t]{0,60}") {
            let _ = read(&text);
        }
    }
}
