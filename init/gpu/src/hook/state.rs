//! The container's state, as engines write it to the hook's standard input.

use crate::json::{Error, Json};

/// What the hook wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct State {
    /// 0 when there is none.
    pub(super) pid: i64,
    /// Empty: the current directory.
    pub(super) bundle: String,
}

impl State {
    /// Reads it. Docker before 17.06 calls the bundle `bundlePath`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Error> {
        let json = Json::first(bytes)?;
        if json != Json::Null {
            json.object("the state")?;
        }
        let text = |key| json.get_plain(key).map_or(Ok(""), |value| value.text(key));
        let (bundle, old) = (text("bundle")?, text("bundlePath")?);
        Ok(Self {
            pid: json
                .get_plain("pid")
                .map_or(Ok(0), |pid| pid.integer("pid"))?,
            bundle: if bundle.is_empty() { old } else { bundle }.to_owned(),
        })
    }
}
