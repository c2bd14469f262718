//! Runtime options: what containerd's configuration says about this runtime.
//!
//! They come as `containerd.runc.v1.Options`, or, to every runtime type but runc's own, as
//! `runtimeoptions.v1.Options` whose body is the TOML of the configuration. `delete` reads
//! them back from `options.json`, also from one that the Go shim wrote: every field is
//! optional and unknown ones are ignored.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use containerd_shim_protos::shim::oci;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// File in the bundle that keeps the options for `delete`.
pub(crate) const OPTIONS_FILE: &str = "options.json";
/// File in the bundle that keeps the runtime's name for `delete`.
pub(crate) const RUNTIME_FILE: &str = "runtime";

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// The options, whichever way they came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Options {
    /// Do not pivot_root (ramdisks).
    #[serde(alias = "NoPivotRoot", skip_serializing_if = "is_false")]
    pub(crate) no_pivot_root: bool,
    /// Keep the caller's session keyring.
    #[serde(alias = "NoNewKeyring", skip_serializing_if = "is_false")]
    pub(crate) no_new_keyring: bool,
    /// Cgroup for the shim itself.
    #[serde(alias = "ShimCgroup", skip_serializing_if = "String::is_empty")]
    pub(crate) shim_cgroup: String,
    /// Owner of the stdio pipes.
    #[serde(alias = "IoUid", skip_serializing_if = "is_zero")]
    pub(crate) io_uid: u32,
    /// Group of the stdio pipes.
    #[serde(alias = "IoGid", skip_serializing_if = "is_zero")]
    pub(crate) io_gid: u32,
    /// The OCI runtime; empty: `holdfast` beside the shim.
    #[serde(alias = "BinaryName", skip_serializing_if = "String::is_empty")]
    pub(crate) binary_name: String,
    /// Directory of the runtime's state, without the containerd namespace.
    #[serde(alias = "Root", skip_serializing_if = "String::is_empty")]
    pub(crate) root: String,
    /// Cgroups through systemd.
    #[serde(alias = "SystemdCgroup", skip_serializing_if = "is_false")]
    pub(crate) systemd_cgroup: bool,
    /// Where checkpoints lie.
    #[serde(alias = "CriuImagePath", skip_serializing_if = "String::is_empty")]
    pub(crate) criu_image_path: String,
    /// Where criu works.
    #[serde(alias = "CriuWorkPath", skip_serializing_if = "String::is_empty")]
    pub(crate) criu_work_path: String,
    /// `block` or `drop`: for output that is not taken. Ours alone, so only in
    /// `runtimeoptions.v1.Options`.
    #[serde(alias = "StdioPolicy", skip_serializing_if = "String::is_empty")]
    pub(crate) stdio_policy: String,
    /// The GPU stage of `holdfast`: `auto`, `legacy`, `cdi`, `jit-cdi` or `off`. Ours alone, too.
    #[serde(alias = "Gpu", skip_serializing_if = "String::is_empty")]
    pub(crate) gpu: String,
    /// The `config.toml` of that stage; empty: the one next to NVIDIA's wrapper, or the usual one.
    #[serde(alias = "GpuConfig", skip_serializing_if = "String::is_empty")]
    pub(crate) gpu_config: String,
}

/// What a `BinaryName` of NVIDIA's toolkit asks of the GPU stage. Its wrapper would start runc; the handler that names it
/// wants its effect, and gets that from `holdfast`.
fn nvidia_handler(binary_name: &str) -> Option<&'static str> {
    match Path::new(binary_name).file_name()?.to_str()? {
        "nvidia-container-runtime" => Some("auto"),
        "nvidia-container-runtime.cdi" => Some("cdi"),
        "nvidia-container-runtime.legacy" => Some("legacy"),
        _ => None,
    }
}

impl Options {
    /// The configuration of the GPU stage. The wrappers that the GPU operator installs are scripts which name the file
    /// below their own folder.
    pub(crate) fn gpu_config(&self) -> Option<PathBuf> {
        if !self.gpu_config.is_empty() {
            return Some(self.gpu_config.clone().into());
        }
        nvidia_handler(&self.binary_name)?;
        let folder = Path::new(&self.binary_name).parent()?;
        let file = folder.join(".config/nvidia-container-runtime/config.toml");
        (folder.is_absolute() && file.is_file()).then_some(file)
    }

    /// The OCI runtime to start (empty: `holdfast` beside the shim), and the GPU stage it is told.
    ///
    /// The names of NVIDIA's wrappers stand for `holdfast` with a stage, unless `Gpu` says something: then the name is
    /// taken as it is.
    pub(crate) fn binary_and_gpu(&self) -> (&str, Option<&str>) {
        if !self.gpu.is_empty() {
            return (&self.binary_name, Some(&self.gpu));
        }
        match nvidia_handler(&self.binary_name) {
            Some(handler) => ("", Some(handler)),
            None => (&self.binary_name, None),
        }
    }

    /// Reads what came with Create, `-info` or `start`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for another type and for a body that cannot be read.
    pub(crate) fn from_any(any: &Any) -> Result<Self, Fault> {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if name.is_empty() && any.value.is_empty() {
            return Ok(Self::default());
        }
        if name.ends_with("runtimeoptions.v1.Options") {
            return Self::from_generic(&any.value);
        }
        if name != "containerd.runc.v1.Options" && name != "containerd.linux.runc.CreateOptions" {
            return Err(Fault::invalid(format!(
                "runtime options of type {:?}",
                any.type_url
            )));
        }
        let runc = oci::Options::parse_from_bytes(&any.value)
            .map_err(|error| Fault::invalid(format!("runtime options: {error}")))?;
        Ok(Self {
            no_pivot_root: runc.no_pivot_root,
            no_new_keyring: runc.no_new_keyring,
            shim_cgroup: runc.shim_cgroup,
            io_uid: runc.io_uid,
            io_gid: runc.io_gid,
            binary_name: runc.binary_name,
            root: runc.root,
            systemd_cgroup: runc.systemd_cgroup,
            criu_image_path: runc.criu_image_path,
            criu_work_path: runc.criu_work_path,
            stdio_policy: String::new(),
            gpu: String::new(),
            gpu_config: String::new(),
        })
    }

    /// `runtimeoptions.v1.Options`: type_url = 1, config_path = 2, config_body = 3.
    fn from_generic(bytes: &[u8]) -> Result<Self, Fault> {
        let bad =
            |error: &dyn std::fmt::Display| Fault::invalid(format!("runtime options: {error}"));
        let (mut path, mut body) = (String::new(), Vec::new());
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof().map_err(|e| bad(&e))? {
            match tag {
                0x12 => path = input.read_string().map_err(|e| bad(&e))?,
                0x1a => body = input.read_bytes().map_err(|e| bad(&e))?,
                _ => {
                    let kind = containerd_shim_protos::protobuf::rt::WireType::new(tag & 7)
                        .ok_or_else(|| bad(&"malformed"))?;
                    input.skip_field(kind).map_err(|e| bad(&e))?;
                }
            }
        }
        let text = if body.is_empty() && !path.is_empty() {
            std::fs::read_to_string(&path).map_err(|e| bad(&format!("read {path}: {e}")))?
        } else {
            String::from_utf8(body).map_err(|e| bad(&e))?
        };
        toml::from_str(&text).map_err(|e| bad(&e.message()))
    }

    /// Keeps options and runtime for `delete`.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, bundle: &Path) -> io::Result<()> {
        write_private(&bundle.join(OPTIONS_FILE), &serde_json::to_vec(self)?)?;
        write_private(&bundle.join(RUNTIME_FILE), self.binary_name.as_bytes())
    }

    /// Reads what [`Options::write`] or the Go shim kept; nothing there is no error.
    ///
    /// # Errors
    /// The file system's; `InvalidData` for what is no JSON object.
    pub(crate) fn read(bundle: &Path) -> io::Result<Self> {
        let mut options: Self = match std::fs::read(bundle.join(OPTIONS_FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(error),
        };
        if let Ok(name) = std::fs::read_to_string(bundle.join(RUNTIME_FILE)) {
            name.trim().clone_into(&mut options.binary_name);
        }
        Ok(options)
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use io::Write as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::ttrpc::proto::Code;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.to_owned(),
            value,
            ..Any::default()
        }
    }

    #[test]
    fn both_types_say_the_same() {
        let mut runc = oci::Options::new();
        runc.binary_name = "/usr/bin/runc".to_owned();
        runc.systemd_cgroup = true;
        let bytes = runc.write_to_bytes().unwrap();
        let first = Options::from_any(&any("containerd.runc.v1.Options", bytes)).unwrap();
        let body = b"BinaryName = \"/usr/bin/runc\"\nSystemdCgroup = true\nUnknown = 1\n";
        let mut generic = vec![0x0a, 1, b'x', 0x1a, u8::try_from(body.len()).unwrap()];
        generic.extend_from_slice(body);
        let second = Options::from_any(&any("types/runtimeoptions.v1.Options", generic)).unwrap();
        assert_eq!(first, second);
        assert!(first.systemd_cgroup);
    }

    #[test]
    fn the_names_of_nvidia_s_wrappers_are_a_gpu_stage_of_ours() {
        let of = |binary_name: &str, gpu: &str| {
            let options = Options {
                binary_name: binary_name.to_owned(),
                gpu: gpu.to_owned(),
                ..Options::default()
            };
            let (binary, gpu) = options.binary_and_gpu();
            (binary.to_owned(), gpu.map(str::to_owned))
        };
        let dir = tempfile::tempdir().unwrap();
        let wrapper = dir.path().join("nvidia-container-runtime");
        let options = Options {
            binary_name: wrapper.display().to_string(),
            ..Options::default()
        };
        assert_eq!(options.gpu_config(), None);
        let config = dir.path().join(".config/nvidia-container-runtime");
        std::fs::create_dir_all(&config).unwrap();
        std::fs::write(config.join("config.toml"), "").unwrap();
        assert_eq!(options.gpu_config(), Some(config.join("config.toml")));
        let stage = |gpu: &str| (String::new(), Some(gpu.to_owned()));
        let toolkit = "/usr/local/nvidia/toolkit/nvidia-container-runtime";
        assert_eq!(of(toolkit, ""), stage("auto"));
        assert_eq!(of("nvidia-container-runtime.cdi", ""), stage("cdi"));
        assert_eq!(
            of("/x/nvidia-container-runtime.legacy", ""),
            stage("legacy")
        );
        assert_eq!(of("", "jit-cdi"), stage("jit-cdi"));
        assert_eq!(of("", ""), (String::new(), None));
        assert_eq!(of("/usr/bin/runc", ""), ("/usr/bin/runc".to_owned(), None));
        // Somebody who wants the wrapper itself.
        assert_eq!(
            of(toolkit, "off"),
            (toolkit.to_owned(), Some("off".to_owned()))
        );
    }

    #[test]
    fn foreign_types_and_broken_bodies_are_refused() {
        for (name, body) in [
            ("containerd.runhcs.v1.Options", vec![]),
            ("containerd.runc.v1.Options", vec![0xff]),
            ("runtimeoptions.v1.Options", vec![0x1a, 9, b'x']),
            ("runtimeoptions.v1.Options", vec![0x1a, 1, b'=']),
        ] {
            let fault = Options::from_any(&any(name, body)).unwrap_err();
            assert_eq!(fault.code, Code::INVALID_ARGUMENT, "{name}");
        }
        assert_eq!(
            Options::from_any(&Any::default()).unwrap(),
            Options::default()
        );
    }

    #[test]
    fn reads_what_the_go_shim_wrote() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Options::read(dir.path()).unwrap(), Options::default());
        std::fs::write(dir.path().join("options.json"), "{}").unwrap();
        assert_eq!(Options::read(dir.path()).unwrap(), Options::default());
        let go = r#"{"binary_name":"crun","criu_path":"x","root":"/r","task_api_version":3}"#;
        std::fs::write(dir.path().join("options.json"), go).unwrap();
        std::fs::write(dir.path().join("runtime"), "crun").unwrap();
        let read = Options::read(dir.path()).unwrap();
        assert_eq!(
            (read.binary_name.as_str(), read.root.as_str()),
            ("crun", "/r")
        );
        read.write(dir.path()).unwrap();
        assert_eq!(Options::read(dir.path()).unwrap(), read);
    }
}
