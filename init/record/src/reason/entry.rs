//! What does not depend on the occurrence: codes, groups, MESSAGE_IDs.

use std::fmt;

/// What is the same for every occurrence of a reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// `HF` and three digits. Never changes, never means anything else.
    pub code: &'static str,
    /// The group, which is the second digit of the code.
    pub group: Group,
    /// A few words that follow a subject: "… exited by itself".
    pub title: &'static str,
    /// What it means, in whole sentences.
    pub means: &'static str,
    /// What to do, in whole sentences.
    pub advice: &'static str,
    /// For journald's `MESSAGE_ID`, `sd_journal_send(3)`.
    pub message_id: MessageId,
}

/// Where reasons belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// HF10x: the process ended itself.
    Ended,
    /// HF11x: somebody asked for it.
    Request,
    /// HF12x: no memory.
    Oom,
    /// HF13x: a signal from elsewhere.
    Outside,
    /// HF14x: hooks.
    Hook,
    /// HF15x: creating and starting.
    Create,
    /// HF16x: the runtime.
    Runtime,
    /// HF17x: the shim.
    Shim,
    /// HF18x: the GPU stage.
    Gpu,
    /// HF191 to HF198: the node.
    Node,
    /// HF199: unknown.
    Unknown,
}

impl Group {
    /// A heading for it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Ended => "The process ended itself",
            Self::Request => "Ended by request",
            Self::Oom => "Out of memory",
            Self::Outside => "A signal from outside",
            Self::Hook => "Hooks",
            Self::Create => "Creating and starting",
            Self::Runtime => "The runtime",
            Self::Shim => "The shim",
            Self::Gpu => "GPU",
            Self::Node => "The node",
            Self::Unknown => "Unknown",
        }
    }
}

/// 128 bits, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId(pub u128);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
