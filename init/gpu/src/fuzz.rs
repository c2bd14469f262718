//! What others write and this crate reads, as functions from bytes: each panics when the code behind it breaks a promise.
//! Tests run them over `fuzz/corpus`, cargo-fuzz over everything else. No promise is made for this module.
#![expect(clippy::panic, reason = "to panic is what a fuzz target is for")]

use std::path::Path;

use crate::config::Config;
use crate::image::{Image, Mount};
use crate::legacy::{Call, arguments};
use crate::request::Request;
use crate::{capabilities, class, hook};

/// `config.toml`: what is accepted passes its checks, and gives every container an answer.
///
/// # Panics
/// When an accepted configuration has a value that its checks forbid.
pub fn config(input: &[u8]) {
    let Ok(config) = Config::parse(Path::new("/config.toml"), input) else {
        return;
    };
    assert!(
        config.cli.ldconfig.starts_with('@') || config.features.allow_ldconfig_from_container,
        "{config:?}"
    );
    assert!(!config.own.deadline.is_zero(), "{config:?}");
    let image = Image::lenient(["NVIDIA_VISIBLE_DEVICES=0,1", "CUDA_VERSION=9.0"]);
    ask(&image, &config);
}

/// Environment and mounts of a container: lines `NAME=VALUE`, and `m SOURCE DESTINATION` for mounts.
///
/// # Panics
/// When the command line of a granted request could not be told from another one, or is not ours.
pub fn environment(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut mounts = Vec::new();
    let mut entries = Vec::new();
    for line in text.lines() {
        match line
            .strip_prefix("m ")
            .and_then(|rest| rest.split_once(' '))
        {
            Some((source, destination)) => mounts.push(Mount {
                source: source.to_owned(),
                destination: destination.to_owned(),
            }),
            None => entries.push(line),
        }
    }
    let strict = Image::strict(entries.iter().copied());
    let mut image = Image::lenient(entries.iter().copied());
    if let Ok(strict) = strict {
        assert_eq!(strict, image, "one environment, two meanings");
    }
    let mut config = Config::defaults();
    for privileged in [false, true] {
        image.privileged = privileged;
        image.mounts.clone_from(&mounts);
        for accept in [false, true] {
            config.accept_envvar_when_unprivileged = accept;
            config.accept_volume_mounts = accept;
            "SWARM, OTHER".clone_into(&mut config.swarm_resource);
            ask(&image, &config);
        }
    }
}

fn ask(image: &Image, config: &Config) {
    let Ok(supported) = capabilities::supported(config) else {
        return;
    };
    let Ok(found) = Request::find(image, config, &supported) else {
        return;
    };
    let Some(request) = found.value else { return };
    assert!(!request.devices.names.is_empty(), "{request:?}");
    let call = Call {
        debug: false,
        no_cgroups: true,
        pid: 42,
        rootfs: Path::new("/rootfs"),
    };
    let line = arguments(Path::new("/cli"), config, &request, &call);
    let [first, .., pid, rootfs] = &line[..] else {
        panic!("{line:?}");
    };
    assert!(
        first == "/cli" && pid == "--pid=42" && rootfs == "/rootfs",
        "{line:?}"
    );
    let at = line.iter().position(|word| word == "configure");
    // Whatever a container says comes after the command's name, and as an option's value.
    let options = line
        .iter()
        .skip(at.unwrap_or_default() + 1)
        .take(line.len() - at.unwrap_or_default() - 2);
    for option in options {
        assert!(option.as_encoded_bytes().starts_with(b"--"), "{line:?}");
    }
}

/// The container's state on the hook's standard input.
///
/// # Panics
/// Never: it reads or it refuses.
pub fn state(input: &[u8]) {
    hook::read_state(input);
}

/// The specification as the hook reads it.
///
/// # Panics
/// Never: it reads or it refuses.
pub fn spec(input: &[u8]) {
    hook::read_spec(input);
}

/// What the CLI says on standard error.
///
/// # Panics
/// When a class has no advice.
pub fn words(input: &[u8]) {
    let class = class::Class::of(&String::from_utf8_lossy(input));
    assert!(!class.advice().is_empty() && !class.to_string().is_empty());
}

#[cfg(test)]
mod tests {
    use holdfast_corpus::{Shape, replay};

    const CRATE: &str = env!("CARGO_MANIFEST_DIR");

    #[test]
    fn config() {
        replay(CRATE, "config", Shape::Bytes, 3000, super::config);
    }

    #[test]
    fn environment() {
        replay(CRATE, "environment", Shape::Bytes, 3000, super::environment);
    }

    #[test]
    fn state() {
        replay(CRATE, "state", Shape::Json, 3000, super::state);
    }

    #[test]
    fn spec() {
        replay(CRATE, "spec", Shape::Json, 3000, super::spec);
    }

    #[test]
    fn words() {
        replay(CRATE, "words", Shape::Bytes, 1000, super::words);
    }
}
