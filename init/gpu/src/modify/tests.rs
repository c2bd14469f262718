use std::path::Path;

use serde_json::json;

use super::*;

fn config(text: &str) -> Config {
    Config::parse(Path::new("/config.toml"), text.as_bytes()).unwrap()
}

fn setup(config: &Config) -> Setup<'_> {
    Setup {
        config,
        path: Some("/nonexistent".into()),
        data_dirs: None,
        strict: true,
        deadline: Duration::from_secs(60),
    }
}

fn image(env: &[&str]) -> Image {
    Image::strict(env.iter().copied()).unwrap()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn auto_is_jit_cdi_but_for_cdi_names_and_tegra() {
    let config = config("");
    let mode = |env: &[&str], platform| mode_of(&config, &image(env), || platform).unwrap();
    assert_eq!(mode(&[], Platform::Nvml), Mode::JitCdi);
    assert_eq!(
        mode(&["NVIDIA_VISIBLE_DEVICES=all"], Platform::Unknown),
        Mode::JitCdi
    );
    assert_eq!(
        mode(&["NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0"], Platform::Nvml),
        Mode::Cdi
    );
    assert_eq!(
        mode(
            &["NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0,1"],
            Platform::Nvml
        ),
        Mode::JitCdi
    );
    assert_eq!(mode(&[], Platform::Tegra), Mode::Csv);
}

#[test]
fn modes_that_are_none() {
    for (text, said) in [("", "is empty"), ("legcay", "legcay")] {
        let config = config(&format!("[nvidia-container-runtime]\nmode = \"{text}\"\n"));
        let error = mode_of(&config, &image(&[]), || Platform::Nvml).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn names_get_a_kind_and_come_once() {
    let of = |list: &[&str], strict| qualified_names(&names(list), "a.b/c", strict);
    assert_eq!(of(&["0", "x/y=z", "0"], false), ["a.b/c=0", "x/y=z"]);
    assert_eq!(of(&[""], true), ["a.b/c=none"]);
    assert_eq!(of(&["", "0"], false), ["a.b/c=none", "a.b/c=0"]);
    assert_eq!(of(&["", "0"], true), ["a.b/c=0"]);
}

#[test]
fn annotations_win_and_only_under_a_prefix() {
    let config = config(
        "[nvidia-container-runtime.modes.cdi]\nannotation-prefixes = [\"cdi.k8s.io/\", \"\"]\n",
    );
    let mut image = image(&["NVIDIA_VISIBLE_DEVICES=1"]);
    image.annotations.insert("other".into(), "a.b/c=9".into());
    assert_eq!(visible(&image, &config, Mode::Cdi).names(), ["1"]);
    image
        .annotations
        .insert("cdi.k8s.io/x".into(), "a.b/c=0".into());
    assert_eq!(visible(&image, &config, Mode::Cdi).names(), ["a.b/c=0"]);
    assert_eq!(visible(&image, &config, Mode::JitCdi).names(), ["1"]);
    assert_eq!(visible(&image, &config, Mode::Legacy).names(), ["1"]);
}

#[test]
fn the_prestart_hook_comes_and_goes() {
    let hook = PrestartHook {
        path: "/opt/my-hook".into(),
    };
    let mut spec = json!({});
    hook.insert(&mut spec);
    assert_eq!(
        spec,
        json!({"hooks": {"prestart": [{"path": "/opt/my-hook", "args": ["my-hook", "prestart"]}]}})
    );
    let there = json!({"hooks": {"prestart": [{"path": "/x/nvidia-container-toolkit"}, {"path": "/keep"}]}});
    let mut spec = there.clone();
    hook.insert(&mut spec);
    assert_eq!(spec, there);
    hooks::remove(&mut spec);
    assert_eq!(spec, json!({"hooks": {"prestart": [{"path": "/keep"}]}}));
}

#[test]
fn without_a_request_nothing_is_asked() {
    // The driver's root does not exist, so anything that looked at it would fail.
    for mode in ["legacy", "cdi", "jit-cdi", "csv"] {
        let config = config(&format!(
            "[nvidia-container-cli]\nroot = \"/nonexistent\"\n[nvidia-container-runtime]\nmode = \"{mode}\"\n"
        ));
        for env in [
            vec![],
            vec!["NVIDIA_VISIBLE_DEVICES=void"],
            vec!["NVIDIA_VISIBLE_DEVICES="],
        ] {
            let image = image(&env);
            let mode = mode_of(&config, &image, || Platform::Unknown).unwrap();
            let plan = Modification::plan(&setup(&config), &image, mode).unwrap();
            assert!(!plan.has_request());
            assert!(
                plan.steps
                    .iter()
                    .all(|step| !matches!(step, Step::Edits { .. }))
            );
        }
    }
}

#[test]
fn csv_says_that_it_is_not_supported() {
    let config = config("");
    let error = Modification::plan(
        &setup(&config),
        &image(&["NVIDIA_VISIBLE_DEVICES=all"]),
        Mode::Csv,
    )
    .unwrap_err();
    assert!(error.to_string().contains("not support"), "{error}");
}

#[test]
fn devices_of_files_and_automatic_ones_do_not_mix() {
    let config = config("");
    let image = image(&["NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0,1"]);
    let error = Modification::plan(&setup(&config), &image, Mode::JitCdi).unwrap_err();
    assert!(
        matches!(&error, Error::MixedKinds { devices } if devices.len() == 2),
        "{error}"
    );
}

#[test]
fn a_node_without_driver_is_an_error_that_says_so() {
    let config = config("[nvidia-container-cli]\nroot = \"/nonexistent\"\n");
    let image = image(&["NVIDIA_VISIBLE_DEVICES=all"]);
    let error = Modification::plan(&setup(&config), &image, Mode::JitCdi).unwrap_err();
    let Error::Nvml(nvml) = error else {
        panic!("{error}");
    };
    assert!(nvml.to_string().contains("not installed"), "{nvml}");
}
