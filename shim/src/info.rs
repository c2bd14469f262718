//! The `-info` action: what the runtime behind this shim can do.

use std::io::{self, Read as _, Write as _};
use std::process::{Command, Stdio};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::options::Options;
use crate::runtime::find_binary;

/// Type of the features, which are JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints a `RuntimeInfo`.
///
/// # Errors
/// stdin's and stdout's.
pub(crate) fn print() -> io::Result<()> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(10 << 20).read_to_end(&mut bytes)?;
    let any = Any::parse_from_bytes(&bytes).map_err(io::Error::other)?;
    let options = Options::from_any(&any).unwrap_or_default();
    let features = Command::new(find_binary(&options.binary_name))
        .arg("features")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success() && !output.stdout.is_empty());
    let info = RuntimeInfo {
        name: "io.containerd.holdfast.v2".to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        }),
        options: MessageField::from_option((!bytes.is_empty()).then_some(any)),
        features: MessageField::from_option(features.map(|output| Any {
            type_url: FEATURES.to_owned(),
            value: output.stdout,
            ..Any::default()
        })),
        ..RuntimeInfo::default()
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&info.write_to_bytes().map_err(io::Error::other)?)?;
    stdout.flush()
}
