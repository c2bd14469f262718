//! Names that are safe to use as one path component, and that cannot be mixed up with each other.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Longest id in bytes. An id names a directory, and the kernel's limit for one is `NAME_MAX`.
pub const MAX_ID_LEN: usize = 255;

/// Longest containerd namespace in bytes, as containerd itself allows.
pub const MAX_NAMESPACE_LEN: usize = 76;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The empty string.
    #[error("{what} is empty: give it a name")]
    Empty {
        /// Which kind of name.
        what: &'static str,
    },
    /// More bytes than allowed.
    #[error("{what} has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Which kind of name.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// `.` or `..`: they name other directories.
    #[error("{what} {value:?} is a relative path component: use letters, digits and _ + - .")]
    Relative {
        /// Which kind of name.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// A byte outside of the permitted set.
    #[error("invalid {what} {value:?}: character {character:?} is not allowed, only {allowed}")]
    Character {
        /// Which kind of name.
        what: &'static str,
        /// What was given.
        value: String,
        /// The first offending character.
        character: char,
        /// The permitted set, in words.
        allowed: &'static str,
    },
}

/// runc's rule (`libcontainer/factory_linux.go`, regular expression `^[\w+-\.]+$`, ASCII), and the limit of a file name.
fn check_id(what: &'static str, value: &str) -> Result<(), InvalidId> {
    check_length(what, value, MAX_ID_LEN)?;
    if value == "." || value == ".." {
        return Err(InvalidId::Relative {
            what,
            value: value.to_owned(),
        });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    match value.chars().find(|c| !allowed(*c)) {
        None => Ok(()),
        Some(character) => Err(InvalidId::Character {
            what,
            value: value.to_owned(),
            character,
            allowed: "letters, digits and _ + - .",
        }),
    }
}

/// containerd's rule for identifiers: runs of letters and digits with single `.`, `_` or `-` between them.
/// Doubled separators are let through: containerd has checked already, and what matters here is the path.
fn check_namespace(what: &'static str, value: &str) -> Result<(), InvalidId> {
    check_length(what, value, MAX_NAMESPACE_LEN)?;
    if value == "." || value == ".." {
        return Err(InvalidId::Relative {
            what,
            value: value.to_owned(),
        });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match value.chars().find(|c| !allowed(*c)) {
        None => Ok(()),
        Some(character) => Err(InvalidId::Character {
            what,
            value: value.to_owned(),
            character,
            allowed: "letters, digits and _ - .",
        }),
    }
}

fn check_length(what: &'static str, value: &str, max: usize) -> Result<(), InvalidId> {
    if value.is_empty() {
        return Err(InvalidId::Empty { what });
    }
    if value.len() > max {
        return Err(InvalidId::TooLong {
            what,
            len: value.len(),
            max,
        });
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `value` and takes it.
            ///
            /// # Errors
            /// [`InvalidId`] with the rule that `value` breaks.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                $check($what, &value)?;
                Ok(Self(value))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        /// As one path component: never absolute, never with a slash, never `.` or `..`.
        impl AsRef<Path> for $name {
            fn as_ref(&self) -> &Path {
                Path::new(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidId;
            fn try_from(value: &str) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

id! {
    /// A container's id. 1 to 255 bytes of ASCII letters, digits and `_ + - .`, neither `.` nor `..`.
    ContainerId, "container id", check_id
}
id! {
    /// An exec process' id within its container; the same rule as [`ContainerId`].
    ExecId, "exec id", check_id
}
id! {
    /// A containerd namespace (`k8s.io`, `moby`, `default`), 1 to 76 bytes. It has nothing to do with the kernel's namespaces.
    Namespace, "containerd namespace", check_namespace
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_what_runc_takes() {
        for good in ["a", "A-b_c+d.e", "...", "-x", "0", &"x".repeat(255)] {
            assert_eq!(ContainerId::new(good).unwrap().as_str(), good);
            assert_eq!(ExecId::new(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn refuses_what_could_leave_the_directory() {
        for bad in [
            "", ".", "..", "../x", "a/b", "/", "a b", "a\0b", "a\n", "é", "a:b", "a%b",
        ] {
            assert!(ContainerId::new(bad).is_err(), "{bad:?}");
            assert!(Namespace::new(bad).is_err(), "{bad:?}");
        }
        assert!(ContainerId::new("x".repeat(256)).is_err());
        assert!(Namespace::new("x".repeat(77)).is_err());
        assert!(Namespace::new("a+b").is_err());
        assert!(Namespace::new("k8s.io").is_ok());
    }

    #[test]
    fn errors_name_the_character_and_the_set() {
        let text = ContainerId::new("../x").unwrap_err().to_string();
        assert_eq!(
            text,
            "invalid container id \"../x\": character '/' is not allowed, only letters, digits and _ + - ."
        );
    }

    #[test]
    fn serde_checks_too() {
        assert!(serde_json::from_str::<ContainerId>("\"ok\"").is_ok());
        assert!(serde_json::from_str::<ContainerId>("\"../x\"").is_err());
        let id = ContainerId::new("ok").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"ok\"");
    }

    proptest! {
        #[test]
        fn an_accepted_id_is_exactly_one_normal_path_component(text in "\\PC{0,20}") {
            if let Ok(id) = ContainerId::new(text.clone()) {
                let path: &Path = id.as_ref();
                let parts: Vec<_> = path.components().collect();
                prop_assert_eq!(parts.len(), 1);
                prop_assert!(matches!(parts[0], std::path::Component::Normal(part) if part == text.as_str()));
            }
        }
    }
}
