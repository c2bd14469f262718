//! containerd with the drop-in as shipped in `packaging/`.

use std::time::Duration;

use holdfast_integration::containerd::{Containerd, Extra, Version};
use holdfast_integration::{deadline, place};

#[test]
fn containerd_1_6_takes_the_drop_in() {
    takes_the_drop_in(
        Version::V1_6,
        "containerd-config-v2.toml",
        "io.containerd.grpc.v1.cri",
        &["holdfast"],
    );
}

#[test]
fn containerd_1_6_takes_the_drop_in_with_gpus() {
    takes_the_drop_in(
        Version::V1_6,
        "containerd-gpu-config-v2.toml",
        "io.containerd.grpc.v1.cri",
        GPU_HANDLERS,
    );
}

#[test]
fn containerd_2_1_takes_the_drop_in_with_gpus() {
    takes_the_drop_in(
        Version::V2_1,
        "containerd-gpu-config-v3.toml",
        "io.containerd.cri.v1.runtime",
        GPU_HANDLERS,
    );
}

/// The names under which the GPU operator has its handlers, and ours without a GPU stage.
const GPU_HANDLERS: &[&str] = &["holdfast", "nvidia", "nvidia-cdi", "nvidia-legacy"];

#[test]
fn containerd_2_1_takes_the_drop_in() {
    takes_the_drop_in(
        Version::V2_1,
        "containerd-config-v3.toml",
        "io.containerd.cri.v1.runtime",
        &["holdfast"],
    );
}

fn takes_the_drop_in(version: Version, file: &str, plugin: &str, handlers: &[&str]) {
    let file = place::repository().join("packaging").join(file);
    let extra = Extra {
        imports: vec![file],
        cri: true,
        ..Extra::default()
    };
    let Some(containerd) = Containerd::start(version, "dropin", &extra) else {
        return;
    };

    // The handlers are in the configuration that is in force ...
    let mut dump = containerd.program("containerd");
    dump.arg("--config")
        .arg(containerd.path("config.toml"))
        .args(["config", "dump"]);
    let dump = deadline::run(&mut dump, Duration::from_secs(20));
    for name in handlers {
        let handler = runtime_type_of(name, dump.ok());
        assert_eq!(
            handler.as_deref(),
            Some("io.containerd.holdfast.v2"),
            "{name}: {dump}"
        );
    }
    // ... beside the one that was there ...
    let default = runtime_type_of("runc", dump.ok());
    assert_eq!(default.as_deref(), Some("io.containerd.runc.v2"), "{dump}");

    // ... the plugin that has it is up ...
    let plugins = containerd.ctr_ok(&["plugins", "list"]);
    let (kind, id) = plugin.rsplit_once('.').unwrap();
    let line = plugins.lines().find(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first() == Some(&kind) && words.get(1) == Some(&id)
    });
    assert!(
        line.is_some_and(|line| line.trim_end().ends_with("ok")),
        "{plugins}\n{}",
        containerd.log()
    );

    // ... and a container runs.
    let ran = containerd.run("box", &["--rm"], &["sh", "-c", "exit 12"]);
    assert_eq!(ran.code(), 12, "{ran}");
    containerd.assert_nothing_left();
}

/// The runtime type of the table `….containerd.runtimes.NAME`.
fn runtime_type_of(name: &str, dump: &str) -> Option<String> {
    let wanted = format!(".containerd.runtimes.{name}");
    let mut lines = dump.lines().skip_while(|line| {
        let table = line.trim().trim_matches(['[', ']']);
        !(line.trim().starts_with('[') && table.ends_with(&wanted))
    });
    lines.next()?;
    lines
        .take_while(|line| !line.trim().starts_with('['))
        .find_map(|line| line.trim().strip_prefix("runtime_type = "))
        .map(|value| value.trim_matches(['"', '\'']).to_owned())
}
