//! Statistics, with all that containerd's messages `io.containerd.cgroups.v1.Metrics` and `.v2.Metrics` carry.
//!
//! Field names are those of the messages. A file that is missing or cannot be parsed leaves its field `None`; a key that
//! a kernel does not write is 0. Network statistics belong to the network namespace and are not read here.

mod details;
mod types;
mod v1;
mod v2;

use std::os::fd::AsFd;

use crate::cgroup::Cgroup;
use crate::dir::{Dir, read_all};
use crate::error::{Error, Result};
use crate::sys;

pub use details::{Cpuset, Details, PerCpu};
pub use types::*;

impl Cgroup {
    /// Reads the statistics.
    ///
    /// # Errors
    /// [`Error::Gone`] when the cgroup does not exist any more. A single unreadable file is no error.
    pub fn stats(&self) -> Result<Stats> {
        if self.is_v1() {
            let gone = self.reference().is_none_or(|place| !exists(&place.dir));
            if gone {
                return Err(self.gone());
            }
            return Ok(Stats::V1(Box::new(v1::read(self))));
        }
        let Some(place) = self.unified() else {
            return Err(self.gone());
        };
        // A dozen and a half files: worth an fd of the directory.
        match place.dir.fd() {
            Ok(_) if exists(&place.dir) => {}
            Err(error) if !error.is_gone() => return Err(error),
            Ok(_) | Err(_) => return Err(self.gone()),
        }
        Ok(Stats::V2(Box::new(v2::read(&place.dir))))
    }

    fn gone(&self) -> Error {
        let path = self
            .reference()
            .map(|place| place.dir.path().display().to_string());
        Error::Gone {
            path: path.unwrap_or_default(),
        }
    }
}

/// Whether the cgroup is there: an fd of a removed directory opens nothing.
fn exists(dir: &Dir) -> bool {
    match dir.open("cgroup.procs", libc::O_RDONLY) {
        Ok(_) => true,
        Err(error) => !crate::dir::gone(&error),
    }
}

/// A file of a single number; `max` is `u64::MAX`, and so is a negative number.
fn number(dir: &Dir, file: &str) -> Option<u64> {
    let text = dir.try_read(file).ok()?;
    parse_number(text.trim())
}

fn parse_number(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        _ if text.starts_with('-') => Some(u64::MAX),
        _ => text.parse().ok(),
    }
}

/// The `KEY NUMBER` lines of a file.
struct Keyed(Vec<(String, u64)>);

impl Keyed {
    fn read(dir: &Dir, file: &str) -> Option<Self> {
        dir.try_read(file).ok().map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| {
                    let (key, value) = line.split_once(' ')?;
                    Some((key.to_owned(), parse_number(value.trim())?))
                })
                .collect(),
        )
    }

    fn get(&self, key: &str) -> u64 {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map_or(0, |(_, value)| *value)
    }
}

/// `pids.current` and `pids.max`.
fn pids(dir: &Dir) -> Option<Pids> {
    let limit = number(dir, "pids.max")
        .filter(|&limit| limit != u64::MAX)
        .unwrap_or(0);
    Some(Pids {
        current: number(dir, "pids.current")?,
        limit,
    })
}

/// `rdma.current` and `rdma.max`.
fn rdma(dir: &Dir) -> Option<Rdma> {
    let current = parse_rdma(&dir.try_read("rdma.current").ok()?);
    let limit = parse_rdma(&dir.try_read("rdma.max").ok()?);
    Some(Rdma { current, limit })
}

fn parse_rdma(text: &str) -> Vec<RdmaEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let mut entry = RdmaEntry {
                device: words.next()?.to_owned(),
                ..RdmaEntry::default()
            };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let value = if value == "max" {
                    u32::MAX
                } else {
                    value.parse().unwrap_or(0)
                };
                match key {
                    "hca_handle" => entry.hca_handles = value,
                    "hca_object" => entry.hca_objects = value,
                    _ => {}
                }
            }
            Some(entry)
        })
        .collect()
}

/// The huge page sizes for which a directory has files (`hugetlb.2MB.SUFFIX`).
fn huge_page_sizes(dir: &Dir, suffix: &str) -> Vec<String> {
    let mut sizes: Vec<String> = std::fs::read_dir(dir.path())
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let size = name
                .strip_prefix("hugetlb.")?
                .strip_suffix(suffix)?
                .strip_suffix('.')?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort();
    sizes
}

/// Reads one small file by its absolute path.
fn read_path(path: &str) -> Option<String> {
    let fd = sys::open(None, std::path::Path::new(path), libc::O_RDONLY).ok()?;
    read_all(fd.as_fd()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(parse_number("12"), Some(12));
        assert_eq!(parse_number("max"), Some(u64::MAX));
        assert_eq!(parse_number("-1"), Some(u64::MAX));
        assert_eq!(parse_number("12x"), None);
        assert_eq!(parse_number(""), None);
    }

    #[test]
    fn keyed_lines_survive_rubbish() {
        let keyed = Keyed::parse("anon 4096\nbroken\nfile x\nshmem 1\n");
        assert_eq!(
            (keyed.get("anon"), keyed.get("file"), keyed.get("shmem")),
            (4096, 0, 1)
        );
    }

    #[test]
    fn rdma_lines() {
        let parsed = parse_rdma("mlx5_0 hca_handle=2 hca_object=max\n\n");
        assert_eq!(
            parsed,
            [RdmaEntry {
                device: "mlx5_0".into(),
                hca_handles: 2,
                hca_objects: u32::MAX
            }]
        );
    }

    #[test]
    fn huge_page_sizes_come_from_file_names() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "hugetlb.2MB.max",
            "hugetlb.1GB.max",
            "hugetlb.2MB.rsvd.max",
            "hugetlb.2MB.events",
            "x",
        ] {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        assert_eq!(
            huge_page_sizes(&Dir::at(root.path().to_owned()), "max"),
            ["1GB", "2MB"]
        );
    }
}
