//! D-Bus messages, as far as they are needed (D-Bus specification, "Message Protocol" and "Type System").
//!
//! Written in little endian; read in either.

/// A message larger than this is not for us: 1 MiB (the specification allows 128).
const LIMIT: usize = 1 << 20;
/// The part of the header that has a fixed length, up to and with the length of the header fields.
pub(super) const FIXED: usize = 16;

/// A property's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `as`
    Texts(Vec<String>),
    /// `au`
    Numbers(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// Appends values, each aligned as its type wants it.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Lengths are bounded by what fits a process's arguments and a container's configuration.
    fn length(&mut self, value: usize) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    /// `s` and `o`.
    pub(super) fn text(&mut self, value: &str) {
        self.length(value.len());
        self.bytes.extend_from_slice(value.as_bytes());
        self.byte(0);
    }

    fn signature(&mut self, value: &str) {
        // At most 255 bytes; ours are shorter than 16.
        self.byte(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.bytes.extend_from_slice(value.as_bytes());
        self.byte(0);
    }

    /// An array whose elements are aligned to `to`. The padding before the first does not count to its length.
    fn array(&mut self, to: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.bytes.len();
        self.align(to);
        let first = self.bytes.len();
        fill(self);
        let length = u32::try_from(self.bytes.len() - first).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(at - 4..at) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::U64(value) => self.u64(*value),
            Value::Text(value) => self.text(value),
            Value::Texts(list) => {
                self.array(4, |this| list.iter().for_each(|text| this.text(text)))
            }
            Value::Numbers(list) => self.numbers(list),
            Value::Bytes(list) => self.array(1, |this| this.bytes.extend_from_slice(list)),
            Value::Pairs(list) => self.array(8, |this| {
                for (first, second) in list {
                    this.align(8);
                    this.text(first);
                    this.text(second);
                }
            }),
        }
    }

    /// `au`
    pub(super) fn numbers(&mut self, list: &[u32]) {
        self.array(4, |this| list.iter().for_each(|&n| this.u32(n)));
    }

    /// `a(sv)`
    pub(super) fn properties<'a>(&mut self, list: impl Iterator<Item = (&'a str, &'a Value)>) {
        self.array(8, |this| {
            for (name, value) in list {
                this.align(8);
                this.text(name);
                this.variant(value);
            }
        });
    }

    /// An empty `a(sa(sv))`, which is all that `StartTransientUnit`'s last argument can be.
    pub(super) fn no_auxiliary_units(&mut self) {
        self.array(8, |_| {});
    }
}

/// A method call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// The bus name; `None` on a connection without a bus.
    pub(super) destination: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// Types of the body.
    pub(super) signature: &'a str,
    pub(super) body: Encoder,
}

impl Call<'_> {
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut out = Encoder::default();
        // Little endian, METHOD_CALL, no flags, protocol version 1.
        for byte in [b'l', 1, 0, 1] {
            out.byte(byte);
        }
        out.length(self.body.bytes.len());
        out.u32(serial);
        out.array(8, |out| {
            let mut field = |code: u8, typ: &str, value: Option<&str>| {
                let Some(value) = value else { return };
                out.align(8);
                out.byte(code);
                out.signature(typ);
                if typ == "g" {
                    out.signature(value);
                } else {
                    out.text(value);
                }
            };
            field(1, "o", Some(self.path));
            field(2, "s", Some(self.interface));
            field(3, "s", Some(self.member));
            field(6, "s", self.destination);
            field(8, "g", Some(self.signature).filter(|text| !text.is_empty()));
        });
        out.align(8);
        out.bytes.extend_from_slice(&self.body.bytes);
        out.bytes
    }
}

/// Which kind of message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Return,
    Error,
    Signal,
}

/// A message that came in.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) reply_to: Option<u32>,
    pub(super) interface: String,
    pub(super) member: String,
    pub(super) error: String,
    pub(super) signature: String,
    big_endian: bool,
    body: Vec<u8>,
}

/// The length of a whole message, from its first [`FIXED`] bytes.
pub(super) fn length(fixed: &[u8; FIXED]) -> Result<usize, &'static str> {
    let mut reader = Reader {
        bytes: fixed,
        at: 4,
        big_endian: endian(fixed)?,
    };
    let (Some(body), Some(_serial), Some(fields)) = (reader.u32(), reader.u32(), reader.u32())
    else {
        return Err("short header");
    };
    let total = [body, fields].into_iter().try_fold(FIXED + 8, |sum, part| {
        sum.checked_add(usize::try_from(part).ok()?)
    });
    match total {
        Some(total) if total <= LIMIT => {}
        Some(_) | None => return Err("too large"),
    }
    let size = |part: u32| usize::try_from(part).map_err(|_| "too large");
    Ok(FIXED + size(fields)?.next_multiple_of(8) + size(body)?)
}

fn endian(bytes: &[u8]) -> Result<bool, &'static str> {
    match bytes.first() {
        Some(b'l') => Ok(false),
        Some(b'B') => Ok(true),
        Some(_) | None => Err("neither little nor big endian"),
    }
}

impl Message {
    /// From exactly [`length`] bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let big_endian = endian(bytes)?;
        let kind = match bytes.get(1) {
            Some(1) => Kind::Call,
            Some(2) => Kind::Return,
            Some(3) => Kind::Error,
            Some(4) => Kind::Signal,
            Some(_) | None => return Err("unknown kind of message"),
        };
        if bytes.get(3) != Some(&1) {
            return Err("not protocol version 1");
        }
        let mut this = Self {
            kind,
            reply_to: None,
            interface: String::new(),
            member: String::new(),
            error: String::new(),
            signature: String::new(),
            big_endian,
            body: Vec::new(),
        };
        let mut reader = Reader {
            bytes,
            at: 12,
            big_endian,
        };
        this.fields(&mut reader).ok_or("damaged header")?;
        reader.align(8);
        this.body = bytes.get(reader.at..).ok_or("short body")?.to_vec();
        Ok(this)
    }

    fn fields(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let length = usize::try_from(reader.u32()?).ok()?;
        let end = reader.at.checked_add(length)?;
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            let typ = reader.signature()?;
            let mut text = String::new();
            let mut number = 0;
            match typ.as_str() {
                "s" | "o" => text = reader.text()?,
                "g" => text = reader.signature()?,
                "u" => number = reader.u32()?,
                // The specification's fields have no others.
                _ => return None,
            }
            match code {
                2 => self.interface = text,
                3 => self.member = text,
                4 => self.error = text,
                5 => self.reply_to = Some(number),
                8 => self.signature = text,
                // Path, destination, sender, number of descriptors; and what is not known is to be ignored.
                _ => {}
            }
        }
        (reader.at == end).then_some(())
    }

    /// The arguments, to be read in order.
    pub(super) fn arguments(&self) -> Reader<'_> {
        Reader {
            bytes: &self.body,
            at: 0,
            big_endian: self.big_endian,
        }
    }
}

/// Reads values in order; `None` for what is not there or not valid.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn byte(&mut self) -> Option<u8> {
        let value = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(value)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.bytes.get(self.at..)?.first_chunk::<4>()?;
        self.at += 4;
        Some(if self.big_endian {
            u32::from_be_bytes(*bytes)
        } else {
            u32::from_le_bytes(*bytes)
        })
    }

    fn piece(&mut self, length: usize) -> Option<String> {
        let end = self.at.checked_add(length)?;
        let text = std::str::from_utf8(self.bytes.get(self.at..end)?).ok()?;
        let text = text.to_owned();
        if self.bytes.get(end) != Some(&0) {
            return None;
        }
        self.at = end + 1;
        Some(text)
    }

    /// `s` and `o`.
    pub(super) fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.piece(length)
    }

    pub(super) fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.piece(length)
    }
}
