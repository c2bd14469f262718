//! What criu wrote down about its failure.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most that is read of a log: its end, 256 KiB. The cause stands near it.
const TAIL: i64 = 256 << 10;
/// Most lines that are told.
const LINES: usize = 3;

/// The first complaints in the log at `path`, without their times; empty when there are none.
pub(crate) fn complaints(path: &Path) -> String {
    let Ok(mut file) = std::fs::File::open(path) else {
        return String::new();
    };
    // A log that is shorter than that is read from its start.
    let _ = file.seek(SeekFrom::End(-TAIL));
    let mut bytes = Vec::new();
    if file
        .take(TAIL.cast_unsigned())
        .read_to_end(&mut bytes)
        .is_err()
    {
        return String::new();
    }
    select(&String::from_utf8_lossy(&bytes))
}

/// Lines are `(00.016214) Error (criu/vdso.c:381): vdso: Unexpected …`, or `(…) pie: 1: Error …`.
fn select(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().filter(|line| line.contains("Error (")) {
        let told = line
            .rsplit_once("): ")
            .map_or(line, |(_, told)| told)
            .trim();
        if !lines.contains(&told) {
            lines.push(told);
        }
        if lines.len() == LINES {
            break;
        }
    }
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaints_are_told_once() {
        let text = "(00.000024) Version: 3.17.1 (gitid 0)\n\
            (00.016214) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n\
            (00.016215) Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable\n\
            (00.016215) Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable\n\
            (00.016237) Found mmap_min_addr 0x10000\n";
        assert_eq!(
            select(text),
            "vdso: Unexpected rt vDSO area bounds; vdso: Failed to fill self vdso symtable"
        );
        assert_eq!(complaints(Path::new("/nonexistent")), "");
    }
}
