//! The options of `update`: a document, or one limit each.

use std::path::PathBuf;

use lexopt::{Arg, Parser};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::commands::{Ids, some_path};
use super::global::{text, usage};
use crate::error::{Error, Result};
use crate::rdt::Schemata;

/// What `update` was asked for.
#[derive(Debug)]
pub(super) enum Asked {
    /// `--resources`: the document there, `-` for standard input. The other options do not count
    /// then, as with runc.
    Document(PathBuf),
    /// The other options; what was not given is left alone.
    Limits(Box<LinuxResources>),
}

/// Reads the options up to the end: limits of cgroups, those of resctrl, the container.
pub(super) fn parse(parser: &mut Parser) -> Result<(Asked, Schemata, Ids)> {
    let mut document = None;
    let mut ids = Ids::default();
    let mut limits = Limits::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('r') | Arg::Long("resources") => document = some_path(parser)?,
            Arg::Long(name) => {
                let name = name.to_owned();
                limits.set(&name, parser)?;
            }
            Arg::Value(value) => ids.push(value)?,
            other @ Arg::Short(_) => return Err(usage(other.unexpected())),
        }
    }
    let schemata = std::mem::take(&mut limits.schemata);
    let asked = match document {
        Some(path) => Asked::Document(path),
        None => Asked::Limits(Box::new(limits.resources())),
    };
    Ok((asked, schemata, ids))
}

#[derive(Debug, Default)]
struct Limits {
    cpu: Option<LinuxCpu>,
    memory: Option<LinuxMemory>,
    block_io: Option<LinuxBlockIo>,
    pids: Option<LinuxPids>,
    schemata: Schemata,
}

impl Limits {
    fn set(&mut self, name: &str, parser: &mut Parser) -> Result<()> {
        let cpu = &mut self.cpu;
        let memory = &mut self.memory;
        match name {
            "blkio-weight" => {
                let weight = number(name, &text(parser)?)?;
                self.block_io
                    .get_or_insert_default()
                    .set_weight(Some(weight));
            }
            "cpu-period" => {
                let value = number(name, &text(parser)?)?;
                cpu.get_or_insert_default().set_period(Some(value));
            }
            "cpu-quota" => {
                let value = number(name, &text(parser)?)?;
                cpu.get_or_insert_default().set_quota(Some(value));
            }
            "cpu-burst" => {
                let value = number(name, &text(parser)?)?;
                cpu.get_or_insert_default().set_burst(Some(value));
            }
            "cpu-share" => {
                let value = number(name, &text(parser)?)?;
                cpu.get_or_insert_default().set_shares(Some(value));
            }
            "cpu-rt-period" => {
                let value = number(name, &text(parser)?)?;
                cpu.get_or_insert_default().set_realtime_period(Some(value));
            }
            "cpu-rt-runtime" => {
                let value = number(name, &text(parser)?)?;
                cpu.get_or_insert_default()
                    .set_realtime_runtime(Some(value));
            }
            "cpu-idle" => {
                let value = number(name, &text(parser)?)?;
                cpu.get_or_insert_default().set_idle(Some(value));
            }
            "cpuset-cpus" => {
                let value = text(parser)?;
                cpu.get_or_insert_default().set_cpus(Some(value));
            }
            "cpuset-mems" => {
                let value = text(parser)?;
                cpu.get_or_insert_default().set_mems(Some(value));
            }
            "memory" => {
                let value = bytes(name, &text(parser)?)?;
                memory.get_or_insert_default().set_limit(Some(value));
            }
            "memory-reservation" => {
                let value = bytes(name, &text(parser)?)?;
                memory.get_or_insert_default().set_reservation(Some(value));
            }
            "memory-swap" => {
                let value = bytes(name, &text(parser)?)?;
                memory.get_or_insert_default().set_swap(Some(value));
            }
            "kernel-memory" | "kernel-memory-tcp" => {
                let _ = bytes(name, &text(parser)?)?;
                // As runc since 1.1: kernels have dropped it.
                log::warn!("--{name} is ignored: kernel memory is part of the memory limit");
            }
            "pids-limit" => {
                let value = number(name, &text(parser)?)?;
                self.pids.get_or_insert_default().set_limit(value);
            }
            "l3-cache-schema" => self.schemata.l3_cache = given(text(parser)?),
            "mem-bw-schema" => self.schemata.memory_bandwidth = given(text(parser)?),
            other => return Err(Error::Usage(format!("invalid option '--{other}'"))),
        }
        Ok(())
    }

    fn resources(self) -> LinuxResources {
        let mut resources = LinuxResources::default();
        // The default of the type allows no device at all, which is nothing that was asked.
        resources
            .set_devices(None)
            .set_cpu(self.cpu)
            .set_memory(self.memory)
            .set_block_io(self.block_io)
            .set_pids(self.pids);
        resources
    }
}

/// An empty value is none, as for runc.
fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| {
        Error::Usage(format!(
            "--{option} {text:?} is not a number that can be set"
        ))
    })
}

/// A size as docker's tools write it: bytes, or with `k`, `m`, `g`, `t` or `p` for powers of
/// 1024 and an optional `b` or `ib`; -1 is "without limit".
fn bytes(option: &str, text: &str) -> Result<i64> {
    let wrong = || {
        Error::Usage(format!(
            "--{option} {text:?} is no size: bytes, or a number with k, m, g, t or p, or -1"
        ))
    };
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = lower.get(digits.len()..).unwrap_or_default();
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(wrong()),
    };
    let digits = digits.trim_end();
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let whole: i64 = whole.parse().map_err(|_| wrong())?;
    // At most 18 digits, so that nothing overflows 128 bits.
    let known = fraction.get(..fraction.len().min(18)).unwrap_or_default();
    let fraction: i128 = known.parse::<u64>().map_err(|_| wrong())?.into();
    let power = 10_i128.pow(u32::try_from(known.len()).unwrap_or(0));
    if whole < 0 {
        return Err(wrong());
    }
    let sum = (i128::from(whole) << shift) + ((fraction << shift) / power);
    i64::try_from(sum).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(words: &[&str]) -> Result<LinuxResources> {
        let mut parser = Parser::from_args(words);
        match parse(&mut parser)?.0 {
            Asked::Limits(resources) => Ok(*resources),
            Asked::Document(path) => panic!("{}", path.display()),
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", 0),
            ("-1", -1),
            ("123", 123),
            ("1k", 1 << 10),
            ("1K", 1 << 10),
            ("2mb", 2 << 20),
            ("3GiB", 3 << 30),
            ("1.5g", 3 << 29),
            ("1 t", 1 << 40),
        ] {
            assert_eq!(bytes("memory", text).unwrap(), expected, "{text}");
        }
        for text in ["", "-2", "x", "1x", "m", "9999999p", "1.x", "1.5.5"] {
            let error = bytes("memory", text).unwrap_err().to_string();
            assert!(error.contains("--memory"), "{text}: {error}");
        }
    }

    #[test]
    fn only_what_was_given_is_set() {
        let none = limits(&["box"]).unwrap();
        assert!(none.cpu().is_none() && none.memory().is_none() && none.devices().is_none());
        let some = limits(&[
            "--cpu-quota",
            "-1",
            "--memory=32m",
            "--pids-limit=-1",
            "box",
        ])
        .unwrap();
        let cpu = some.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(-1), None));
        assert_eq!(some.memory().unwrap().limit(), Some(32 << 20));
        assert_eq!(some.pids().unwrap().limit(), -1);
        assert!(some.block_io().is_none());
    }

    #[test]
    fn schemata_are_apart_from_limits_and_count_beside_a_document() {
        let words = [
            "-r",
            "-",
            "--l3-cache-schema",
            "L3:0=f",
            "--mem-bw-schema=",
            "box",
        ];
        let (asked, schemata, _) = parse(&mut Parser::from_args(words)).unwrap();
        assert!(matches!(asked, Asked::Document(_)));
        assert_eq!(schemata.l3_cache.as_deref(), Some("L3:0=f"));
        assert_eq!(schemata.memory_bandwidth, None);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (words, told) in [
            (&["--cpu-share", "many", "box"][..], "--cpu-share"),
            (&["--nonsense", "1", "box"], "--nonsense"),
        ] {
            let error = limits(words).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
