//! The answer, as JSON.

use std::ffi::OsStr;
use std::fmt::Write as _;

use crate::library::{Device, Failure, Nvml};

/// Asks the library at this path, or of this name.
pub(crate) fn of(library: &OsStr) -> String {
    match inventory(library) {
        Ok(text) => text,
        Err(failure) => format!("{{\"failure\":{}}}\n", failed(&failure)),
    }
}

fn inventory(library: &OsStr) -> Result<String, Failure> {
    let nvml = Nvml::load(library)?;
    nvml.init()?;
    let mut out = String::from("{");
    let version = match nvml.driver_version() {
        Ok(version) => quoted(&version),
        Err(_) => "null".to_owned(),
    };
    let _ = write!(out, "\"driver\":{version},\"gpus\":[");
    for index in 0..nvml.count()? {
        if index > 0 {
            out.push(',');
        }
        // One GPU that fell off the bus must not hide the others.
        match gpu(&nvml, index) {
            Ok(text) => out.push_str(&text),
            Err(failure) => {
                let _ = write!(
                    out,
                    "{{\"index\":{index},\"failure\":{}}}",
                    failed(&failure)
                );
            }
        }
    }
    out.push_str("]}\n");
    nvml.shutdown();
    Ok(out)
}

fn gpu(nvml: &Nvml, index: u32) -> Result<String, Failure> {
    let device = nvml.device(index)?;
    let mig = nvml.mig_enabled(device)?;
    let mut out = format!(
        "{{\"index\":{index},\"uuid\":{},\"name\":{},\"minor\":{},\"bus\":{},\"mig\":{mig},\"instances\":[",
        quoted(&nvml.uuid(device)?),
        quoted(&nvml.name(device)?),
        nvml.minor(device)?,
        quoted(&nvml.bus_id(device)?),
    );
    if mig {
        let mut first = true;
        for place in 0..nvml.max_instances(device)? {
            let Some(instance) = nvml.instance(device, place)? else {
                continue;
            };
            if !first {
                out.push(',');
            }
            first = false;
            out.push_str(&instance_text(nvml, place, instance)?);
        }
    }
    out.push_str("]}");
    Ok(out)
}

fn instance_text(nvml: &Nvml, place: u32, instance: Device) -> Result<String, Failure> {
    Ok(format!(
        "{{\"index\":{place},\"uuid\":{},\"gi\":{},\"ci\":{}}}",
        quoted(&nvml.uuid(instance)?),
        nvml.gpu_instance(instance)?,
        nvml.compute_instance(instance)?,
    ))
}

fn failed(failure: &Failure) -> String {
    format!(
        "{{\"step\":{},\"code\":{},\"text\":{}}}",
        quoted(failure.step),
        failure.code,
        quoted(&failure.text)
    )
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted() {
        assert_eq!(quoted("a\"b\\c\n\u{e9}"), "\"a\\\"b\\\\c\\u000a\u{e9}\"");
    }

    #[test]
    fn a_library_that_is_not_there_is_an_answer() {
        let answer = of(OsStr::new("/nonexistent/libnvidia-ml.so.1"));
        assert!(
            answer.starts_with("{\"failure\":{\"step\":\"load\",\"code\":12,"),
            "{answer}"
        );
        assert!(
            answer.contains("/nonexistent/libnvidia-ml.so.1"),
            "{answer}"
        );
    }
}
