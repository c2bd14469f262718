//! Requests to criu and its answers: protocol buffers, of which this needs numbers, texts and
//! messages in messages.

/// Kinds of requests and answers (`criu_req_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Kind {
    /// Write a container to disk.
    Dump = 1,
    /// Make one from disk.
    Restore = 2,
    /// Whether criu can work on this kernel.
    Check = 3,
    /// Write the memory only; the container runs on.
    PreDump = 4,
    /// A moment of a dump or restore.
    Notify = 6,
    /// Whether this kernel has what some options need.
    FeatureCheck = 9,
    /// Which criu it is.
    Version = 10,
}

impl Kind {
    /// Its name in the protocol, which is also what runc's errors say.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dump => "DUMP",
            Self::Restore => "RESTORE",
            Self::Check => "CHECK",
            Self::PreDump => "PRE_DUMP",
            Self::Notify => "NOTIFY",
            Self::FeatureCheck => "FEATURE_CHECK",
            Self::Version => "VERSION",
        }
    }
}

/// Field numbers of `criu_opts`.
pub(crate) mod opt {
    pub(crate) const IMAGES_DIR_FD: u32 = 1;
    pub(crate) const PID: u32 = 2;
    pub(crate) const LEAVE_RUNNING: u32 = 3;
    pub(crate) const EXT_UNIX_SK: u32 = 4;
    pub(crate) const TCP_ESTABLISHED: u32 = 5;
    pub(crate) const EVASIVE_DEVICES: u32 = 6;
    pub(crate) const SHELL_JOB: u32 = 7;
    pub(crate) const FILE_LOCKS: u32 = 8;
    pub(crate) const LOG_LEVEL: u32 = 9;
    pub(crate) const LOG_FILE: u32 = 10;
    pub(crate) const PAGE_SERVER: u32 = 11;
    pub(crate) const NOTIFY_SCRIPTS: u32 = 12;
    pub(crate) const ROOT: u32 = 13;
    pub(crate) const PARENT_IMG: u32 = 14;
    pub(crate) const TRACK_MEM: u32 = 15;
    pub(crate) const AUTO_DEDUP: u32 = 16;
    pub(crate) const WORK_DIR_FD: u32 = 17;
    pub(crate) const LINK_REMAP: u32 = 18;
    pub(crate) const EXT_MNT: u32 = 23;
    pub(crate) const MANAGE_CGROUPS: u32 = 24;
    pub(crate) const CG_ROOT: u32 = 25;
    pub(crate) const RST_SIBLING: u32 = 26;
    pub(crate) const INHERIT_FD: u32 = 27;
    pub(crate) const MANAGE_CGROUPS_MODE: u32 = 34;
    pub(crate) const EXTERNAL: u32 = 37;
    pub(crate) const EMPTY_NS: u32 = 38;
    pub(crate) const FREEZE_CGROUP: u32 = 44;
    pub(crate) const TCP_SKIP_IN_FLIGHT: u32 = 46;
    pub(crate) const LAZY_PAGES: u32 = 48;
    pub(crate) const STATUS_FD: u32 = 49;
    pub(crate) const ORPHAN_PTS_MASTER: u32 = 50;
    pub(crate) const CONFIG_FILE: u32 = 51;
    pub(crate) const LSM_PROFILE: u32 = 53;
    pub(crate) const LSM_MOUNT_CONTEXT: u32 = 63;
}

/// A message being written, field by field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        loop {
            // The lowest seven bits.
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                self.0.push(byte);
                return;
            }
            self.0.push(byte | 0x80);
        }
    }

    /// Appends a number; a negative one takes all ten bytes, as the format wants it.
    pub(crate) fn number(&mut self, field: u32, value: i64) -> &mut Self {
        self.varint(u64::from(field) << 3);
        self.varint(value.cast_unsigned());
        self
    }

    /// Appends a flag that is on; one that is off is left out.
    pub(crate) fn flag(&mut self, field: u32, on: bool) -> &mut Self {
        if on { self.number(field, 1) } else { self }
    }

    /// Appends bytes.
    fn bytes(&mut self, field: u32, bytes: &[u8]) -> &mut Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a text.
    pub(crate) fn text(&mut self, field: u32, text: impl AsRef<[u8]>) -> &mut Self {
        self.bytes(field, text.as_ref())
    }

    /// Appends a message.
    pub(crate) fn message(&mut self, field: u32, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }

    /// Appends a message of two texts (`ext_mount_map`, `cgroup_root`).
    pub(crate) fn pair(
        &mut self,
        field: u32,
        first: impl AsRef<[u8]>,
        second: impl AsRef<[u8]>,
    ) -> &mut Self {
        let mut pair = Self::default();
        pair.text(1, first).text(2, second);
        self.message(field, &pair)
    }

    /// The bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A `criu_req`.
pub(crate) fn request(kind: Kind, opts: Option<&Message>) -> Message {
    let mut request = Message::default();
    request.number(1, (kind as u64).cast_signed());
    if let Some(opts) = opts {
        request.message(2, opts);
    }
    request
}

/// The `criu_req` that lets criu go on after a notification, or makes it give up.
pub(crate) fn acknowledgement(success: bool) -> Message {
    let mut request = request(Kind::Notify, None);
    request.number(3, i64::from(success));
    request
}

/// The `criu_req` that asks whether tracking of memory (for a pre-dump) and lazy pages work.
pub(crate) fn feature_request(mem_track: bool, lazy_pages: bool) -> Message {
    let mut features = Message::default();
    features.flag(1, mem_track).flag(2, lazy_pages);
    let mut request = request(Kind::FeatureCheck, None);
    request.message(5, &features);
    request
}

/// A `criu_resp`, as far as it is of use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Response {
    /// The kind, [`Kind`] as a number.
    pub(crate) kind: u64,
    /// Whether it was done.
    pub(crate) success: bool,
    /// For a notification: its name.
    pub(crate) script: String,
    /// For a notification: the restored init process, where criu knows it.
    pub(crate) pid: i32,
    /// errno, when something failed; often 0 also then.
    pub(crate) errno: i32,
    /// criu's own sentence, since 3.12.
    pub(crate) message: String,
    /// Features that were asked for: mem_track, lazy_pages.
    pub(crate) features: (bool, bool),
    /// major, minor, sublevel.
    pub(crate) version: (u64, u64, u64),
}

impl Response {
    /// Reads one; `None` for what is none.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut this = Self::default();
        let mut kind = None;
        for_each(bytes, &mut |field, value| {
            match (field, value) {
                (1, Value::Number(number)) => kind = Some(number),
                (2, Value::Number(number)) => this.success = number != 0,
                (5, Value::Bytes(notify)) => for_each(notify, &mut |field, value| {
                    match (field, value) {
                        (1, Value::Bytes(text)) => this.script = lossy(text),
                        (2, Value::Number(pid)) => this.pid = small(pid),
                        _ => {}
                    }
                    Some(())
                })?,
                (7, Value::Number(errno)) => this.errno = small(errno),
                (8, Value::Bytes(features)) => for_each(features, &mut |field, value| {
                    match (field, value) {
                        (1, Value::Number(on)) => this.features.0 = on != 0,
                        (2, Value::Number(on)) => this.features.1 = on != 0,
                        _ => {}
                    }
                    Some(())
                })?,
                (9, Value::Bytes(text)) => this.message = lossy(text),
                (10, Value::Bytes(version)) => for_each(version, &mut |field, value| {
                    match (field, value) {
                        (1, Value::Number(number)) => this.version.0 = number,
                        (2, Value::Number(number)) => this.version.1 = number,
                        (4, Value::Number(number)) => this.version.2 = number,
                        _ => {}
                    }
                    Some(())
                })?,
                _ => {}
            }
            Some(())
        })?;
        this.kind = kind?;
        Some(this)
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// An `int32`, which is written with its sign extended to 64 bits.
fn small(number: u64) -> i32 {
    i32::try_from(number.cast_signed()).unwrap_or(0)
}

#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Calls `each` with every field; `None` when the bytes are no message.
fn for_each<'a>(
    mut bytes: &'a [u8],
    each: &mut dyn FnMut(u64, Value<'a>) -> Option<()>,
) -> Option<()> {
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut bytes)?),
            // Fixed sizes, which no field that we know has.
            1 => Value::Bytes(take(&mut bytes, 8)?),
            5 => Value::Bytes(take(&mut bytes, 4)?),
            2 => {
                let len = usize::try_from(take_varint(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, len)?)
            }
            _ => return None,
        };
        each(tag >> 3, value)?;
    }
    Some(())
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_written_as_the_format_wants_them() {
        let mut opts = Message::default();
        opts.number(opt::IMAGES_DIR_FD, 5)
            .flag(opt::LEAVE_RUNNING, true)
            .flag(opt::SHELL_JOB, false)
            .text(opt::LOG_FILE, "x")
            .number(opt::STATUS_FD, 300)
            .pair(opt::EXT_MNT, "/a", "/b");
        let expected = [
            0x08, 0x02, 0x12, 22, // type = RESTORE, opts of 22 bytes
            0x08, 5, // images_dir_fd = 5
            0x18, 1, // leave_running = true
            0x52, 1, b'x', // log_file = "x"
            0x88, 0x03, 0xac, 0x02, // status_fd = 300
            0xba, 0x01, 8, 0x0a, 2, b'/', b'a', 0x12, 2, b'/', b'b', // ext_mnt
        ];
        assert_eq!(request(Kind::Restore, Some(&opts)).as_bytes(), expected);
        assert_eq!(acknowledgement(true).as_bytes(), [0x08, 6, 0x18, 1]);
        let mut negative = Message::default();
        negative.number(1, -1);
        assert_eq!(negative.as_bytes().len(), 11);
    }

    /// What criu 3.17.1 answered to VERSION, and on a kernel it cannot work with to CHECK.
    #[test]
    fn answers_of_criu_are_read() {
        let version = Response::read(b"\x08\x0a\x10\x01R\x06\x08\x03\x10\x11 \x01").unwrap();
        assert_eq!(version.kind, Kind::Version as u64);
        assert!(version.success);
        assert_eq!(version.version, (3, 17, 1));
        let check = Response::read(b"\x08\x03\x10\x00").unwrap();
        assert!(!check.success);
        let notify = b"\x08\x06\x10\x01\x2a\x10\x0a\x0cpost-restore\x10\x2a";
        let notify = Response::read(notify).unwrap();
        assert_eq!((notify.script.as_str(), notify.pid), ("post-restore", 42));
        assert_eq!(Response::read(b"\x10\x01"), None, "without a type");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Response::read(&bytes);
        }

        #[test]
        fn numbers_come_back(value in any::<i64>()) {
            let mut message = Message::default();
            message.number(3, value);
            let mut read = None;
            for_each(message.as_bytes(), &mut |field, value| {
                read = match value {
                    Value::Number(number) => Some((field, number)),
                    Value::Bytes(_) => None,
                };
                Some(())
            }).unwrap();
            prop_assert_eq!(read, Some((3, value.cast_unsigned())));
        }
    }
}
