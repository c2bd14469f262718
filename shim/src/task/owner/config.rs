//! What the owner reads in the bundle's config.json, once.

use std::collections::BTreeMap;

use holdfast_record::ledger::{NAME_ANNOTATIONS, Pod};

use super::Config;
use crate::task::termination;

/// The container's name and pod, by its annotations.
fn by_annotations(annotations: &BTreeMap<String, String>) -> (Option<String>, Option<Pod>) {
    let get = |key: &str| annotations.get(key).map(String::as_str);
    let name = NAME_ANNOTATIONS.iter().find_map(|key| get(key));
    (name.map(str::to_owned), Pod::from_annotations(get))
}

/// The container's name and pod, for a record of it.
pub(crate) fn whose(bundle: &std::path::Path) -> (Option<String>, Option<Pod>) {
    #[derive(serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let spec: Option<Spec> = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    spec.map_or((None, None), |spec| by_annotations(&spec.annotations))
}

/// Reads it; what cannot be read may share everything.
pub(super) fn read_config(bundle: &std::path::Path) -> Config {
    #[derive(Default, serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
        #[serde(default)]
        linux: Linux,
        #[serde(default)]
        mounts: Vec<Mount>,
    }
    #[derive(serde::Deserialize)]
    struct Mount {
        #[serde(default)]
        destination: String,
        #[serde(default)]
        source: String,
    }
    #[derive(Default, serde::Deserialize)]
    struct Linux {
        #[serde(default)]
        namespaces: Vec<Namespace>,
    }
    #[derive(serde::Deserialize)]
    struct Namespace {
        r#type: String,
        #[serde(default)]
        path: String,
    }
    let spec: Option<Spec> = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(spec) = spec else {
        // What cannot be read may share everything.
        return Config {
            kill_all_on_exit: true,
            ..Config::default()
        };
    };
    let (name, pod) = by_annotations(&spec.annotations);
    Config {
        kill_all_on_exit: !spec
            .linux
            .namespaces
            .iter()
            .any(|namespace| namespace.r#type == "pid" && namespace.path.is_empty()),
        pod,
        name,
        termination_log: termination::find(
            &spec.annotations,
            spec.mounts
                .iter()
                .map(|mount| (mount.destination.as_str(), mount.source.as_str())),
        ),
    }
}
