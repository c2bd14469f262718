//! Names for the addresses of a backtrace, from this program's own symbol table.

use std::path::Path;

/// A function of the program.
#[derive(Debug)]
struct Symbol {
    start: u64,
    size: u64,
    name: String,
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<usize> {
    at(bytes, offset).map(|two| usize::from(u16::from_le_bytes(two)))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(at(bytes, offset)?)).ok()
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    at(bytes, offset).map(u64::from_le_bytes)
}

fn size_at(bytes: &[u8], offset: usize) -> Option<usize> {
    usize::try_from(u64_at(bytes, offset)?).ok()
}

/// The functions of a 64-bit little-endian ELF file; see elf(5).
fn functions(file: &[u8]) -> Option<Vec<Symbol>> {
    if file.first_chunk::<6>()? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (
        size_at(file, 0x28)?,
        u16_at(file, 0x3a)?,
        u16_at(file, 0x3c)?,
    );
    let section = |index: usize| file.get(table.checked_add(index.checked_mul(size)?)?..);
    let body = |header: &[u8]| {
        let start = size_at(header, 0x18)?;
        file.get(start..start.checked_add(size_at(header, 0x20)?)?)
    };
    let symbols = (0..count)
        .filter_map(section)
        .find(|header| u32_at(header, 4) == Some(2))?; // SHT_SYMTAB
    let names = body(section(u32_at(symbols, 0x28)?)?)?;
    let name = |offset: usize| {
        let rest = names.get(offset..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(rest.get(..end)?).into_owned())
    };
    let found = body(symbols)?
        .chunks_exact(24)
        .filter(|symbol| symbol.get(4).is_some_and(|info| info & 15 == 2)) // STT_FUNC
        .filter_map(|symbol| {
            Some(Symbol {
                start: u64_at(symbol, 8)?,
                size: u64_at(symbol, 16)?,
                name: name(u32_at(symbol, 0)?)?,
            })
        })
        .collect();
    Some(found)
}

/// Undoes the older of Rust's two ways to write names; others stay as they are.
fn readable(name: &str) -> String {
    let Some(mut rest) = name
        .strip_prefix("_ZN")
        .and_then(|rest| rest.strip_suffix('E'))
    else {
        return name.to_owned();
    };
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Some((length, after)) = rest.split_at_checked(digits) else {
            return name.to_owned();
        };
        let Some((part, after)) = length
            .parse()
            .ok()
            .and_then(|length: usize| after.split_at_checked(length))
        else {
            return name.to_owned();
        };
        parts.push(part);
        rest = after;
    }
    // The last part is a hash.
    if parts.len() > 1
        && parts
            .last()
            .is_some_and(|part| part.len() == 17 && part.starts_with('h'))
    {
        parts.pop();
    }
    parts
        .join("::")
        .replace("$LT$", "<")
        .replace("$GT$", ">")
        .replace("$u20$", " ")
        .replace("$u7b$", "{")
        .replace("$u7d$", "}")
        .replace("..", "::")
}

/// One line for each of these addresses as they are in the file: `name+0x12`, or the bare address.
pub(super) fn name_all(program: &Path, addresses: &[u64]) -> Vec<String> {
    let symbols = std::fs::read(program)
        .ok()
        .and_then(|file| functions(&file))
        .unwrap_or_default();
    addresses
        .iter()
        .map(|address| {
            let symbol = symbols
                .iter()
                .filter(|symbol| symbol.start <= *address)
                .max_by_key(|symbol| symbol.start)
                .filter(|symbol| *address - symbol.start < symbol.size.max(1));
            match symbol {
                Some(symbol) => {
                    format!("{}+{:#x}", readable(&symbol.name), address - symbol.start)
                }
                None => format!("{address:#x}"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_gets_the_name_of_its_function() {
        let program = std::env::current_exe().unwrap();
        let file = std::fs::read(&program).unwrap();
        let own = functions(&file)
            .unwrap()
            .into_iter()
            .find(|symbol| readable(&symbol.name).ends_with("symbols::name_all"))
            .expect("this program has a symbol table");
        let names = name_all(&program, &[own.start + 4, 1]);
        assert!(names[0].ends_with("symbols::name_all+0x4"), "{names:?}");
        assert_eq!(names[1], "0x1");
        assert!(name_all(Path::new("/dev/null"), &[2]).contains(&"0x2".to_owned()));
    }

    #[test]
    fn names_are_readable_where_they_can_be() {
        assert_eq!(
            readable("_ZN4core3ops8function6FnOnce9call_once17h0123456789abcdefE"),
            "core::ops::function::FnOnce::call_once"
        );
        assert_eq!(readable("memcpy"), "memcpy");
        assert_eq!(readable("_ZN9broken"), "_ZN9broken");
    }
}
