//! Names: `vendor/class=device`.

use std::fmt;

use thiserror::Error;

/// Why a name is not a CDI name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// There is no `vendor/class=device` in it.
    #[error("{name:?} is not of the form vendor/class=device")]
    Unqualified {
        /// What was given.
        name: String,
    },
    /// One of its parts has a character that does not belong there.
    #[error("the {part} {text:?} {rule}")]
    Part {
        /// `vendor`, `class` or `device name`.
        part: &'static str,
        /// The part as given.
        text: String,
        /// What it must be.
        rule: &'static str,
    },
}

/// A kind of devices: `vendor/class`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    vendor: String,
    class: String,
}

impl Kind {
    /// Reads `vendor/class`.
    ///
    /// # Errors
    /// The part that is missing or not well formed.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (vendor, class) = split_kind(text).ok_or_else(|| NameError::Unqualified {
            name: text.to_owned(),
        })?;
        check_ends("vendor", vendor, char_is_letter, is_name_inner)?;
        check_ends("class", class, char_is_letter, is_name_inner)?;
        Ok(Self {
            vendor: vendor.to_owned(),
            class: class.to_owned(),
        })
    }

    /// The vendor, a domain.
    #[must_use]
    pub fn vendor(&self) -> &str {
        &self.vendor
    }

    /// The class of devices.
    #[must_use]
    pub fn class(&self) -> &str {
        &self.class
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vendor, self.class)
    }
}

/// A device's whole name: `vendor/class=device`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QualifiedName {
    kind: Kind,
    device: String,
}

impl QualifiedName {
    /// Reads `vendor/class=device`.
    ///
    /// # Errors
    /// What keeps it from being a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let unqualified = || NameError::Unqualified {
            name: text.to_owned(),
        };
        if text.starts_with('/') {
            return Err(unqualified());
        }
        let (kind, device) = text.split_once('=').ok_or_else(unqualified)?;
        if kind.is_empty() || device.is_empty() || split_kind(kind).is_none() {
            return Err(unqualified());
        }
        let kind = Kind::parse(kind)?;
        check_device(device)?;
        Ok(Self {
            kind,
            device: device.to_owned(),
        })
    }

    /// A name from its checked parts.
    pub(crate) fn of(kind: &Kind, device: &str) -> Self {
        Self {
            kind: kind.clone(),
            device: device.to_owned(),
        }
    }

    /// `vendor/class`.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The device's name within its kind.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// Whether `text` is a whole, well-formed name.
#[must_use]
pub fn is_qualified(text: &str) -> bool {
    QualifiedName::parse(text).is_ok()
}

/// Checks the name of a device within its kind.
pub(crate) fn check_device(name: &str) -> Result<(), NameError> {
    check_ends("device name", name, char_is_alphanumeric, |c| {
        is_name_inner(c) || c == ':'
    })
}

/// `vendor`, `class` of `vendor/class`, both non-empty. The class may hold further slashes here,
/// which its check refuses.
fn split_kind(text: &str) -> Option<(&str, &str)> {
    let (vendor, class) = text.split_once('/')?;
    (!vendor.is_empty() && !class.is_empty()).then_some((vendor, class))
}

fn char_is_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
}

fn char_is_alphanumeric(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

fn is_name_inner(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// First character, all between, and last character each have their rule. A name of one character
/// has no last one of its own.
fn check_ends(
    part: &'static str,
    text: &str,
    first: fn(char) -> bool,
    inner: impl Fn(char) -> bool,
) -> Result<(), NameError> {
    let bad = |rule: &'static str| {
        Err(NameError::Part {
            part,
            text: text.to_owned(),
            rule,
        })
    };
    let mut chars = text.chars();
    let Some(head) = chars.next() else {
        return bad("is empty");
    };
    if !first(head) {
        return bad(if part == "device name" {
            "must start with a letter or digit"
        } else {
            "must start with a letter"
        });
    }
    let Some(last) = chars.next_back() else {
        return Ok(());
    };
    if !char_is_alphanumeric(last) {
        return bad("must end with a letter or digit");
    }
    if !chars.all(inner) {
        return bad(
            "has a character other than letters, digits, '_', '-', '.' (and ':' in a device name)",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_three_parts() {
        let name = QualifiedName::parse("nvidia.com/gpu=GPU-1:0").unwrap();
        assert_eq!(name.kind().vendor(), "nvidia.com");
        assert_eq!(name.kind().class(), "gpu");
        assert_eq!(name.device(), "GPU-1:0");
        assert_eq!(name.to_string(), "nvidia.com/gpu=GPU-1:0");
    }

    #[test]
    fn one_letter_is_a_name() {
        assert!(is_qualified("a/b=c"));
        assert!(is_qualified("a/b=0"));
    }

    #[test]
    fn what_is_no_name() {
        for bad in [
            "",
            "0",
            "gpu=0",
            "/a/b=c",
            "a/=c",
            "/b=c",
            "a/b=",
            "a/b",
            "a b/c=d",
            "0a/b=c",
            "a./b=c",
            "a/b/c=d",
            "a/b.=c",
            "a/b=-c",
            "a/b=c-",
            "a/b=c d",
            "a/b=c=d",
            "ä/b=c",
            "a:b/c=d",
            "a/b=\u{e9}",
        ] {
            assert!(!is_qualified(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,12}") {
            let _ = is_qualified(&text);
        }

        #[test]
        fn a_name_reads_back(text in "[a-zA-Z0-9./=:_-]{1,14}") {
            if let Ok(name) = QualifiedName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
