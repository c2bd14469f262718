use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(Path::new("/c.toml"), text.as_bytes())
}

fn refused(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::defaults());
    assert!(config.accept_envvar_when_unprivileged && !config.accept_volume_mounts);
    assert!(config.cli.load_kmods && config.cli.ldconfig.starts_with("@/sbin/ldconfig"));
    assert_eq!(config.runtime.runtimes, ["runc", "crun"]);
    assert_eq!(config.runtime.mode, "auto");
    assert_eq!(
        config.runtime.modes.cdi.spec_dirs,
        ["/etc/cdi", "/var/run/cdi"]
    );
    assert_eq!(
        config.runtime.modes.cdi.annotation_prefixes,
        ["cdi.k8s.io/"]
    );
    assert_eq!(config.runtime.modes.legacy.cuda_compat_mode, "ldconfig");
    assert_eq!(config.own.deadline, Duration::from_secs(60));
    assert!(config.own.strict);
}

#[test]
fn defaults_depend_on_the_system() {
    let root = tempfile::tempdir().unwrap();
    for dir in ["etc", "sbin"] {
        std::fs::create_dir(root.path().join(dir)).unwrap();
    }
    assert_eq!(read::defaults(root.path()).cli.user, "");
    std::fs::write(root.path().join("sbin/ldconfig.real"), "").unwrap();
    std::fs::write(
        root.path().join("etc/os-release"),
        "ID=x\nID_LIKE=\"suse opensuse\"\n",
    )
    .unwrap();
    let config = read::defaults(root.path());
    assert_eq!(config.cli.user, "root:video");
    assert_eq!(config.cli.ldconfig, "@/sbin/ldconfig.real");
    std::fs::write(root.path().join("etc/os-release"), "ID_LIKE=\"notsuse\"\n").unwrap();
    assert_eq!(read::defaults(root.path()).cli.user, "");
}

#[test]
fn keys_count_in_their_spelling_and_in_capitals() {
    let cli = |line: &str| {
        parse(&format!("[nvidia-container-cli]\n{line}\n"))
            .unwrap()
            .cli
    };
    assert!(cli("no-cgroups = true").no_cgroups);
    assert!(cli("NO-CGROUPS = true").no_cgroups);
    assert!(!cli("No-cgroups = true").no_cgroups);
    assert!(!cli("no-cgroups = false\nNO-CGROUPS = true").no_cgroups);
    assert!(
        parse("[NVIDIA-CONTAINER-CLI]\nno-cgroups = true")
            .unwrap()
            .cli
            .no_cgroups
    );
}

#[test]
fn what_is_unknown_is_ignored_and_what_is_wrong_is_not() {
    parse("x = [1, \"a\"]\n[y]\nno-pivot = 3\n[nvidia-container-cli]\nz = {a = 1}\n").unwrap();
    assert_eq!(
        refused("disable-require = \"yes\""),
        "/c.toml, line 1, column 1: disable-require must be true or false, not the string \"yes\""
    );
    assert_eq!(
        refused("\n[nvidia-container-cli]\n  debug = 1"),
        "/c.toml, line 3, column 3: nvidia-container-cli.debug must be a string, not the number 1"
    );
    for text in [
        "nvidia-container-cli = 3",
        "[nvidia-container-cli]\nroot = []",
        "[nvidia-container-cli]\nenvironment = \"A=b\"",
        "[nvidia-container-cli]\nenvironment = [1]",
        "[nvidia-container-cli]\nldconfig = 7",
        "[features]\nallow-ldconfig-from-container = \"yes\"",
        "[nvidia-container-runtime.modes]\ncdi = true",
        "swarm-resource = 1979-05-27",
        "swarm-resource = 1.5",
    ] {
        assert!(matches!(parse(text), Err(Error::Type { .. })), "{text}");
    }
    for text in [
        "not toml",
        "a = 1\na = 2",
        "[features]\n[nvidia-ctk]\n[features]\n",
        "a = \"\\q\"",
        "[",
    ] {
        assert!(matches!(parse(text), Err(Error::Syntax { .. })), "{text}");
    }
    let error = Config::parse(Path::new("/c.toml"), b"a = 1\nb = \"\xff\"").unwrap_err();
    assert!(matches!(error, Error::Syntax { line: 2, .. }), "{error}");
}

#[test]
fn ldconfig_is_of_the_host_unless_allowed() {
    for bad in ["/sbin/ldconfig", ""] {
        let text = format!("[nvidia-container-cli]\nldconfig = \"{bad}\"\n");
        assert!(refused(&text).contains("must start with '@'"), "{bad}");
        parse(&format!(
            "{text}[features]\nallow-ldconfig-from-container = true\n"
        ))
        .unwrap();
    }
}

#[test]
fn our_own_table() {
    let own = |text: &str| parse(&format!("[holdfast]\n{text}\n")).map(|config| config.own);
    assert_eq!(
        own("deadline = \"5m\"").unwrap().deadline,
        Duration::from_secs(300)
    );
    assert_eq!(
        own("device-rules = \"cli\"").unwrap().device_rules,
        DeviceRules::Cli
    );
    assert!(!own("strict = false").unwrap().strict);
    assert_eq!(
        own("as-original = [\"pid-zero\"]").unwrap().as_original,
        ["pid-zero"]
    );
    for bad in [
        "deadline = \"0s\"",
        "deadline = \"soon\"",
        "device-rules = \"mine\"",
        "as-original = [\"pid-one\"]",
    ] {
        assert!(matches!(own(bad), Err(Error::Value { .. })), "{bad}");
    }
    let mut own = Own::default();
    own.switch_off(Some(" all, pid-zero,".as_ref())).unwrap();
    assert_eq!(own.as_original, ["all", "pid-zero"]);
    assert!(own.switch_off(Some("clean-environment".as_ref())).is_err());
}

#[test]
fn flag_variable_xdg_system() {
    let at = |flag: Option<&str>, set: &[(&str, &str)]| {
        locate(flag.map(AsRef::as_ref), |name| {
            let value = set.iter().find(|(key, _)| *key == name)?.1;
            Some(OsString::from(value))
        })
    };
    let env = (VARIABLE, "/env.toml");
    let xdg = ("XDG_CONFIG_HOME", "/xdg");
    let chosen = |location: Location| (location.path.display().to_string(), location.chosen_by);
    assert_eq!(
        chosen(at(Some("/f"), &[env, xdg])),
        ("/f".to_owned(), ChosenBy::Flag)
    );
    assert_eq!(
        chosen(at(Some(""), &[env, xdg])),
        ("/env.toml".to_owned(), ChosenBy::Environment)
    );
    assert_eq!(
        chosen(at(None, &[(VARIABLE, ""), xdg])),
        (
            "/xdg/nvidia-container-runtime/config.toml".to_owned(),
            ChosenBy::Xdg
        )
    );
    assert_eq!(chosen(at(None, &[])), (SYSTEM.to_owned(), ChosenBy::System));
    let missing = Location {
        path: "/nonexistent/config.toml".into(),
        chosen_by: ChosenBy::Flag,
    };
    assert!(matches!(missing.load(), Err(Error::Missing { .. })));
    assert_eq!(missing.load_if_there().unwrap(), Config::defaults());
    let unnamed = Location {
        chosen_by: ChosenBy::Xdg,
        ..missing
    };
    assert_eq!(unnamed.load().unwrap(), Config::defaults());
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\PC|\n){0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_value_panics(key in "(no-pivot|NO-PIVOT|root|environment|ldconfig)", value in "\\PC{0,40}") {
        let _ = parse(&format!("[nvidia-container-cli]\n{key} = {value}\n"));
    }
}
