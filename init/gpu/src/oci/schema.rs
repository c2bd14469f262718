//! The fields of runtime-spec 1.3.0 in their order, with what Go leaves out when it writes them.
//!
//! Other platforms' sections (`windows`, `vm`, …) are taken as they are.

/// One field of an object.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) keep: Keep,
}

/// When a field is written.
#[derive(Clone, Copy)]
pub(super) enum Keep {
    /// Also when it was never given.
    Always,
    /// When it was given and not null.
    IfSet,
    /// When it is neither zero nor empty.
    IfFilled,
}

/// The type of a field.
pub(super) enum Kind {
    Text,
    Flag,
    Integer { min: i128, max: i128 },
    Object(&'static [Field]),
    List(&'static Kind),
    Map(&'static Kind),
    Any,
}

const TEXT: Kind = Kind::Text;
const FLAG: Kind = Kind::Flag;
const ANY: Kind = Kind::Any;
const U16: Kind = integer(0, u16::MAX as i128);
const U32: Kind = integer(0, u32::MAX as i128);
const U64: Kind = integer(0, u64::MAX as i128);
const I32: Kind = integer(i32::MIN as i128, i32::MAX as i128);
const I64: Kind = integer(i64::MIN as i128, i64::MAX as i128);

const fn integer(min: i128, max: i128) -> Kind {
    Kind::Integer { min, max }
}

const fn always(name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        kind,
        keep: Keep::Always,
    }
}

const fn if_set(name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        kind,
        keep: Keep::IfSet,
    }
}

const fn if_filled(name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        kind,
        keep: Keep::IfFilled,
    }
}

pub(super) static SPEC: [Field; 14] = [
    always("ociVersion", TEXT),
    if_set("process", Kind::Object(&PROCESS)),
    if_set("root", Kind::Object(&ROOT)),
    if_filled("hostname", TEXT),
    if_filled("domainname", TEXT),
    if_filled("mounts", Kind::List(&Kind::Object(&MOUNT))),
    if_set("hooks", Kind::Object(&HOOKS)),
    if_filled("annotations", Kind::Map(&TEXT)),
    if_set("linux", Kind::Object(&LINUX)),
    if_set("solaris", ANY),
    if_set("windows", ANY),
    if_set("vm", ANY),
    if_set("zos", ANY),
    if_set("freebsd", ANY),
];

static PROCESS: [Field; 16] = [
    if_filled("terminal", FLAG),
    if_set("consoleSize", Kind::Object(&BOX)),
    always("user", Kind::Object(&USER)),
    if_filled("args", Kind::List(&TEXT)),
    if_filled("commandLine", TEXT),
    if_filled("env", Kind::List(&TEXT)),
    always("cwd", TEXT),
    if_set("capabilities", Kind::Object(&CAPABILITIES)),
    if_filled("rlimits", Kind::List(&Kind::Object(&RLIMIT))),
    if_filled("noNewPrivileges", FLAG),
    if_filled("apparmorProfile", TEXT),
    if_set("oomScoreAdj", I64),
    if_set("scheduler", Kind::Object(&SCHEDULER)),
    if_filled("selinuxLabel", TEXT),
    if_set("ioPriority", Kind::Object(&IO_PRIORITY)),
    if_set("execCPUAffinity", Kind::Object(&CPU_AFFINITY)),
];

static BOX: [Field; 2] = [always("height", U64), always("width", U64)];

static USER: [Field; 5] = [
    always("uid", U32),
    always("gid", U32),
    if_set("umask", U32),
    if_filled("additionalGids", Kind::List(&U32)),
    if_filled("username", TEXT),
];

static CAPABILITIES: [Field; 5] = [
    if_filled("bounding", Kind::List(&TEXT)),
    if_filled("effective", Kind::List(&TEXT)),
    if_filled("inheritable", Kind::List(&TEXT)),
    if_filled("permitted", Kind::List(&TEXT)),
    if_filled("ambient", Kind::List(&TEXT)),
];

static RLIMIT: [Field; 3] = [
    always("type", TEXT),
    always("hard", U64),
    always("soft", U64),
];

static SCHEDULER: [Field; 7] = [
    always("policy", TEXT),
    if_filled("nice", I32),
    if_filled("priority", I32),
    if_filled("flags", Kind::List(&TEXT)),
    if_filled("runtime", U64),
    if_filled("deadline", U64),
    if_filled("period", U64),
];

static IO_PRIORITY: [Field; 2] = [always("class", TEXT), always("priority", I64)];

static CPU_AFFINITY: [Field; 2] = [if_filled("initial", TEXT), if_filled("final", TEXT)];

static ROOT: [Field; 2] = [always("path", TEXT), if_filled("readonly", FLAG)];

static MOUNT: [Field; 6] = [
    always("destination", TEXT),
    if_filled("type", TEXT),
    if_filled("source", TEXT),
    if_filled("options", Kind::List(&TEXT)),
    if_filled("uidMappings", Kind::List(&Kind::Object(&ID_MAPPING))),
    if_filled("gidMappings", Kind::List(&Kind::Object(&ID_MAPPING))),
];

static ID_MAPPING: [Field; 3] = [
    always("containerID", U32),
    always("hostID", U32),
    always("size", U32),
];

static HOOKS: [Field; 6] = [
    if_filled("prestart", Kind::List(&Kind::Object(&HOOK))),
    if_filled("createRuntime", Kind::List(&Kind::Object(&HOOK))),
    if_filled("createContainer", Kind::List(&Kind::Object(&HOOK))),
    if_filled("startContainer", Kind::List(&Kind::Object(&HOOK))),
    if_filled("poststart", Kind::List(&Kind::Object(&HOOK))),
    if_filled("poststop", Kind::List(&Kind::Object(&HOOK))),
];

static HOOK: [Field; 4] = [
    always("path", TEXT),
    if_filled("args", Kind::List(&TEXT)),
    if_filled("env", Kind::List(&TEXT)),
    if_set("timeout", I64),
];

static LINUX: [Field; 17] = [
    if_filled("uidMappings", Kind::List(&Kind::Object(&ID_MAPPING))),
    if_filled("gidMappings", Kind::List(&Kind::Object(&ID_MAPPING))),
    if_filled("sysctl", Kind::Map(&TEXT)),
    if_set("resources", Kind::Object(&RESOURCES)),
    if_filled("cgroupsPath", TEXT),
    if_filled("namespaces", Kind::List(&Kind::Object(&NAMESPACE))),
    if_filled("devices", Kind::List(&Kind::Object(&DEVICE))),
    if_filled("netDevices", Kind::Map(&Kind::Object(&NET_DEVICE))),
    if_set("seccomp", Kind::Object(&SECCOMP)),
    if_filled("rootfsPropagation", TEXT),
    if_filled("maskedPaths", Kind::List(&TEXT)),
    if_filled("readonlyPaths", Kind::List(&TEXT)),
    if_filled("mountLabel", TEXT),
    if_set("intelRdt", Kind::Object(&INTEL_RDT)),
    if_set("memoryPolicy", Kind::Object(&MEMORY_POLICY)),
    if_set("personality", Kind::Object(&PERSONALITY)),
    if_filled("timeOffsets", Kind::Map(&Kind::Object(&TIME_OFFSET))),
];

static RESOURCES: [Field; 9] = [
    if_filled("devices", Kind::List(&Kind::Object(&DEVICE_RULE))),
    if_set("memory", Kind::Object(&MEMORY)),
    if_set("cpu", Kind::Object(&CPU)),
    if_set("pids", Kind::Object(&PIDS)),
    if_set("blockIO", Kind::Object(&BLOCK_IO)),
    if_filled("hugepageLimits", Kind::List(&Kind::Object(&HUGEPAGE_LIMIT))),
    if_set("network", Kind::Object(&NETWORK)),
    if_filled("rdma", Kind::Map(&Kind::Object(&RDMA))),
    if_filled("unified", Kind::Map(&TEXT)),
];

static DEVICE_RULE: [Field; 5] = [
    always("allow", FLAG),
    if_filled("type", TEXT),
    if_set("major", I64),
    if_set("minor", I64),
    if_filled("access", TEXT),
];

static MEMORY: [Field; 9] = [
    if_set("limit", I64),
    if_set("reservation", I64),
    if_set("swap", I64),
    if_set("kernel", I64),
    if_set("kernelTCP", I64),
    if_set("swappiness", U64),
    if_set("disableOOMKiller", FLAG),
    if_set("useHierarchy", FLAG),
    if_set("checkBeforeUpdate", FLAG),
];

static CPU: [Field; 9] = [
    if_set("shares", U64),
    if_set("quota", I64),
    if_set("burst", U64),
    if_set("period", U64),
    if_set("realtimeRuntime", I64),
    if_set("realtimePeriod", U64),
    if_filled("cpus", TEXT),
    if_filled("mems", TEXT),
    if_set("idle", I64),
];

static PIDS: [Field; 1] = [if_set("limit", I64)];

static BLOCK_IO: [Field; 7] = [
    if_set("weight", U16),
    if_set("leafWeight", U16),
    if_filled("weightDevice", Kind::List(&Kind::Object(&WEIGHT_DEVICE))),
    if_filled(
        "throttleReadBpsDevice",
        Kind::List(&Kind::Object(&THROTTLE_DEVICE)),
    ),
    if_filled(
        "throttleWriteBpsDevice",
        Kind::List(&Kind::Object(&THROTTLE_DEVICE)),
    ),
    if_filled(
        "throttleReadIOPSDevice",
        Kind::List(&Kind::Object(&THROTTLE_DEVICE)),
    ),
    if_filled(
        "throttleWriteIOPSDevice",
        Kind::List(&Kind::Object(&THROTTLE_DEVICE)),
    ),
];

static WEIGHT_DEVICE: [Field; 4] = [
    always("major", I64),
    always("minor", I64),
    if_set("weight", U16),
    if_set("leafWeight", U16),
];

static THROTTLE_DEVICE: [Field; 3] = [
    always("major", I64),
    always("minor", I64),
    always("rate", U64),
];

static HUGEPAGE_LIMIT: [Field; 2] = [always("pageSize", TEXT), always("limit", U64)];

static NETWORK: [Field; 2] = [
    if_set("classID", U32),
    if_filled("priorities", Kind::List(&Kind::Object(&INTERFACE_PRIORITY))),
];

static INTERFACE_PRIORITY: [Field; 2] = [always("name", TEXT), always("priority", U32)];

static RDMA: [Field; 2] = [if_set("hcaHandles", U32), if_set("hcaObjects", U32)];

static NAMESPACE: [Field; 2] = [always("type", TEXT), if_filled("path", TEXT)];

static DEVICE: [Field; 7] = [
    always("path", TEXT),
    always("type", TEXT),
    always("major", I64),
    always("minor", I64),
    if_set("fileMode", U32),
    if_set("uid", U32),
    if_set("gid", U32),
];

static NET_DEVICE: [Field; 1] = [if_filled("name", TEXT)];

static SECCOMP: [Field; 7] = [
    always("defaultAction", TEXT),
    if_set("defaultErrnoRet", U64),
    if_filled("architectures", Kind::List(&TEXT)),
    if_filled("flags", Kind::List(&TEXT)),
    if_filled("listenerPath", TEXT),
    if_filled("listenerMetadata", TEXT),
    if_filled("syscalls", Kind::List(&Kind::Object(&SYSCALL))),
];

static SYSCALL: [Field; 4] = [
    always("names", Kind::List(&TEXT)),
    always("action", TEXT),
    if_set("errnoRet", U64),
    if_filled("args", Kind::List(&Kind::Object(&SYSCALL_ARG))),
];

static SYSCALL_ARG: [Field; 4] = [
    always("index", U64),
    always("value", U64),
    if_filled("valueTwo", U64),
    always("op", TEXT),
];

static INTEL_RDT: [Field; 5] = [
    if_filled("closID", TEXT),
    if_filled("schemata", Kind::List(&TEXT)),
    if_filled("l3CacheSchema", TEXT),
    if_filled("memBwSchema", TEXT),
    if_filled("enableMonitoring", FLAG),
];

static MEMORY_POLICY: [Field; 3] = [
    always("mode", TEXT),
    always("nodes", TEXT),
    if_filled("flags", Kind::List(&TEXT)),
];

static PERSONALITY: [Field; 2] = [
    always("domain", TEXT),
    if_filled("flags", Kind::List(&TEXT)),
];

static TIME_OFFSET: [Field; 2] = [if_filled("secs", I64), if_filled("nanosecs", U32)];
