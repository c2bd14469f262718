//! The command line, as containerd writes it (Go's `flag` syntax).
//!
//! Flags that are not known are ignored: a newer containerd may bring one, and failing a
//! container because of it would help nobody.

use std::path::PathBuf;

use crate::resume::upgrade;

/// What this invocation is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// `start`: make the socket and the server, print the address.
    Start,
    /// `delete`: clean up after a dead shim.
    Delete,
    /// `publish`: tell the events of a dead shim; only `delete` runs it.
    Publish,
    /// `can-resume FORMAT`: say whether a slate of this format can be gone on from.
    CanResume(u32),
    /// No action: be the server on the inherited descriptor.
    Serve,
    /// `-info`: describe runtime and features.
    Info,
    /// `-v`: print the version.
    Version,
}

/// The flags and the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// What to do.
    pub(crate) action: Action,
    /// `-namespace`: containerd namespace.
    pub(crate) namespace: String,
    /// `-id`: container (for the server: the first of its group).
    pub(crate) id: String,
    /// `-address`: containerd's grpc socket.
    pub(crate) address: String,
    /// `-bundle`: only with `delete`.
    pub(crate) bundle: Option<PathBuf>,
    /// `-debug`.
    pub(crate) debug: bool,
    /// `-back`: the program to go back to if this one cannot go on.
    pub(crate) back: Option<i32>,
    /// `-resume`: the slate of the image before, for the server; see [`crate::resume`].
    pub(crate) resume: Option<i32>,
}

/// A command line that cannot be acted on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CommandLineError {
    /// Everything but `-v` and `-info` needs one.
    #[error("shim namespace cannot be empty")]
    NoNamespace,
    /// The word after the flags is no action.
    #[error("unknown action {0:?}; expected start or delete")]
    UnknownAction(String),
}

const SWITCHES: &[&str] = &["debug", "v", "version", "info"];

impl CommandLine {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// [`CommandLineError`].
    pub(crate) fn parse(
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Self, CommandLineError> {
        let mut line = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            debug: false,
            resume: None,
            back: None,
        };
        let mut special = None;
        let mut word = None;
        let mut arguments = arguments.into_iter().peekable();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument
                .strip_prefix("--")
                .or_else(|| argument.strip_prefix('-'))
            else {
                word = Some(argument);
                break;
            };
            if flag.is_empty() {
                word = arguments.next();
                break;
            }
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if SWITCHES.contains(&name) {
                let on = !matches!(
                    inline.as_deref(),
                    Some("false" | "0" | "f" | "F" | "FALSE" | "False")
                );
                match name {
                    "debug" => line.debug = on,
                    "info" if on => special = special.or(Some(Action::Info)),
                    "v" | "version" if on => special = Some(Action::Version),
                    _ => {}
                }
                continue;
            }
            let known = matches!(
                name,
                "namespace"
                    | "id"
                    | "address"
                    | "bundle"
                    | "resume"
                    | "back"
                    | "publish-binary"
                    | "socket"
                    | "debug-socket"
            );
            // A flag we do not know may or may not take a value; a word that follows and is
            // neither a flag nor an action is its value.
            let value = match inline {
                Some(value) => value,
                None if known => arguments.next().unwrap_or_default(),
                None => {
                    let follows = arguments.peek().is_some_and(|next| {
                        !next.starts_with('-') && next != "start" && next != "delete"
                    });
                    if follows {
                        arguments.next().unwrap_or_default()
                    } else {
                        String::new()
                    }
                }
            };
            match name {
                "namespace" => line.namespace = value,
                "id" => line.id = value,
                "address" => line.address = value,
                "bundle" => line.bundle = Some(value.into()),
                "back" => line.back = value.parse().ok(),
                "resume" => line.resume = value.parse().ok(),
                _ => {}
            }
        }
        line.action = match (special, word.as_deref()) {
            (Some(special), _) => special,
            (None, None) => Action::Serve,
            (None, Some("start")) => Action::Start,
            (None, Some("delete")) => Action::Delete,
            (None, Some("publish")) => Action::Publish,
            (None, Some(upgrade::QUESTION)) => Action::CanResume(
                arguments
                    .next()
                    .and_then(|format| format.parse().ok())
                    .unwrap_or(0),
            ),
            (None, Some(other)) => return Err(CommandLineError::UnknownAction(other.to_owned())),
        };
        if line.namespace.is_empty()
            && !matches!(
                line.action,
                Action::Info | Action::Version | Action::CanResume(_)
            )
        {
            return Err(CommandLineError::NoNamespace);
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CommandLine, CommandLineError> {
        CommandLine::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn reads_what_containerd_writes_in_any_order() {
        let old = parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start").unwrap();
        let new =
            parse("--id=a --debug=true -address=/run/c.sock -namespace k8s.io start").unwrap();
        assert_eq!(old, new);
        assert_eq!((old.action, old.debug), (Action::Start, true));
        let delete = parse("-namespace n -id a -bundle /b delete").unwrap();
        assert_eq!(delete.bundle.unwrap().to_str(), Some("/b"));
        assert_eq!(delete.action, Action::Delete);
    }

    #[test]
    fn unknown_flags_are_ignored_with_and_without_value() {
        assert_eq!(
            parse("-new 5 -namespace n -other start").unwrap().action,
            Action::Start
        );
        assert_eq!(
            parse("-newer=5 -namespace n").unwrap().action,
            Action::Serve
        );
    }

    #[test]
    fn only_version_and_info_do_without_a_namespace() {
        assert_eq!(parse("start"), Err(CommandLineError::NoNamespace));
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("--version").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert!(matches!(
            parse("-namespace n restart"),
            Err(CommandLineError::UnknownAction(_))
        ));
    }
}
