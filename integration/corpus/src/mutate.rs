//! Changing inputs: small, and such that most of what a parser checks is reached.

use serde_json::{Map, Value, json};

/// A source of mutations; the same seed gives the same ones.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

/// Numbers on the edges of types.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Texts that mean something to one parser or another.
const TEXTS: &[&str] = &[
    "",
    "/",
    ".",
    "..",
    "../../..",
    "/proc/self/fd/7",
    "/dev/null",
    "\0",
    "a\0b",
    "\n",
    "-1",
    "0",
    "0-",
    "0-3,5",
    "18446744073709551616",
    "max",
    "ä€😀",
    "rbind",
    "ro,rw",
    "mode=99999999999",
    "%s%n",
    "A=",
    "=",
];

impl Mutator {
    /// A mutator whose mutations follow from `seed`.
    #[must_use]
    pub fn new(seed: &str) -> Self {
        // FNV-1a; all that matters is that it never is zero.
        let state = seed.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { state: state | 1 }
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end.max(1)).unwrap_or(1);
        usize::try_from((self.next() >> 16) % end).unwrap_or(0)
    }

    fn pick<T: Copy>(&mut self, from: &[T], otherwise: T) -> T {
        let at = self.below(from.len());
        from.get(at).copied().unwrap_or(otherwise)
    }

    /// Changes one to four places of `input`.
    pub fn bytes(&mut self, input: &[u8]) -> Vec<u8> {
        let mut out = input.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(out.len());
            let len = 1 + self.below(16);
            let end = (at + len).min(out.len());
            match self.below(8) {
                0 | 1 => {
                    let bit = 1 << self.below(8);
                    if let Some(byte) = out.get_mut(at) {
                        *byte ^= bit;
                    }
                }
                2 => {
                    let value = self.next().to_le_bytes()[0];
                    if let Some(byte) = out.get_mut(at) {
                        *byte = value;
                    }
                }
                3 => {
                    let number = self.pick(NUMBERS, 0).to_le_bytes();
                    let width = self.pick(&[1, 2, 4, 8], 4);
                    for (slot, byte) in out.iter_mut().skip(at).zip(&number[..width]) {
                        *slot = *byte;
                    }
                }
                4 => drop(out.drain(at..end)),
                5 => {
                    let block = out.get(at..end).unwrap_or_default().to_vec();
                    let to = self.below(out.len() + 1);
                    out.splice(to..to, block);
                }
                6 => {
                    let text = self.pick(TEXTS, "").bytes();
                    out.splice(at..at, text);
                }
                _ => out.truncate(at),
            }
        }
        out
    }

    /// Changes one or two values of a document; bytes, when `input` is none.
    pub fn json(&mut self, input: &[u8]) -> Vec<u8> {
        let Ok(mut document) = serde_json::from_slice::<Value>(input) else {
            return self.bytes(input);
        };
        for _ in 0..=self.below(2) {
            let at = self.below(count(&document));
            let mut at = at;
            self.change(&mut document, &mut at);
        }
        document.to_string().into_bytes()
    }

    /// Walks to value number `at` and changes it.
    fn change(&mut self, value: &mut Value, at: &mut usize) -> bool {
        if *at == 0 {
            self.change_here(value);
            return true;
        }
        *at -= 1;
        match value {
            Value::Array(list) => list.iter_mut().any(|item| self.change(item, at)),
            Value::Object(map) => map.values_mut().any(|item| self.change(item, at)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }

    fn change_here(&mut self, value: &mut Value) {
        let choice = self.below(6);
        match value {
            Value::Array(list) if choice < 4 => {
                let at = self.below(list.len());
                match choice {
                    0 if !list.is_empty() => drop(list.remove(at)),
                    1 => list.extend(list.get(at).cloned()),
                    2 => list.push(self.fresh()),
                    _ => list.reverse(),
                }
            }
            Value::Object(map) if choice < 4 => self.change_map(map, choice),
            Value::String(text) if choice < 4 => match choice {
                0 => text.push_str(self.pick(TEXTS, "")),
                1 => *text = text.chars().rev().collect(),
                2 => *text = text.repeat(1 + self.below(300)),
                _ => *text = self.pick(TEXTS, "").to_owned(),
            },
            Value::Number(_) if choice < 4 => *value = json!(self.pick(NUMBERS, 0)),
            Value::Bool(flag) if choice < 4 => *flag = !*flag,
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => *value = self.fresh(),
        }
    }

    fn change_map(&mut self, map: &mut Map<String, Value>, choice: usize) {
        let at = self.below(map.len());
        let Some(key) = map.keys().nth(at).cloned() else {
            return;
        };
        let Some(old) = map.remove(&key) else { return };
        match choice {
            0 => {}
            1 => {
                map.insert(self.pick(TEXTS, "").to_owned(), old);
            }
            _ => {
                map.insert(key, self.fresh());
            }
        }
    }

    fn fresh(&mut self) -> Value {
        match self.below(8) {
            0 => Value::Null,
            1 => json!(self.next().is_multiple_of(2)),
            2 => json!(self.pick(NUMBERS, 0)),
            3 => json!(-1),
            4 => json!(1.5),
            5 => json!([]),
            6 => json!({}),
            _ => json!(self.pick(TEXTS, "")),
        }
    }
}

/// Number of values in a document, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_stay_documents() {
        let input = br#"{"a": [1, "x", {"b": null}], "c": true}"#;
        let mut mutator = Mutator::new("seed");
        let mut changed = 0;
        for _ in 0..500 {
            let out = mutator.json(input);
            let document: Value = serde_json::from_slice(&out).unwrap_or_else(|error| {
                panic!("{}: {error}", String::from_utf8_lossy(&out));
            });
            changed +=
                usize::from(document != serde_json::from_slice::<Value>(input).unwrap_or_default());
        }
        assert!(changed > 400, "{changed}");
    }

    #[test]
    fn nothing_can_be_mutated() {
        let mut mutator = Mutator::new("");
        for _ in 0..200 {
            let _ = mutator.bytes(b"");
        }
    }
}
