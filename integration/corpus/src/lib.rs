//! Runs a fuzz target over its committed corpus, and over a bounded number of mutations of it, in
//! a plain `#[test]`: no nightly compiler, no libFuzzer, the same inputs on every machine.
//!
//! A target is a function from bytes to nothing that panics when the parser it drives is wrong;
//! it lives beside the parser (`src/fuzz.rs` of its crate). `fuzz/` of the crate holds the wrapper
//! for cargo-fuzz and the corpus. See `integration/docs/fuzzing.md`.
#![expect(clippy::panic, clippy::expect_used, reason = "it only runs in tests")]

mod mutate;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

pub use mutate::Mutator;

/// What the inputs look like, and so how they are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Any bytes: bits, bytes, lengths and blocks are changed.
    Bytes,
    /// JSON: every second mutation changes a value, a key or a list and stays JSON, the others
    /// change bytes.
    Json,
}

/// Runs `target` on every file of `fuzz/corpus/NAME` below `crate_folder` (say
/// `env!("CARGO_MANIFEST_DIR")`), and on `mutations` changed ones, spread evenly over the files.
///
/// The mutations follow from the file's name and their number alone: a failure is the same one
/// again in the next run.
///
/// # Panics
/// When the corpus is empty or cannot be read; and when the target panicked: then the input is
/// written to the temporary directory, and the message says where and how to keep it.
pub fn replay(
    crate_folder: &str,
    name: &str,
    shape: Shape,
    mutations: usize,
    target: impl Fn(&[u8]),
) {
    let folder = Path::new(crate_folder).join("fuzz/corpus").join(name);
    let seeds = seeds(&folder);
    assert!(!seeds.is_empty(), "no corpus in {}", folder.display());
    replay_on(&seeds, name, shape, mutations, target);
}

/// As [`replay`], on inputs that were not read from the corpus but made, say by a builder whose
/// format changes; `name` and the paths only tell them apart.
///
/// # Panics
/// As [`replay`].
pub fn replay_on(
    seeds: &[(PathBuf, Vec<u8>)],
    name: &str,
    shape: Shape,
    mutations: usize,
    target: impl Fn(&[u8]),
) {
    let each = mutations.div_ceil(seeds.len().max(1));
    for (path, bytes) in seeds {
        attempt(name, path, 0, bytes, &target);
        let mut mutator = Mutator::new(&path.file_name().unwrap_or_default().to_string_lossy());
        for number in 1..=each {
            let changed = match shape {
                Shape::Bytes => mutator.bytes(bytes),
                Shape::Json if number % 2 == 0 => mutator.bytes(bytes),
                Shape::Json => mutator.json(bytes),
            };
            attempt(name, path, number, &changed, &target);
        }
    }
}

/// The files of `folder` by name, with their content.
///
/// # Panics
/// When one cannot be read.
pub fn seeds(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let list = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("read the corpus {}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = list
        .map(|entry| entry.expect("an entry of the corpus").path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let bytes =
                fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
            (path, bytes)
        })
        .collect()
}

fn attempt(name: &str, seed: &Path, number: usize, input: &[u8], target: &impl Fn(&[u8])) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_ok() {
        return;
    }
    let stem = seed.file_stem().unwrap_or_default().to_string_lossy();
    let kept = std::env::temp_dir().join(format!("holdfast-fuzz-{name}-{stem}-{number}"));
    let written = fs::write(&kept, input);
    panic!(
        "the fuzz target {name} failed on mutation {number} (0: none) of {}; the input is in {} \
         ({written:?}): put it into {} once it is understood",
        seed.display(),
        kept.display(),
        seed.parent().unwrap_or(seed).display(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn every_seed_is_run_and_the_mutations_repeat() {
        let run = || {
            let seen = RefCell::new(Vec::new());
            replay(
                env!("CARGO_MANIFEST_DIR"),
                "own",
                Shape::Json,
                40,
                |input| {
                    seen.borrow_mut().push(input.to_vec());
                },
            );
            seen.into_inner()
        };
        let (first, second) = (run(), run());
        assert_eq!(first, second);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/own");
        for (path, bytes) in seeds(&folder) {
            assert!(first.contains(&bytes), "{}", path.display());
        }
        let distinct: std::collections::BTreeSet<_> = first.iter().collect();
        assert!(distinct.len() > 30, "only {} inputs differ", distinct.len());
    }

    #[test]
    fn a_failing_target_leaves_its_input_behind() {
        let failed = catch_unwind(|| {
            replay(env!("CARGO_MANIFEST_DIR"), "own", Shape::Json, 0, |input| {
                assert!(!input.starts_with(b"{"), "on purpose");
            });
        });
        let text = *failed.unwrap_err().downcast::<String>().unwrap();
        let kept = text
            .split_whitespace()
            .find(|word| word.contains("holdfast-fuzz-own-"));
        let kept = Path::new(kept.unwrap());
        assert!(fs::read(kept).unwrap().starts_with(b"{"));
        fs::remove_file(kept).unwrap();
    }
}
