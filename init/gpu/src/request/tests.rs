use proptest::prelude::*;

use super::*;
use crate::image::Mount;

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::defaults();
    change(&mut config);
    config
}

fn names(env: &[&str], config: &Config) -> Option<Vec<String>> {
    let image = Image::lenient(env.iter().copied());
    devices(&image, config).value.map(|devices| devices.names)
}

fn visible(value: &str) -> Option<Vec<String>> {
    names(
        &[&format!("NVIDIA_VISIBLE_DEVICES={value}")],
        &Config::defaults(),
    )
}

fn mounted(destinations: &[&str], env: &[&str]) -> Found<Option<Devices>> {
    let mut image = Image::lenient(env.iter().copied());
    image.mounts = destinations
        .iter()
        .map(|destination| Mount {
            source: "/dev/null".to_owned(),
            destination: format!("{MOUNT_ROOT}{destination}"),
        })
        .collect();
    devices(&image, &config(|config| config.accept_volume_mounts = true))
}

fn some(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn the_first_all_or_none_decides_and_void_ends_it() {
    assert_eq!(visible(""), None);
    assert_eq!(visible(" , "), None);
    assert_eq!(visible("0, 1"), some(&["0", "1"]));
    assert_eq!(visible("0,all,none"), some(&["all"]));
    assert_eq!(visible("0,none,all"), some(&[""]));
    assert_eq!(visible("all,void"), None);
    assert_eq!(visible("ALL,VOID"), some(&["ALL", "VOID"]));
    assert_eq!(visible("0,1,0,0"), some(&["", "1", "", "0"]));
}

#[test]
fn swarm_resources_replace_the_variable() {
    let config = config(|config| " A ,B,".clone_into(&mut config.swarm_resource));
    assert_eq!(
        names(&["B=1", "A=0", "NVIDIA_VISIBLE_DEVICES=7"], &config),
        some(&["0", "1"])
    );
    assert_eq!(names(&["A=", "NVIDIA_VISIBLE_DEVICES=7"], &config), None);
    assert_eq!(names(&["NVIDIA_VISIBLE_DEVICES=7"], &config), some(&["7"]));
    assert_eq!(names(&["CUDA_VERSION=9"], &config), some(&["all"]));
}

#[test]
fn an_unprivileged_container_may_be_kept_from_asking() {
    let config = config(|config| config.accept_envvar_when_unprivileged = false);
    let mut image = Image::lenient(["NVIDIA_VISIBLE_DEVICES=0"]);
    let found = devices(&image, &config);
    assert_eq!(found.value, None);
    assert!(
        found.ignored[0]
            .to_string()
            .contains("NVIDIA_VISIBLE_DEVICES")
    );
    image.privileged = true;
    assert!(devices(&image, &config).value.is_some());
}

#[test]
fn mounts_win_and_are_taken_as_they_are() {
    let found = |destinations: &[&str]| {
        let found = mounted(destinations, &["NVIDIA_VISIBLE_DEVICES=9"]);
        found.value.unwrap().names
    };
    assert_eq!(found(&["/0", "/void", "/0/"]), ["0", "void"]);
    assert_eq!(found(&["X"]), ["X"]);
    assert_eq!(found(&["/", ""]), ["9"]);
    assert_eq!(found(&["/imex/1"]), ["9"]);
    assert_eq!(
        found(&["/cdi/nvidia.com/gpu/a/b", "/cdi/nvidia.com/gpu=0"]),
        ["nvidia.com/gpu=a/b", "nvidia.com/gpu=0"]
    );
    let found = mounted(&["/cdi/bad", "/2"], &[]);
    assert_eq!(found.value.unwrap().names, ["2"]);
    assert_eq!(
        found.ignored,
        [Ignored::InvalidMount {
            device: "cdi/bad".to_owned()
        }]
    );
}

#[test]
fn imex_channels_of_mounts_and_variables() {
    let channels = |env: &[&str], mounts: &[&str]| {
        let mut image = Image::lenient(env.iter().copied());
        image.mounts = mounts
            .iter()
            .map(|name| Mount {
                source: "/dev/null".to_owned(),
                destination: format!("{MOUNT_ROOT}/{name}"),
            })
            .collect();
        imex_channels(&image, &config(|config| config.accept_volume_mounts = true)).value
    };
    assert_eq!(channels(&["NVIDIA_IMEX_CHANNELS=0,3"], &[]), ["0", "3"]);
    assert_eq!(
        channels(&["NVIDIA_IMEX_CHANNELS=0"], &["imex/7", "1"]),
        ["7"]
    );
    assert!(channels(&["NVIDIA_IMEX_CHANNELS=all"], &[]).is_empty());
    assert!(channels(&["CUDA_VERSION=9"], &[]).is_empty());
    let mut off = Config::defaults();
    off.features.ignore_imex_channel_requests = true;
    assert!(
        imex_channels(&Image::lenient(["NVIDIA_IMEX_CHANNELS=0"]), &off)
            .value
            .is_empty()
    );
}

#[test]
fn annotations_by_key_and_untrimmed() {
    let mut image = Image::default();
    for (key, value) in [
        ("cdi.k8s.io/b", "x=1, y"),
        ("cdi.k8s.io/a", "z"),
        ("other/a", "w"),
    ] {
        image.annotations.insert(key.to_owned(), value.to_owned());
    }
    assert_eq!(
        annotated(&image, &["cdi.k8s.io/".to_owned()]),
        ["z", "x=1", " y"]
    );
}

#[test]
fn a_request_says_what_it_cannot_have() {
    let find = |env: &[&str]| {
        let config = Config::defaults();
        let supported = capabilities::supported(&config).unwrap();
        Request::find(&Image::lenient(env.iter().copied()), &config, &supported)
    };
    assert_eq!(
        find(&["NVIDIA_MIG_CONFIG_DEVICES=all"]).unwrap().value,
        None
    );
    assert!(matches!(
        find(&["NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_MIG_MONITOR_DEVICES= "]),
        Err(Error::MigUnprivileged {
            variable: MIG_MONITOR
        })
    ));
    let error = find(&[
        "NVIDIA_VISIBLE_DEVICES=0",
        "NVIDIA_DRIVER_CAPABILITIES=compute,foo",
    ])
    .unwrap_err();
    assert!(
        error.to_string().contains("\"foo\" is not supported"),
        "{error}"
    );
    let error = find(&["CUDA_VERSION=foo"]).unwrap_err();
    assert!(
        error.to_string().contains("CUDA_VERSION=\"foo\""),
        "{error}"
    );
    let request = find(&[
        "NVIDIA_VISIBLE_DEVICES=0",
        "NVIDIA_REQUIRE_B=2",
        "NVIDIA_REQUIRE_A=1",
        "NVIDIA_REQUIRE_JETPACK_X=3",
    ]);
    assert_eq!(request.unwrap().value.unwrap().requirements.0, ["1", "2"]);
}

proptest! {
    #[test]
    fn no_environment_panics(entries in prop::collection::vec("(NVIDIA_VISIBLE_DEVICES|NVIDIA_DRIVER_CAPABILITIES|CUDA_VERSION|NVIDIA_IMEX_CHANNELS)=\\PC{0,30}", 0..6)) {
        let config = Config::defaults();
        let supported = capabilities::supported(&config).unwrap();
        let image = Image::lenient(entries.iter().map(String::as_str));
        let _ = Request::find(&image, &config, &supported);
    }
}
