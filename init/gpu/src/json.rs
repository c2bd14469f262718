//! JSON as Go's `encoding/json` reads it into a structure, for the two documents that other programs write for the hook.
//!
//! Keys match in any case, the last of several wins, what follows the first value is not looked at, and text that is
//! not UTF-8 (or half of a surrogate pair) is replaced instead of refused. serde_json can do none of these.

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
    #[error("it is not JSON: byte {at} should be {expected}")]
    Syntax {
        /// From 0.
        at: usize,
        /// What would be right there.
        expected: &'static str,
    },
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
        let mut reader = Reader {
            bytes,
            at: 0,
            depth: 0,
        };
        match reader.next_word() {
            None => Err(Error::Empty),
            Some(_) => reader.value(),
        }
    }

    /// The value of `key` in an object: the last one that matches in any case; `None` when there is none or it is null.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.matching(key)
            .next()
            .filter(|value| **value != Self::Null)
    }

    /// As [`Json::get`], but null leaves an earlier value in place: so Go treats fields that are no pointers or lists.
    #[must_use]
    pub fn get_plain(&self, key: &str) -> Option<&Self> {
        self.matching(key).find(|value| **value != Self::Null)
    }

    /// The last one first.
    fn matching(&self, key: &str) -> impl Iterator<Item = &Self> {
        let entries: &[(String, Self)] = match self {
            Self::Object(entries) => entries,
            _ => &[],
        };
        let matching = entries
            .iter()
            .rev()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(key));
        matching.map(|(_, value)| value)
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

/// Deeper documents are refused, so that reading one cannot exhaust the stack. (The original stops at 10000.)
const DEEPEST: usize = 500;

/// Reads one value after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The next byte that is no space; it stays.
    fn next_word(&mut self) -> Option<u8> {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        self.peek()
    }

    fn wrong(&self, expected: &'static str) -> Error {
        Error::Syntax {
            at: self.at,
            expected,
        }
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), Error> {
        if self.next_word() != Some(byte) {
            return Err(self.wrong(expected));
        }
        self.at += 1;
        Ok(())
    }

    fn value(&mut self) -> Result<Json, Error> {
        match self.next_word() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => self.string().map(Json::String),
            Some(b't') => self.word(b"true", Json::Bool(true)),
            Some(b'f') => self.word(b"false", Json::Bool(false)),
            Some(b'n') => self.word(b"null", Json::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.wrong("a value")),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Json, Error>) -> Result<Json, Error> {
        if self.depth == DEEPEST {
            return Err(self.wrong("a document that is less deep"));
        }
        self.depth += 1;
        self.at += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn object(&mut self) -> Result<Json, Error> {
        let mut entries = Vec::new();
        if self.next_word() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(entries));
        }
        loop {
            if self.next_word() != Some(b'"') {
                return Err(self.wrong("a key"));
            }
            let key = self.string()?;
            self.expect(b':', "a colon")?;
            entries.push((key, self.value()?));
            if self.next_word() == Some(b',') {
                self.at += 1;
            } else {
                self.expect(b'}', "a comma or the end of the object")?;
                return Ok(Json::Object(entries));
            }
        }
    }

    fn array(&mut self) -> Result<Json, Error> {
        let mut items = Vec::new();
        if self.next_word() == Some(b']') {
            self.at += 1;
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value()?);
            if self.next_word() == Some(b',') {
                self.at += 1;
            } else {
                self.expect(b']', "a comma or the end of the list")?;
                return Ok(Json::Array(items));
            }
        }
    }

    fn word(&mut self, word: &'static [u8], value: Json) -> Result<Json, Error> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.wrong("true, false or null"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn digits(&mut self) -> Result<(), Error> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.wrong("a digit"));
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Json, Error> {
        let from = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = self
            .bytes
            .get(from..self.at)
            .and_then(|text| std::str::from_utf8(text).ok());
        let whole = text.and_then(|text| text.parse().ok());
        Ok(whole.map_or(Json::OtherNumber, Json::Integer))
    }

    /// Text with its escapes; half of a surrogate pair and bytes that are not UTF-8 become U+FFFD.
    fn string(&mut self) -> Result<String, Error> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            let byte = self
                .peek()
                .ok_or_else(|| self.wrong("the end of a string"))?;
            match byte {
                b'"' => {
                    self.at += 1;
                    return Ok(String::from_utf8_lossy(&out).into_owned());
                }
                b'\\' => {
                    self.at += 1;
                    self.escape(&mut out)?;
                }
                0..0x20 => return Err(self.wrong("an escape for a control character")),
                other => {
                    self.at += 1;
                    out.push(other);
                }
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        const WANTED: &str = "an escape";
        let letter = self.peek().ok_or_else(|| self.wrong(WANTED))?;
        let byte = match letter {
            b'"' | b'\\' | b'/' => letter,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.at += 1;
                let character = self.character()?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.wrong(WANTED)),
        };
        self.at += 1;
        out.push(byte);
        Ok(())
    }

    /// After `\u`.
    fn character(&mut self) -> Result<char, Error> {
        let first = self.four_digits()?;
        if let Some(character) = char::from_u32(first) {
            return Ok(character);
        }
        let before = self.at;
        let follows = self
            .bytes
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(b"\\u"));
        if follows && (0xD800..0xDC00).contains(&first) {
            self.at += 2;
            let second = self.four_digits()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            // Not the other half: it stands for itself.
            self.at = before;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn four_digits(&mut self) -> Result<u32, Error> {
        let digits = self
            .bytes
            .get(self.at..self.at + 4)
            .filter(|four| four.iter().all(u8::is_ascii_hexdigit));
        let text = digits.and_then(|four| std::str::from_utf8(four).ok());
        let code = text.and_then(|text| u32::from_str_radix(text, 16).ok());
        let code = code.ok_or_else(|| self.wrong("four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_value_counts() {
        let json = Json::first(b" {\"pid\": 7} trailing {").unwrap();
        assert_eq!(json.get("pid"), Some(&Json::Integer(7)));
        assert_eq!(Json::first(b"null").unwrap(), Json::Null);
        assert!(matches!(Json::first(b" \n"), Err(Error::Empty)));
        assert!(matches!(
            Json::first(b"{\"pid\": 1"),
            Err(Error::Syntax { .. })
        ));
        assert!(matches!(
            Json::first("\u{feff}{}".as_bytes()),
            Err(Error::Syntax { .. })
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

    #[test]
    fn escapes_and_halves_of_pairs() {
        let read = |text: &str| match Json::first(text.as_bytes()) {
            Ok(Json::String(text)) => Some(text),
            _ => None,
        };
        assert_eq!(read(r#""a\n\u0041\/\"""#).as_deref(), Some("a\nA/\""));
        assert_eq!(read(r#""\ud83d\ude00""#).as_deref(), Some("😀"));
        assert_eq!(read(r#""\ud800x""#).as_deref(), Some("\u{fffd}x"));
        assert_eq!(read(r#""\ud800\u0041""#).as_deref(), Some("\u{fffd}A"));
        for bad in [r#""\x""#, r#""\u12""#, "\"\n\"", "\"a", "'a'"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_as_the_grammar_has_them() {
        for good in ["0", "-0", "1e999", "1.5E-3", "99999999999999999999"] {
            assert!(Json::first(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            "-",
            "+1",
            ".5",
            "1.",
            "1e",
            "nul",
            "tru",
            "[1,]",
            "{\"a\"}",
            "{a:1}",
            "{\"a\":1,}",
        ] {
            assert!(Json::first(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(Json::first(b"-0").unwrap(), Json::Integer(0));
        let deep = "[".repeat(100_000);
        assert!(Json::first(deep.as_bytes()).is_err());
    }

    #[test]
    fn null_leaves_plain_fields_alone() {
        let json = Json::first(br#"{"pid": 2, "PID": null}"#).unwrap();
        assert_eq!(json.get_plain("pid"), Some(&Json::Integer(2)));
    }
}
