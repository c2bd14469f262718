//! From TOML to [`Config`], as go-toml version 1 unmarshals into the toolkit's structures.
//!
//! * A key is found in its own spelling, else in all upper case; `No-cgroups` is an unknown key.
//! * Unknown keys and tables are ignored, whatever is in them.
//! * A known key with a value of another type is an error; nothing is converted.
//! * A key or table that is there twice is an error (of the parser).
//! * A list replaces the default list, and may be empty.

use std::fs;
use std::path::Path;
use std::time::Duration;

use holdfast_record::deadline::parse_duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Config, DeviceRules, Error, Own, own};

/// The set of `supported-driver-capabilities` that the toolkit knows, and its default.
const ALL_CAPABILITIES: &str = "compat32,compute,display,graphics,ngx,utility,video";

/// The toolkit's defaults, for a host whose root is at `root`.
pub(super) fn defaults(root: &Path) -> Config {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
    let ldconfig = if root.join("sbin/ldconfig.real").exists() {
        "@/sbin/ldconfig.real"
    } else {
        "@/sbin/ldconfig"
    };
    let mut config = Config {
        disable_require: false,
        swarm_resource: String::new(),
        accept_envvar_when_unprivileged: true,
        accept_volume_mounts: false,
        supported_driver_capabilities: ALL_CAPABILITIES.to_owned(),
        cli: super::Cli {
            load_kmods: true,
            ldconfig: ldconfig.to_owned(),
            ..super::Cli::default()
        },
        ctk: super::Ctk {
            path: "nvidia-ctk".to_owned(),
        },
        runtime: super::Runtime {
            debug: "/dev/null".to_owned(),
            log_level: "info".to_owned(),
            runtimes: list(&["runc", "crun"]),
            mode: "auto".to_owned(),
            modes: super::Modes {
                csv: super::Csv {
                    mount_spec_path: "/etc/nvidia-container-runtime/host-files-for-container.d"
                        .to_owned(),
                    compat_container_root: String::new(),
                },
                cdi: super::Cdi {
                    spec_dirs: list(&["/etc/cdi", "/var/run/cdi"]),
                    default_kind: "nvidia.com/gpu".to_owned(),
                    annotation_prefixes: list(&["cdi.k8s.io/"]),
                },
                jit_cdi: super::JitCdi::default(),
                legacy: super::Legacy {
                    cuda_compat_mode: "ldconfig".to_owned(),
                },
            },
        },
        hook: super::Hook {
            path: "nvidia-container-runtime-hook".to_owned(),
            skip_mode_detection: false,
        },
        features: super::Features::default(),
        own: Own::default(),
    };
    if is_suse(root) {
        config.cli.user = "root:video".to_owned();
    }
    config
}

/// Whether `/etc/os-release` says that the system is like SUSE's.
fn is_suse(root: &Path) -> bool {
    let text = fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("ID_LIKE="))
        .is_some_and(|like| {
            like.trim_matches('"')
                .split(' ')
                .any(|word| matches!(word, "suse" | "opensuse"))
        })
}

/// Reads `content` over `config`, which holds the defaults.
pub(super) fn parse(path: &Path, content: &[u8], mut config: Config) -> Result<Config, Error> {
    let text = std::str::from_utf8(content).map_err(|error| {
        let (line, column) = place(
            &String::from_utf8_lossy(&content[..error.valid_up_to()]),
            usize::MAX,
        );
        Error::Syntax {
            path: path.to_owned(),
            line,
            column,
            problem: "is not UTF-8".to_owned(),
        }
    })?;
    let document = DeTable::parse(text).map_err(|error| {
        let (line, column) = place(text, error.span().map_or(0, |span| span.start));
        let problem = error.message().lines().collect::<Vec<_>>().join(", ");
        Error::Syntax {
            path: path.to_owned(),
            line,
            column,
            problem,
        }
    })?;
    let file = File { path, text };
    let root = Table {
        file: &file,
        table: Some(document.get_ref()),
        name: String::new(),
    };
    read(&root, &mut config)?;
    check(path, &config)?;
    Ok(config)
}

fn read(root: &Table<'_>, config: &mut Config) -> Result<(), Error> {
    root.flag("disable-require", &mut config.disable_require)?;
    root.text("swarm-resource", &mut config.swarm_resource)?;
    root.flag(
        "accept-nvidia-visible-devices-envvar-when-unprivileged",
        &mut config.accept_envvar_when_unprivileged,
    )?;
    root.flag(
        "accept-nvidia-visible-devices-as-volume-mounts",
        &mut config.accept_volume_mounts,
    )?;
    root.text(
        "supported-driver-capabilities",
        &mut config.supported_driver_capabilities,
    )?;

    let table = root.table("nvidia-container-cli")?;
    let cli = &mut config.cli;
    table.text("root", &mut cli.root)?;
    table.text("path", &mut cli.path)?;
    table.list("environment", &mut cli.environment)?;
    table.text("debug", &mut cli.debug)?;
    table.text("ldcache", &mut cli.ldcache)?;
    table.flag("load-kmods", &mut cli.load_kmods)?;
    table.flag("no-pivot", &mut cli.no_pivot)?;
    table.flag("no-cgroups", &mut cli.no_cgroups)?;
    table.text("user", &mut cli.user)?;
    table.text("ldconfig", &mut cli.ldconfig)?;

    root.table("nvidia-ctk")?
        .text("path", &mut config.ctk.path)?;

    let table = root.table("nvidia-container-runtime")?;
    let runtime = &mut config.runtime;
    table.text("debug", &mut runtime.debug)?;
    table.text("log-level", &mut runtime.log_level)?;
    table.list("runtimes", &mut runtime.runtimes)?;
    table.text("mode", &mut runtime.mode)?;
    let modes = table.table("modes")?;
    let csv = modes.table("csv")?;
    csv.text("mount-spec-path", &mut runtime.modes.csv.mount_spec_path)?;
    csv.text(
        "compat-container-root",
        &mut runtime.modes.csv.compat_container_root,
    )?;
    let cdi = modes.table("cdi")?;
    cdi.list("spec-dirs", &mut runtime.modes.cdi.spec_dirs)?;
    cdi.text("default-kind", &mut runtime.modes.cdi.default_kind)?;
    cdi.list(
        "annotation-prefixes",
        &mut runtime.modes.cdi.annotation_prefixes,
    )?;
    let jit = modes.table("jit-cdi")?;
    jit.list(
        "nvcdi-disable-hooks",
        &mut runtime.modes.jit_cdi.disable_hooks,
    )?;
    jit.list(
        "nvcdi-feature-flags",
        &mut runtime.modes.jit_cdi.feature_flags,
    )?;
    modes.table("legacy")?.text(
        "cuda-compat-mode",
        &mut runtime.modes.legacy.cuda_compat_mode,
    )?;

    let hook = root.table("nvidia-container-runtime-hook")?;
    hook.text("path", &mut config.hook.path)?;
    hook.flag("skip-mode-detection", &mut config.hook.skip_mode_detection)?;

    let table = root.table("features")?;
    let features = &mut config.features;
    table.flag(
        "allow-cuda-compat-libs-from-container",
        &mut features.allow_cuda_compat_libs_from_container,
    )?;
    table.flag(
        "allow-ldconfig-from-container",
        &mut features.allow_ldconfig_from_container,
    )?;
    table.flag(
        "allow-unknown-oci-spec-fields",
        &mut features.allow_unknown_oci_spec_fields,
    )?;
    table.flag(
        "disable-cuda-compat-lib-hook",
        &mut features.disable_cuda_compat_lib_hook,
    )?;
    table.flag(
        "disable-imex-channel-creation",
        &mut features.disable_imex_channel_creation,
    )?;
    table.flag(
        "ignore-imex-channel-requests",
        &mut features.ignore_imex_channel_requests,
    )?;
    table.flag(
        "no-additional-gids-for-device-nodes",
        &mut features.no_additional_gids_for_device_nodes,
    )?;

    read_own(root, &mut config.own)
}

fn read_own(root: &Table<'_>, own: &mut Own) -> Result<(), Error> {
    let table = root.table("holdfast")?;
    table.flag("strict", &mut own.strict)?;
    table.list("as-original", &mut own.as_original)?;
    if let Some(unknown) = own
        .as_original
        .iter()
        .find_map(|name| own::check(name).err())
    {
        return Err(table.value(
            "holdfast.as-original",
            &unknown.0,
            "it is the name of no deviation that can be switched off, see deviations.md",
        ));
    }
    let mut deadline = String::new();
    table.text("deadline", &mut deadline)?;
    if !deadline.is_empty() {
        own.deadline = parse_duration(&deadline)
            .filter(|limit| *limit > Duration::ZERO)
            .ok_or_else(|| {
                table.value(
                    "holdfast.deadline",
                    &deadline,
                    "it must be a time above 0 such as 250ms, 30s or 5m",
                )
            })?;
    }
    let mut rules = String::new();
    table.text("device-rules", &mut rules)?;
    own.device_rules = match rules.as_str() {
        "" => own.device_rules,
        "spec" => DeviceRules::Spec,
        "cli" => DeviceRules::Cli,
        _ => return Err(table.value("holdfast.device-rules", &rules, "it must be spec or cli")),
    };
    Ok(())
}

fn check(path: &Path, config: &Config) -> Result<(), Error> {
    let ldconfig = &config.cli.ldconfig;
    if ldconfig.starts_with('@') || config.features.allow_ldconfig_from_container {
        return Ok(());
    }
    Err(Error::Value {
        path: path.to_owned(),
        key: "nvidia-container-cli.ldconfig",
        value: ldconfig.clone(),
        problem: "it must start with '@', which stands for a path of the host \
                  (features.allow-ldconfig-from-container allows one of the container)"
            .to_owned(),
    })
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

/// A table of the file, or the place where one could be.
struct Table<'a> {
    file: &'a File<'a>,
    table: Option<&'a DeTable<'a>>,
    name: String,
}

type Found<'a> = (usize, &'a Spanned<DeValue<'a>>);

impl<'a> Table<'a> {
    /// The value of `key`, which is all lower case, and where the key stands.
    fn find(&self, key: &str) -> Option<Found<'a>> {
        let upper = key.to_uppercase();
        [key, &upper].into_iter().find_map(|spelling| {
            let (key, value) = self
                .table?
                .iter()
                .find(|(key, _)| key.get_ref().as_ref() == spelling)?;
            Some((key.span().start, value))
        })
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    fn wrong(&self, key: &str, at: usize, wanted: &'static str, value: &DeValue<'_>) -> Error {
        let (line, column) = place(self.file.text, at);
        Error::Type {
            path: self.file.path.to_owned(),
            line,
            column,
            key: self.full(key),
            wanted,
            found: show(value),
        }
    }

    fn value(&self, key: &'static str, value: &str, problem: &str) -> Error {
        Error::Value {
            path: self.file.path.to_owned(),
            key,
            value: value.to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn table(&self, key: &str) -> Result<Table<'a>, Error> {
        let table = match self.find(key) {
            None => None,
            Some((at, value)) => match value.get_ref().as_table() {
                Some(table) => Some(table),
                None => return Err(self.wrong(key, at, "a table", value.get_ref())),
            },
        };
        Ok(Table {
            file: self.file,
            table,
            name: self.full(key),
        })
    }

    fn flag(&self, key: &str, into: &mut bool) -> Result<(), Error> {
        if let Some((at, value)) = self.find(key) {
            *into = value
                .get_ref()
                .as_bool()
                .ok_or_else(|| self.wrong(key, at, "true or false", value.get_ref()))?;
        }
        Ok(())
    }

    fn text(&self, key: &str, into: &mut String) -> Result<(), Error> {
        if let Some((at, value)) = self.find(key) {
            let text = value
                .get_ref()
                .as_str()
                .ok_or_else(|| self.wrong(key, at, "a string", value.get_ref()))?;
            text.clone_into(into);
        }
        Ok(())
    }

    fn list(&self, key: &str, into: &mut Vec<String>) -> Result<(), Error> {
        const WANTED: &str = "a list of strings";
        let Some((at, value)) = self.find(key) else {
            return Ok(());
        };
        let items = value
            .get_ref()
            .as_array()
            .ok_or_else(|| self.wrong(key, at, WANTED, value.get_ref()))?;
        *into = items
            .iter()
            .map(|item| {
                let text = item.get_ref().as_str().map(str::to_owned);
                text.ok_or_else(|| self.wrong(key, item.span().start, WANTED, item.get_ref()))
            })
            .collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// A value as an error shows it.
fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {text:?}"),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Line and column of byte `at`, both from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text
        .char_indices()
        .take_while(|(index, _)| *index < at)
        .map(|(_, c)| c);
    before.fold((1, 1), |(line, column), c| {
        if c == '\n' {
            (line + 1, 1)
        } else {
            (line, column + 1)
        }
    })
}
