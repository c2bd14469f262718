//! Names of CDI devices: `vendor/class=name`.

/// The parts of a qualified name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qualified<'a> {
    /// Such as `nvidia.com`.
    pub vendor: &'a str,
    /// Such as `gpu`.
    pub class: &'a str,
    /// Such as `0` or `all`.
    pub name: &'a str,
}

/// The parts of `device` if it is a qualified name in the sense of the CDI specification. A vendor or class of a single
/// letter is none (the toolkit's parser crashes on it).
#[must_use]
pub fn qualified(device: &str) -> Option<Qualified<'_>> {
    let (kind, name) = device.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    (is_kind(vendor) && is_kind(class) && is_name(name)).then_some(Qualified {
        vendor,
        class,
        name,
    })
}

fn is_kind(text: &str) -> bool {
    match text.as_bytes() {
        [first, middle @ .., last] => {
            first.is_ascii_alphabetic()
                && middle
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte))
                && last.is_ascii_alphanumeric()
        }
        [] | [_] => false,
    }
}

fn is_name(text: &str) -> bool {
    match text.as_bytes() {
        [only] => only.is_ascii_alphanumeric(),
        [first, middle @ .., last] => {
            first.is_ascii_alphanumeric()
                && middle
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(byte))
                && last.is_ascii_alphanumeric()
        }
        [] => false,
    }
}
