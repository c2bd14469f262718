//! Compiled programs on disk, addressed by what they were made from.
//!
//! An entry is a file `<key>.bpf`; the key covers everything that could change the program, so an
//! entry is never updated, only replaced if it is broken. `docs/0002-cache-key.md` says what is in
//! the key and why an entry can be trusted.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use libseccomp::ScmpVersion;
use nix::unistd::{Uid, geteuid};
use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};

use crate::compile::{Compiled, Options, compile_profile};
use crate::error::Error;
use crate::profile::Profile;
use crate::program::{INSTRUCTION_SIZE, INSTRUCTIONS_MAX, LoadFlags, Program};
use crate::sys;

/// The most programs a cache keeps; then the oldest goes. A node has a handful of profiles.
pub const CACHE_ENTRIES_MAX: usize = 64;

/// Changes whenever the same profile may compile to another program, or the file's form changes.
const FORMAT: &[u8; 8] = b"hfbpf\0\0\x01";
/// A larger file is no entry: program, names of unknown syscalls, and head.
const ENTRY_SIZE_MAX: u64 = 4 * (INSTRUCTION_SIZE * INSTRUCTIONS_MAX) as u64;
/// A temporary file older than this was left by a process that died.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(600);

const SUFFIX: &str = ".bpf";
const TEMPORARY_SUFFIX: &str = ".tmp";

type Hash = [u8; 32];

/// Where a program came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// From the cache: libseccomp was not used.
    Cache,
    /// From libseccomp. What kept it out of the cache, if anything, has been logged.
    Libseccomp,
}

/// A folder of compiled programs. Any number of processes may use it at once.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The entry, unless it is missing or damaged.
fn find(path: &Path, key: &Hash) -> Option<Compiled> {
    match read(path, key) {
        Ok(found) => found,
        Err(error) => {
            log::warn!(
                "seccomp cache: {} is compiled again: {error}",
                path.display()
            );
            None
        }
    }
}

impl Cache {
    /// Uses `folder`, for instance `/run/holdfast/seccomp`. Nothing is touched yet: the folder is
    /// made, with mode 0700, when the first program is stored.
    #[must_use]
    pub fn open(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The program of `seccomp` from the cache, or compiled and stored.
    ///
    /// A cache that cannot be read or written costs a warning in the log and the time to compile,
    /// never more. The profile is checked in any case.
    ///
    /// # Errors
    /// As [`compile`](fn@crate::compile).
    pub fn compile(&self, seccomp: &LinuxSeccomp) -> Result<(Compiled, Origin), Error> {
        let profile = Profile::new(seccomp)?;
        let key = key(&profile);
        let path = self.path(&key);
        if let Some(compiled) = find(&path, &key) {
            return Ok((compiled, Origin::Cache));
        }
        let compiled = compile_profile(&profile, Options::default())?;
        if let Err(error) = self.store(&path, &encode(&key, &compiled)) {
            log::warn!("seccomp cache: cannot store {}: {error}", path.display());
        }
        Ok((compiled, Origin::Libseccomp))
    }

    /// The program of `seccomp` if it is in the cache; nothing is compiled.
    ///
    /// For callers that compile somewhere else, e.g. in a process they can stop: libseccomp has
    /// inputs it does not come back from (see the crate's documentation).
    ///
    /// # Errors
    /// A profile that is none.
    pub fn lookup(&self, seccomp: &LinuxSeccomp) -> Result<Option<Compiled>, Error> {
        let profile = Profile::new(seccomp)?;
        let key = key(&profile);
        Ok(find(&self.path(&key), &key))
    }

    fn path(&self, key: &Hash) -> PathBuf {
        self.folder.join(hex(key) + SUFFIX)
    }

    fn store(&self, path: &Path, entry: &[u8]) -> io::Result<()> {
        /// Tells the threads of one process apart.
        static SERIAL: AtomicU32 = AtomicU32::new(0);

        self.own_folder()?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(
            ".{}.{}{TEMPORARY_SUFFIX}",
            std::process::id(),
            SERIAL.fetch_add(1, Ordering::Relaxed)
        ));
        let temporary = PathBuf::from(temporary);
        let stored = write_new(&temporary, entry).and_then(|()| std::fs::rename(&temporary, path));
        if let Err(error) = stored {
            // It may not exist; if it stays it is cleared away by its age.
            let _left = std::fs::remove_file(&temporary);
            return Err(error);
        }
        self.evict(path)
    }

    /// Makes the folder, or checks that nobody else can put entries into it.
    fn own_folder(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let folder = std::fs::symlink_metadata(&self.folder)?;
        let refuse = |what: &str| {
            Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} {what}", self.folder.display()),
            ))
        };
        if !folder.is_dir() {
            return refuse("is no folder");
        }
        if folder.uid() != geteuid().as_raw() {
            return refuse("belongs to somebody else");
        }
        if folder.mode() & 0o077 != 0 {
            return refuse("is open to others, its mode must be 0700");
        }
        Ok(())
    }

    /// Removes the oldest entries beyond the limit, but never `new`, and what dead writers left.
    fn evict(&self, new: &Path) -> io::Result<()> {
        let now = SystemTime::now();
        let mut entries = Vec::new();
        for file in std::fs::read_dir(&self.folder)? {
            let file = file?;
            let name = file.file_name();
            let (entry, temporary) = (ends_with(&name, SUFFIX), ends_with(&name, TEMPORARY_SUFFIX));
            if !entry && !temporary || file.path() == new {
                continue;
            }
            // Another process may have removed it meanwhile.
            let Ok(modified) = file.metadata().and_then(|metadata| metadata.modified()) else {
                continue;
            };
            if entry {
                entries.push((modified, file.path()));
            } else if now
                .duration_since(modified)
                .is_ok_and(|age| age > TEMPORARY_AGE_MAX)
            {
                remove(&file.path())?;
            }
        }
        // One place is the new entry's.
        let surplus = (entries.len() + 1).saturating_sub(CACHE_ENTRIES_MAX);
        entries.sort();
        for (_, path) in entries.iter().take(surplus) {
            remove(path)?;
        }
        Ok(())
    }
}

fn ends_with(name: &OsStr, suffix: &str) -> bool {
    name.as_encoded_bytes().ends_with(suffix.as_bytes())
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// The entry at `path`; None if there is none, an error if it is not to be used.
fn read(path: &Path, key: &Hash) -> io::Result<Option<Compiled>> {
    let opened = OpenOptions::new()
        .read(true)
        // Not through a link, and a FIFO in its place must not make us wait.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let size = trusted_size(&file, geteuid())?;
    // One read more than the size would only say that the file ends there; the checksum says it too.
    let mut entry = vec![0; size];
    (&file).read_exact(&mut entry)?;
    match decode(&entry, key) {
        Ok(compiled) => Ok(Some(compiled)),
        Err(what) => Err(io::Error::new(io::ErrorKind::InvalidData, what)),
    }
}

fn trusted_size(file: &File, user: Uid) -> io::Result<usize> {
    let metadata = file.metadata()?;
    let refuse = |what| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    if !metadata.is_file() {
        return refuse("it is no regular file");
    }
    if metadata.uid() != user.as_raw() {
        return refuse("it belongs to somebody else");
    }
    if metadata.mode() & 0o077 != 0 {
        return refuse("others may access it");
    }
    if metadata.len() > ENTRY_SIZE_MAX {
        return refuse("it is too large");
    }
    usize::try_from(metadata.len()).map_err(io::Error::other)
}

/// Everything that decides what a profile compiles to.
fn key(profile: &Profile<'_>) -> Hash {
    // seccomp_version(3) returns a constant of the library in use; it probes nothing.
    let library =
        ScmpVersion::current().map_or_else(|_| String::new(), |version| version.to_string());
    // The kernel decides which actions and flags libseccomp accepts. Asking for them takes several
    // system calls; the kernel's version says more in one.
    let kernel = sys::kernel_version();
    let canonical = profile.canonical();
    let mut hash = Sha256::new();
    for part in [
        FORMAT.as_slice(),
        env!("CARGO_PKG_VERSION").as_bytes(),
        std::env::consts::ARCH.as_bytes(),
        library.as_bytes(),
        kernel.as_slice(),
        canonical.as_slice(),
    ] {
        // With its length each part stays itself.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// `FORMAT, key, flags: u32, program length: u32, program, unknown syscalls as JSON, SHA-256 of all
/// this`; numbers little-endian, the program in the machine's own byte order.
fn encode(key: &Hash, compiled: &Compiled) -> Vec<u8> {
    let program = compiled.program.bytes();
    // At most 32768.
    let length = u32::try_from(program.len()).unwrap_or(u32::MAX);
    let mut entry = Vec::with_capacity(program.len() + 256);
    entry.extend(FORMAT);
    entry.extend(key);
    entry.extend(compiled.program.flags().bits().to_le_bytes());
    entry.extend(length.to_le_bytes());
    entry.extend(program);
    // Strings always encode.
    entry.extend(serde_json::to_vec(&compiled.unknown_syscalls).unwrap_or_default());
    let checksum: Hash = Sha256::digest(&entry).into();
    entry.extend(checksum);
    entry
}

fn decode(entry: &[u8], key: &Hash) -> Result<Compiled, &'static str> {
    const SHORT: &str = "it is cut off";
    let (entry, checksum) = entry.split_last_chunk::<32>().ok_or(SHORT)?;
    if Sha256::digest(entry).as_slice() != checksum {
        return Err("its checksum is wrong");
    }
    let (format, rest) = entry.split_first_chunk::<8>().ok_or(SHORT)?;
    if format != FORMAT {
        return Err("it has another format");
    }
    let (stored_key, rest) = rest.split_first_chunk::<32>().ok_or(SHORT)?;
    if stored_key != key {
        return Err("it is the program of another profile");
    }
    let (flags, rest) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let flags = LoadFlags::from_bits(u32::from_le_bytes(*flags)).ok_or("it has unknown flags")?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| SHORT)?;
    let (program, unknown) = rest.split_at_checked(length).ok_or(SHORT)?;
    Ok(Compiled {
        program: Program::new(program.to_vec(), flags).map_err(|_| "its program is malformed")?,
        unknown_syscalls: serde_json::from_slice(unknown)
            .map_err(|_| "its list of unknown syscalls is malformed")?,
    })
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn profile(errno: u32) -> LinuxSeccomp {
        serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": errno,
            "syscalls": [
                {"names": ["read", "write", "not_a_syscall"], "action": "SCMP_ACT_ALLOW"},
            ],
        }))
        .unwrap()
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        files
    }

    /// A cache with one entry, and the entry's path.
    fn filled(folder: &Path) -> (Cache, PathBuf, Compiled) {
        let cache = Cache::open(folder.join("a/b"));
        let (compiled, origin) = cache.compile(&profile(1)).unwrap();
        assert_eq!(origin, Origin::Libseccomp);
        let files = files(&folder.join("a/b"));
        assert_eq!(files.len(), 1, "{files:?}");
        (cache, files[0].clone(), compiled)
    }

    #[test]
    fn the_second_time_it_comes_from_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, entry, first) = filled(folder.path());
        assert_eq!(first.unknown_syscalls, ["not_a_syscall"]);
        let (second, origin) = cache.compile(&profile(1)).unwrap();
        assert_eq!(origin, Origin::Cache);
        assert_eq!(first, second);

        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&entry), 0o600);
        assert_eq!(mode(&folder.path().join("a/b")), 0o700);
    }

    #[test]
    fn another_program_is_another_entry_but_another_spelling_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, _, _) = filled(folder.path());
        assert_eq!(cache.compile(&profile(2)).unwrap().1, Origin::Libseccomp);
        let respelled: LinuxSeccomp = serde_json::from_value(serde_json::json!({
            "syscalls": [
                {"args": [], "action": "SCMP_ACT_ALLOW", "names": ["read", "write", "not_a_syscall"]},
            ],
            "architectures": ["SCMP_ARCH_NATIVE"],
            "listenerPath": "/run/agent.sock",
            "defaultAction": "SCMP_ACT_ERRNO",
        }))
        .unwrap();
        assert_eq!(cache.compile(&respelled).unwrap().1, Origin::Cache);
    }

    #[test]
    fn a_broken_entry_is_compiled_again_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, path, compiled) = filled(folder.path());
        let good = std::fs::read(&path).unwrap();
        let mut broken: Vec<Vec<u8>> = (0..good.len()).map(|end| good[..end].to_vec()).collect();
        broken.extend((0..good.len()).step_by(7).map(|at| {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            flipped
        }));
        broken.push([good.as_slice(), b"x"].concat());
        broken.push(vec![0; usize::try_from(ENTRY_SIZE_MAX).unwrap() + 1]);
        for entry in broken {
            let key = key(&Profile::new(&profile(1)).unwrap());
            std::fs::write(&path, &entry).unwrap();
            assert!(read(&path, &key).is_err(), "{} bytes", entry.len());
        }
        assert_eq!(
            cache.compile(&profile(1)).unwrap(),
            (compiled.clone(), Origin::Libseccomp)
        );
        assert_eq!(std::fs::read(&path).unwrap(), good);
        assert_eq!(
            cache.compile(&profile(1)).unwrap(),
            (compiled, Origin::Cache)
        );
    }

    #[test]
    fn an_entry_with_a_right_checksum_but_a_broken_body_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (_, path, compiled) = filled(folder.path());
        let key = key(&Profile::new(&profile(1)).unwrap());
        let good = std::fs::read(&path).unwrap();
        let (body, _) = good.split_last_chunk::<32>().unwrap();
        let sealed = |body: &[u8]| [body, Sha256::digest(body).as_slice()].concat();
        assert_eq!(decode(&sealed(body), &key), Ok(compiled));
        for end in 0..body.len() {
            assert!(decode(&sealed(&body[..end]), &key).is_err(), "{end}");
        }
        // Format, key, flags and length, each with a bit that means something else.
        let program = 8 + 32 + 4;
        for at in (0..8 + 32).chain([43, program, program + 3]) {
            let mut flipped = body.to_vec();
            flipped[at] ^= 0x40;
            assert!(decode(&sealed(&flipped), &key).is_err(), "{at}");
        }
    }

    #[test]
    fn processes_and_threads_may_share_a_cache() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().join("cache"));
        let compiled: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| cache.compile(&profile(1)).unwrap().0))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(compiled.iter().all(|each| *each == compiled[0]));
        assert_eq!(files(&folder.path().join("cache")).len(), 1);
        assert_eq!(cache.compile(&profile(1)).unwrap().1, Origin::Cache);
    }

    #[test]
    fn the_entry_of_another_profile_under_our_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, path, _) = filled(folder.path());
        cache.compile(&profile(2)).unwrap();
        let other = files(path.parent().unwrap())
            .into_iter()
            .find(|file| *file != path)
            .unwrap();
        std::fs::copy(&other, &path).unwrap();
        let (compiled, origin) = cache.compile(&profile(1)).unwrap();
        assert_eq!(origin, Origin::Libseccomp);
        assert_eq!(compiled, crate::compile(&profile(1)).unwrap());
    }

    #[test]
    fn what_others_could_have_written_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, path, _) = filled(folder.path());
        let origin = || cache.compile(&profile(1)).unwrap().1;
        let replace = |make: &dyn Fn(&Path)| {
            let content = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            make(&path);
            assert_eq!(origin(), Origin::Libseccomp);
            // Replaced by a good one.
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert_eq!(origin(), Origin::Cache);
        };

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).unwrap();
        assert_eq!(origin(), Origin::Libseccomp);
        assert_eq!(origin(), Origin::Cache);

        let copy = folder.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        replace(&|path| std::os::unix::fs::symlink(&copy, path).unwrap());
        replace(&|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap());
        if geteuid().is_root() {
            replace(&|path| {
                std::fs::copy(&copy, path).unwrap();
                nix::unistd::chown(path, Some(Uid::from_raw(65534)), None).unwrap();
            });
        } else {
            println!("skipped: a file of somebody else takes root to make");
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_fails_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // A file where the folder should be, and a folder that is open to others.
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let open = folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        for bad in [&file, &open, Path::new("/proc/self/nothing")] {
            let cache = Cache::open(bad);
            for _ in 0..2 {
                let (compiled, origin) = cache.compile(&profile(1)).unwrap();
                assert_eq!(origin, Origin::Libseccomp);
                assert_eq!(compiled, crate::compile(&profile(1)).unwrap());
            }
        }
        assert_eq!(files(&open), Vec::<PathBuf>::new());
        // A folder where the entry should be.
        let (cache, path, _) = filled(folder.path());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(cache.compile(&profile(1)).unwrap().1, Origin::Libseccomp);
        assert_eq!(files(path.parent().unwrap()), [path]);
    }

    #[test]
    fn the_oldest_entries_go() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("cache")).unwrap();
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(folder.path().join("cache"), private).unwrap();
        let cache = Cache::open(folder.path().join("cache"));
        let oldest = |number: u32| {
            // Ages that do not depend on how fast the test is.
            for file in files(&folder.path().join("cache")) {
                let file = File::open(file).unwrap();
                let modified = file.metadata().unwrap().modified().unwrap();
                file.set_modified(modified - Duration::from_secs(10))
                    .unwrap();
            }
            cache.compile(&profile(number)).unwrap()
        };
        let limit = u32::try_from(CACHE_ENTRIES_MAX).unwrap();
        for number in 1..=limit + 2 {
            oldest(number);
        }
        let dead = folder.path().join("cache/dead.bpf.1.0.tmp");
        let living = folder.path().join("cache/living.bpf.2.0.tmp");
        let stranger = folder.path().join("cache/README");
        for file in [&dead, &living, &stranger] {
            std::fs::write(file, "").unwrap();
        }
        let long_ago = SystemTime::now() - TEMPORARY_AGE_MAX - Duration::from_secs(60);
        File::options()
            .write(true)
            .open(&dead)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        cache.compile(&profile(limit + 3)).unwrap();
        assert_eq!(files(&folder.path().join("cache")).len(), 64 + 2);
        assert!(!dead.exists() && living.exists() && stranger.exists());

        // Hits store nothing, so nothing changes while looking.
        assert_eq!(cache.compile(&profile(4)).unwrap().1, Origin::Cache);
        assert_eq!(cache.compile(&profile(3)).unwrap().1, Origin::Libseccomp);
    }
}
