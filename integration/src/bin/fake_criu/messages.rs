//! Messages of criu's `rpc.proto`, as far as its callers here use them.

use serde_json::{Map, Value, json};

/// What a field holds.
pub(crate) enum Kind {
    /// A number or flag.
    Number,
    /// A text.
    Text,
    /// A message.
    Message(Fields),
}

/// Number, name, what it holds, whether there may be several.
pub(crate) type Fields = &'static [(u64, &'static str, Kind, bool)];

const PAIR: Fields = &[(1, "key", Kind::Text, false), (2, "val", Kind::Text, false)];
const CGROUP: Fields = &[
    (1, "ctrl", Kind::Text, false),
    (2, "path", Kind::Text, false),
];
const INHERIT: Fields = &[
    (1, "key", Kind::Text, false),
    (2, "fd", Kind::Number, false),
];
const SERVER: Fields = &[
    (1, "address", Kind::Text, false),
    (2, "port", Kind::Number, false),
];
const FEATURES: Fields = &[
    (1, "mem_track", Kind::Number, false),
    (2, "lazy_pages", Kind::Number, false),
];

const OPTS: Fields = &[
    (1, "images_dir_fd", Kind::Number, false),
    (2, "pid", Kind::Number, false),
    (3, "leave_running", Kind::Number, false),
    (4, "ext_unix_sk", Kind::Number, false),
    (5, "tcp_established", Kind::Number, false),
    (6, "evasive_devices", Kind::Number, false),
    (7, "shell_job", Kind::Number, false),
    (8, "file_locks", Kind::Number, false),
    (9, "log_level", Kind::Number, false),
    (10, "log_file", Kind::Text, false),
    (11, "ps", Kind::Message(SERVER), false),
    (12, "notify_scripts", Kind::Number, false),
    (13, "root", Kind::Text, false),
    (14, "parent_img", Kind::Text, false),
    (15, "track_mem", Kind::Number, false),
    (16, "auto_dedup", Kind::Number, false),
    (17, "work_dir_fd", Kind::Number, false),
    (18, "link_remap", Kind::Number, false),
    (23, "ext_mnt", Kind::Message(PAIR), true),
    (24, "manage_cgroups", Kind::Number, false),
    (25, "cg_root", Kind::Message(CGROUP), true),
    (26, "rst_sibling", Kind::Number, false),
    (27, "inherit_fd", Kind::Message(INHERIT), true),
    (34, "manage_cgroups_mode", Kind::Number, false),
    (37, "external", Kind::Text, true),
    (38, "empty_ns", Kind::Number, false),
    (44, "freeze_cgroup", Kind::Text, false),
    (46, "tcp_skip_in_flight", Kind::Number, false),
    (48, "lazy_pages", Kind::Number, false),
    (49, "status_fd", Kind::Number, false),
    (50, "orphan_pts_master", Kind::Number, false),
    (51, "config_file", Kind::Text, false),
    (53, "lsm_profile", Kind::Text, false),
    (63, "lsm_mount_context", Kind::Text, false),
];

/// `criu_req`.
pub(crate) const REQUEST: Fields = &[
    (1, "type", Kind::Number, false),
    (2, "opts", Kind::Message(OPTS), false),
    (3, "notify_success", Kind::Number, false),
    (4, "keep_open", Kind::Number, false),
    (5, "features", Kind::Message(FEATURES), false),
];

/// Reads a message; a field that no table has is a failure of the test.
pub(crate) fn read(mut bytes: &[u8], fields: Fields) -> Value {
    let mut object = Map::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let Some((_, name, kind, several)) = fields.iter().find(|field| field.0 == tag >> 3) else {
            panic!("unknown field {}", tag >> 3);
        };
        let value = match (tag & 7, kind) {
            (0, Kind::Number) => json!(varint(&mut bytes)),
            (2, Kind::Text) => json!(String::from_utf8(take(&mut bytes)).unwrap()),
            (2, Kind::Message(fields)) => read(&take(&mut bytes), fields),
            (wire, _) => panic!("field {name} is of wire type {wire}"),
        };
        if *several {
            let list = object
                .entry((*name).to_owned())
                .or_insert_with(|| json!([]));
            list.as_array_mut().unwrap().push(value);
        } else {
            object.insert((*name).to_owned(), value);
        }
    }
    object.into()
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a whole number");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a number of more than 64 bits");
}

fn take(bytes: &mut &[u8]) -> Vec<u8> {
    let len = usize::try_from(varint(bytes)).unwrap();
    let (taken, rest) = bytes.split_at(len);
    *bytes = rest;
    taken.to_vec()
}

/// A message being written.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap());
    }

    pub(crate) fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    pub(crate) fn text(&mut self, field: u64, text: &str) -> &mut Self {
        self.bytes(field, text.as_bytes())
    }

    pub(crate) fn message(&mut self, field: u64, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }
}
