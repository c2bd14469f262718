//! Versions of the CDI specification and what each one brought.

use std::fmt;

use crate::edits::ContainerEdits;
use crate::spec::Spec;

/// A released version of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// 0.1.0
    V0_1,
    /// 0.2.0
    V0_2,
    /// 0.3.0: the earliest one with rules about features.
    V0_3,
    /// 0.4.0: `mounts[].type`.
    V0_4,
    /// 0.5.0: device names that start with a digit, `deviceNodes[].hostPath`.
    V0_5,
    /// 0.6.0: annotations, dots in a class.
    V0_6,
    /// 0.7.0: `intelRdt`, `additionalGids`.
    V0_7,
    /// 0.8.0
    V0_8,
    /// 1.0.0
    V1_0,
    /// 1.1.0: `netDevices`, `intelRdt.schemata` and monitoring.
    V1_1,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 10] = [
        Self::V0_1,
        Self::V0_2,
        Self::V0_3,
        Self::V0_4,
        Self::V0_5,
        Self::V0_6,
        Self::V0_7,
        Self::V0_8,
        Self::V1_0,
        Self::V1_1,
    ];

    /// The version as files write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1 => "0.1.0",
            Self::V0_2 => "0.2.0",
            Self::V0_3 => "0.3.0",
            Self::V0_4 => "0.4.0",
            Self::V0_5 => "0.5.0",
            Self::V0_6 => "0.6.0",
            Self::V0_7 => "0.7.0",
            Self::V0_8 => "0.8.0",
            Self::V1_0 => "1.0.0",
            Self::V1_1 => "1.1.0",
        }
    }

    /// Reads a version, with or without a leading `v`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// The earliest version whose features suffice for `spec`, and the feature that asks for it.
    #[must_use]
    pub fn needed_by(spec: &Spec) -> (Self, &'static str) {
        let all = || {
            spec.devices
                .iter()
                .map(|device| &device.edits)
                .chain([&spec.edits])
        };
        let any = |test: &dyn Fn(&ContainerEdits) -> bool| all().any(test);
        if any(&|edits| {
            !edits.net_devices.is_empty()
                || edits
                    .intel_rdt
                    .as_ref()
                    .is_some_and(|rdt| rdt.schemata.is_some() || rdt.enable_monitoring)
        }) {
            return (
                Self::V1_1,
                "netDevices, or schemata or monitoring of intelRdt",
            );
        }
        if any(&|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty()) {
            return (Self::V0_7, "intelRdt or additionalGids");
        }
        if !spec.annotations.is_empty()
            || spec
                .devices
                .iter()
                .any(|device| !device.annotations.is_empty())
            || spec.kind.class().contains('.')
        {
            return (Self::V0_6, "annotations, or a dot in the class");
        }
        if spec
            .devices
            .iter()
            .any(|device| device.name.starts_with(|c: char| c.is_ascii_digit()))
            || any(&|edits| {
                edits
                    .device_nodes
                    .iter()
                    .any(|node| !node.host_path.is_empty())
            })
        {
            return (
                Self::V0_5,
                "a device name that starts with a digit, or hostPath",
            );
        }
        if any(&|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty())) {
            return (Self::V0_4, "the type of a mount");
        }
        (Self::V0_3, "the format of 0.3.0")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
