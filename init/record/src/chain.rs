//! Errors as one line for a person.

use std::error::Error;
use std::fmt::Write as _;

/// An error and everything it was caused by, joined by `: `. Our errors never repeat their sources,
/// so this is done once: where an error leaves the program.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {next}");
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("open the file")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_cause_is_there_once() {
        let errno = std::io::Error::from_raw_os_error(2);
        let told = chain(&Outer(errno));
        assert_eq!(
            told,
            "open the file: No such file or directory (os error 2)"
        );
    }
}
