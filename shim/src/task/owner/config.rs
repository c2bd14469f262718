//! What the owner reads in the bundle's config.json, once.

use std::collections::BTreeMap;

use holdfast_record::ledger::Pod;

use super::Config;

/// Reads it; what cannot be read may share everything.
pub(super) fn read_config(bundle: &std::path::Path) -> Config {
    #[derive(Default, serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
        #[serde(default)]
        linux: Linux,
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
            pod: None,
        };
    };
    Config {
        kill_all_on_exit: !spec
            .linux
            .namespaces
            .iter()
            .any(|namespace| namespace.r#type == "pid" && namespace.path.is_empty()),
        pod: Pod::from_annotations(|key| spec.annotations.get(key).map(String::as_str)),
    }
}
