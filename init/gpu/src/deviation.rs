//! Where Holdfast does on purpose something else than the original, why, and how to have the original's way.
//!
//! The page `init/gpu/docs/deviations.md` is made from [`TABLE`], and a test compares them.

use std::fmt::Write as _;

use crate::config::Own;

/// Switches deviations off as `as-original` does, for one process: names, separated by commas.
pub const VARIABLE: &str = "HOLDFAST_GPU_AS_ORIGINAL";

/// Where a deviation shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `nvidia-container-runtime-hook`.
    Hook,
    /// `nvidia-container-runtime` and its variants.
    Runtime,
    /// The GPU stage of `holdfast create`.
    Stage,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Hook => "hook",
            Self::Runtime => "runtime",
            Self::Stage => "stage",
        }
    }
}

/// How a deviation is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Its name in `as-original`.
    Name,
    /// Another key of the table `[holdfast]`, with the value for the original's way.
    Key(&'static str),
    /// Not at all, and why.
    Never(&'static str),
}

/// One deviation.
#[derive(Debug, PartialEq, Eq)]
pub struct Deviation {
    /// Its name in `as-original`.
    pub name: &'static str,
    /// Where it shows.
    pub places: &'static [Place],
    /// What the original does.
    pub original: &'static str,
    /// What we do.
    pub ours: &'static str,
    /// Why.
    pub why: &'static str,
    /// How it is switched off.
    pub switch: Switch,
}

impl Deviation {
    /// Whether the original's way is wanted.
    #[must_use]
    pub fn is_off(&self, own: &Own) -> bool {
        self.switch == Switch::Name
            && own
                .as_original
                .iter()
                .any(|name| name == self.name || name == "all")
    }
}

/// A container state without a pid.
pub static PID_ZERO: Deviation = Deviation {
    name: "pid-zero",
    places: &[Place::Hook],
    original: "A state without a pid, or with pid 0, calls `nvidia-container-cli --pid=0`.",
    ours: "Exit code 1; the CLI is not called.",
    why: "With pid 0 the CLI works on its own parent: it would mount the driver into the runtime's or the shim's namespace.",
    switch: Switch::Name,
};

/// A wrong word in the configuration.
pub static SILENT_CAPABILITIES: Deviation = Deviation {
    name: "silent-capabilities",
    places: &[Place::Hook],
    original: "An unknown word in `supported-driver-capabilities` ends the hook with code 1 and no text at all.",
    ours: "The same exit code, with a text that names the word and the key.",
    why: "An error without a text costs somebody a night.",
    switch: Switch::Never("only the text differs"),
};

/// CDI names with a vendor or class of one letter.
pub static ONE_LETTER_KIND: Deviation = Deviation {
    name: "one-letter-kind",
    places: &[Place::Hook, Place::Runtime, Place::Stage],
    original: "A device such as `a/b=c` crashes the parser of CDI names (exit code 1 or 2, a stack trace), from data that the image controls.",
    ours: "In the hook it is no CDI name, like every other text that is none. In the runtime and the stage it is one, and its device is looked for.",
    why: "No input may crash us.",
    switch: Switch::Never("a crash is not reproduced"),
};

/// A bad configuration.
pub static CONFIG_ERRORS: Deviation = Deviation {
    name: "config-errors",
    places: &[Place::Stage],
    original: "A config.toml that cannot be used fails every container, whether or not it asks for a GPU, and every command of the runtime, `delete` and `kill` included.",
    ours: "It fails the creation of containers that ask for a GPU. Others are created. No other command reads it.",
    why: "One wrong line must not make running pods undeletable.",
    switch: Switch::Name,
};

/// An entry of the environment without `=`.
pub static INVALID_VARIABLES: Deviation = Deviation {
    name: "invalid-variables",
    places: &[Place::Stage],
    original: "An entry of `process.env` without `=` fails the container, also one that asks for no GPU.",
    ours: "Such an entry is passed over.",
    why: "It asks for no GPU, and runc without the toolkit runs such a container.",
    switch: Switch::Name,
};

/// Who allows the devices.
pub static DEVICE_RULES: Deviation = Deviation {
    name: "device-rules",
    places: &[Place::Stage],
    original: "The CLI allows the devices in the cgroup behind the back of systemd, which takes them away again at the next `daemon-reload` (\"Failed to initialize NVML: Unknown Error\").",
    ours: "Holdfast adds the rules to the specification before the cgroup exists, and calls the CLI with `--no-cgroups`.",
    why: "Rules that systemd knows survive its reload.",
    switch: Switch::Key("device-rules = \"cli\""),
};

/// Fewer devices than asked for.
pub static STRICT: Deviation = Deviation {
    name: "strict",
    places: &[Place::Stage],
    original: "A container may start with fewer GPUs than it asked for, or with none: a duplicate in the list, a missing device node, a node without driver.",
    ours: "The creation fails and says what is missing.",
    why: "A job that finds no GPU after an hour in the queue is worse than one that is not started.",
    switch: Switch::Key("strict = false"),
};

/// The environment of host programs.
pub static CLEAN_ENVIRONMENT: Deviation = Deviation {
    name: "clean-environment",
    places: &[Place::Stage],
    original: "The CLI inherits the environment of whoever called the runtime.",
    ours: "It gets `PATH` and the entries of `nvidia-container-cli.environment`, nothing else.",
    why: "A variable such as LD_PRELOAD that reaches a program of the host is a way out of a container (CVE-2025-23266).",
    switch: Switch::Never("it is a matter of security; `environment` adds what is needed"),
};

/// No limit of time.
pub static DEADLINE: Deviation = Deviation {
    name: "deadline",
    places: &[Place::Stage],
    original: "The CLI may take for ever, and a CLI that hangs in the driver hangs the creation.",
    ours: "It has a deadline for all attempts together; `driver rpc error: timed out` is tried once more within it. A CLI that cannot be killed is not waited for.",
    why: "A creation that never ends blocks the kubelet's worker and names no cause.",
    switch: Switch::Key("deadline = \"3650d\""),
};

/// Tegra.
pub static CSV: Deviation = Deviation {
    name: "csv",
    places: &[Place::Runtime, Place::Stage],
    original: "In mode csv (Tegra) lists of files say what a container gets.",
    ours: "A container that asks for a GPU in this mode is refused, with a text that says what to do. Others are created.",
    why: "Lists of files are not supported yet.",
    switch: Switch::Never("it is not there"),
};

/// A change of `config.json`.
pub static ATOMIC_REWRITE: Deviation = Deviation {
    name: "atomic-rewrite",
    places: &[Place::Runtime],
    original: "The modified config.json is written over the old one; a crash in between leaves half a file.",
    ours: "It is written beside it and renamed, with the same mode and owner.",
    why: "A reader sees the old file or the new one.",
    switch: Switch::Never("the file is the same"),
};

/// Duplicates in a list of devices.
pub static DUPLICATES: Deviation = Deviation {
    name: "duplicates",
    places: &[Place::Stage],
    original: "In mode jit-cdi a device that is named twice (`0,0`) leaves an empty name behind, which stands for \"no device\": the container gets none at all. `NVIDIA_IMEX_CHANNELS=none` gives all channels.",
    ours: "A device that is named twice is injected once. `none` gives no channel.",
    why: "See strict.",
    switch: Switch::Key("strict = false"),
};

/// A prefix of annotations that is none.
pub static EMPTY_PREFIX: Deviation = Deviation {
    name: "empty-annotation-prefix",
    places: &[Place::Runtime, Place::Stage],
    original: "An empty text in `annotation-prefixes` makes every annotation of a container a request for CDI devices.",
    ours: "It counts for nothing.",
    why: "Annotations that do not come from the kubelet's device plugins must not give devices (CVE-2026-53492).",
    switch: Switch::Never("it is a matter of security"),
};

/// A folder of CDI files that is a link.
pub static LINKED_FOLDER: Deviation = Deviation {
    name: "linked-folder",
    places: &[Place::Runtime, Place::Stage],
    original: "A folder of `spec-dirs` that is itself a symbolic link is not read, without a word.",
    ours: "It is read.",
    why: "Whoever names it means what it leads to.",
    switch: Switch::Never("nothing that worked changes"),
};

/// Characters that are none in config.json.
pub static LONE_SURROGATES: Deviation = Deviation {
    name: "lone-surrogates",
    places: &[Place::Runtime],
    original: "Half a surrogate pair in a string of config.json (`\\ud800`) becomes U+FFFD.",
    ours: "config.json is refused as bad JSON.",
    why: "A value that nobody wrote would go into the container.",
    switch: Switch::Never("no writer of config.json makes it"),
};

/// Sections of other platforms.
pub static OTHER_PLATFORMS: Deviation = Deviation {
    name: "other-platforms",
    places: &[Place::Runtime],
    original: "The section `vm` of config.json is decoded strictly, and written again without what is empty.",
    ours: "It is taken as it is.",
    why: "It says nothing of a container on Linux.",
    switch: Switch::Never("nothing that worked changes"),
};

/// A driver root with a slash at its end.
pub static ROOT_SLASH: Deviation = Deviation {
    name: "root-slash",
    places: &[Place::Runtime, Place::Stage],
    original: "With `nvidia-container-cli.root` ending in `/`, a path of the driver's comes out broken.",
    ours: "The slash at the end means nothing.",
    why: "It names the same folder.",
    switch: Switch::Never("nothing that worked changes"),
};

/// The grammar of `config.toml`.
pub static TOML: Deviation = Deviation {
    name: "toml",
    places: &[Place::Hook, Place::Runtime, Place::Stage],
    original: "The reader of config.toml is older than TOML 1.0: it takes a line break in 'single quotes', and a table that is first made by a key with dots and then by its own header; it does not take a line break in an inline table.",
    ours: "TOML 1.1.",
    why: "A file that both read means the same to both; the toolkit's own files are such.",
    switch: Switch::Never(
        "only files that are no TOML, or newer than the toolkit's reader, differ",
    ),
};

/// All of them.
pub static TABLE: &[&Deviation] = &[
    &PID_ZERO,
    &SILENT_CAPABILITIES,
    &ONE_LETTER_KIND,
    &TOML,
    &CONFIG_ERRORS,
    &INVALID_VARIABLES,
    &DEVICE_RULES,
    &STRICT,
    &CLEAN_ENVIRONMENT,
    &DEADLINE,
    &DUPLICATES,
    &CSV,
    &ATOMIC_REWRITE,
    &EMPTY_PREFIX,
    &LINKED_FOLDER,
    &LONE_SURROGATES,
    &OTHER_PLATFORMS,
    &ROOT_SLASH,
];

/// Whether `as-original` may hold this word.
#[must_use]
pub fn is_known(name: &str) -> bool {
    name == "all"
        || TABLE
            .iter()
            .any(|one| one.switch == Switch::Name && one.name == name)
}

/// The names that `as-original` takes.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE
        .iter()
        .filter(|one| one.switch == Switch::Name)
        .map(|one| one.name)
}

/// The page about them, in Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Where the GPU stage differs from NVIDIA's container toolkit\n\n\
         Made from `init/gpu/src/deviation.rs`; a test compares the two.\n\n\
         *hook* is `nvidia-container-runtime-hook`, *runtime* is `nvidia-container-runtime`, *stage* is the GPU stage of \
         `holdfast create`. Everything that is not listed here is as with the original, version 1.20.\n\n\
         A deviation with a name under \"off\" is switched off by that name in `config.toml`, or, for one process, in the \
         variable `HOLDFAST_GPU_AS_ORIGINAL` (names separated by commas; `all` for all of them):\n\n\
         ```toml\n[holdfast]\nas-original = [\"pid-zero\"]\n```\n\n\
         | deviation | where | the original | ours | why | off |\n|---|---|---|---|---|---|\n",
    );
    for one in TABLE {
        let places: Vec<_> = one.places.iter().map(|place| place.name()).collect();
        let off = match one.switch {
            Switch::Name => format!("`{}`", one.name),
            Switch::Key(setting) => format!("`{setting}`"),
            Switch::Never(why) => format!("never: {why}"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {off} |",
            one.name,
            places.join(", "),
            one.original,
            one.ours,
            one.why
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn half_a_surrogate_pair_is_bad_json() {
        assert!(serde_json::from_str::<serde_json::Value>(r#"{"hostname":"\ud800"}"#).is_err());
    }

    #[test]
    fn the_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/deviations.md");
        if std::env::var_os("HOLDFAST_WRITE_PAGES").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            page(),
            "write it anew: HOLDFAST_WRITE_PAGES=1 cargo test -p holdfast-gpu the_page"
        );
    }

    #[test]
    fn each_has_a_name_of_its_own_and_cells_that_fit_a_table() {
        let names: BTreeSet<_> = TABLE.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for one in TABLE {
            assert!(!one.places.is_empty(), "{}", one.name);
            for cell in [one.original, one.ours, one.why] {
                assert!(
                    !cell.is_empty() && !cell.contains(['|', '\n']),
                    "{}",
                    one.name
                );
            }
        }
    }

    #[test]
    fn a_name_switches_one_off_and_all_those_that_can_be() {
        let own = |names: &[&str]| Own {
            as_original: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Own::default()
        };
        assert!(!PID_ZERO.is_off(&own(&[])));
        assert!(PID_ZERO.is_off(&own(&["pid-zero"])));
        assert!(!CONFIG_ERRORS.is_off(&own(&["pid-zero"])));
        assert!(CONFIG_ERRORS.is_off(&own(&["all"])));
        assert!(!CLEAN_ENVIRONMENT.is_off(&own(&["all"])));
    }
}
