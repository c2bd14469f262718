//! `holdfast gpu plan`: what the stage would do for a bundle, without doing it.
//!
//! No container is made and the CLI is not called. In mode jit-cdi the helper that asks NVML is started, because the
//! answer is the plan.

use std::ffi::OsString;
use std::path::Path;

use holdfast_gpu::legacy::{self, arguments};
use holdfast_gpu::modify::{ContainerEdits, Source, Step};
use holdfast_gpu::request::Origin;
use serde_json::{Value, json};

use super::{Call, Decision, Flags, Handler, decide};
use crate::bundle::Bundle;
use crate::error::Result;

/// Stands for the pid that init will have.
const PID: u64 = 4_194_304;

/// The plan for the bundle at `path`, as JSON: `gpu` is false when there is nothing to do.
///
/// # Errors
/// What `create` would fail with.
pub(crate) fn plan(flags: &Flags, path: &Path) -> Result<Value> {
    let bundle = Bundle::load(path)?;
    let Some(decision) = decide(flags, &bundle)? else {
        return Ok(json!({
            "gpu": false,
            "why": match flags.handler()? {
                Handler::Off => "the handler has no GPU stage (--gpu off)",
                Handler::Configured | Handler::Fixed(_) => "the container does not ask for a GPU",
            },
            "spec": bundle.spec,
        }));
    };
    let Decision {
        mode,
        plan,
        call,
        spec,
    } = decision;
    let steps: Vec<Value> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Edits { of, edits } => Some(json!({"of": of, "edits": edits_value(edits)})),
            Step::RemoveHook | Step::InsertHook(_) => None,
        })
        .collect();
    Ok(json!({
        "gpu": true,
        "mode": mode.name(),
        "devices": plan.devices,
        "requestedBy": plan.source.as_ref().map(source_text),
        "ignored": plan.ignored.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "edits": steps,
        "command": call.as_ref().map(|call| command(call, &bundle)),
        "deviceRules": call.as_ref().map(|call| if call.no_cgroups { "spec" } else { "cli" }),
        "spec": spec,
    }))
}

/// The CLI's command line; `PID` stands for a number that is not known yet.
fn command(call: &Call, bundle: &Bundle) -> Vec<String> {
    let line = arguments(
        &call.program.path,
        &call.config,
        &call.request,
        &legacy::Call {
            debug: false,
            no_cgroups: call.no_cgroups,
            pid: PID,
            rootfs: &bundle.rootfs,
        },
    );
    let pid = OsString::from(format!("--pid={PID}"));
    line.iter()
        .map(|word| {
            if *word == pid {
                "--pid=PID".to_owned()
            } else {
                word.to_string_lossy().into_owned()
            }
        })
        .collect()
}

fn source_text(source: &Source) -> String {
    match source {
        Source::Annotations => "annotations".to_owned(),
        Source::Container(Origin::Mounts) => "mounts".to_owned(),
        Source::Container(Origin::Environment(names)) => {
            format!("environment: {}", names.join(", "))
        }
        Source::Container(Origin::LegacyImage) => {
            "environment: CUDA_VERSION of an old CUDA image".to_owned()
        }
    }
}

/// Edits in the form of a CDI file.
fn edits_value(edits: &ContainerEdits) -> Value {
    let nodes: Vec<Value> = edits
        .device_nodes
        .iter()
        .map(|node| {
            json!({"path": node.path, "hostPath": node.host_path, "major": node.major, "minor": node.minor})
        })
        .collect();
    let mounts: Vec<Value> = edits
        .mounts
        .iter()
        .map(|mount| {
            json!({"hostPath": mount.host_path, "containerPath": mount.container_path, "options": mount.options})
        })
        .collect();
    let hooks: Vec<Value> = edits
        .hooks
        .iter()
        .map(|hook| json!({"hookName": hook.stage, "path": hook.path, "args": hook.args}))
        .collect();
    json!({
        "env": edits.env,
        "deviceNodes": nodes,
        "mounts": mounts,
        "hooks": hooks,
        "additionalGids": edits.additional_gids,
    })
}

/// The plan for a person: the specification only where `holdfast gpu plan --json` is not asked for either.
pub(crate) fn text(plan: &Value) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let words = |value: &Value| -> Vec<String> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter()
            .map(|word| word.as_str().unwrap_or_default().to_owned())
            .collect()
    };
    if plan["gpu"] == false {
        line(format!(
            "nothing to do: {}",
            plan["why"].as_str().unwrap_or_default()
        ));
        return out;
    }
    line(format!(
        "mode      {}",
        plan["mode"].as_str().unwrap_or_default()
    ));
    line(format!("devices   {}", words(&plan["devices"]).join(", ")));
    line(format!(
        "asked by  {}",
        plan["requestedBy"].as_str().unwrap_or("nobody")
    ));
    for one in words(&plan["ignored"]) {
        line(format!("left out  {one}"));
    }
    if plan["command"].is_array() {
        line(format!("command   {}", words(&plan["command"]).join(" ")));
        line(format!(
            "rules     written by {}",
            if plan["deviceRules"] == "spec" {
                "holdfast"
            } else {
                "the command"
            }
        ));
    }
    for step in plan["edits"].as_array().into_iter().flatten() {
        line(format!(
            "edits of {}",
            step["of"].as_str().unwrap_or_default()
        ));
        let edits = &step["edits"];
        for entry in words(&edits["env"]) {
            line(format!("  env     {entry}"));
        }
        for node in edits["deviceNodes"].as_array().into_iter().flatten() {
            line(format!(
                "  device  {} {}:{}",
                node["path"].as_str().unwrap_or_default(),
                node["major"],
                node["minor"]
            ));
        }
        for mount in edits["mounts"].as_array().into_iter().flatten() {
            line(format!(
                "  mount   {} on {}",
                mount["hostPath"].as_str().unwrap_or_default(),
                mount["containerPath"].as_str().unwrap_or_default()
            ));
        }
        for hook in edits["hooks"].as_array().into_iter().flatten() {
            line(format!(
                "  hook    {} {}: {}",
                hook["hookName"].as_str().unwrap_or_default(),
                hook["path"].as_str().unwrap_or_default(),
                words(&hook["args"]).join(" ")
            ));
        }
    }
    line("config.json as it would be:".to_owned());
    // A value that came from JSON goes to JSON.
    line(serde_json::to_string_pretty(&plan["spec"]).unwrap_or_default());
    out
}
