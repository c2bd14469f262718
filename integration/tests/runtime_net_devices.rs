//! `linux.netDevices`: a device of the host with its addresses, in the container.

use std::os::unix::net::UnixListener;
use std::process::Command;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::scratch::{Scratch, text};
use holdfast_integration::{on_runtimes, place, skip};
use serde_json::{Value, json};

// runc 1.1.5 and crun 1.8.1 do not know network devices.
on_runtimes! {
    a_device_moves_with_its_addresses: holdfast;
    a_device_is_renamed_on_its_way: holdfast;
    a_device_for_a_user_namespace: holdfast;
    a_device_for_a_network_namespace_that_is_joined: holdfast;
    a_device_beside_hooks_a_listener_and_a_user_namespace: holdfast;
    devices_that_cannot_be_had_are_refused: holdfast;
}

/// A pair of virtual Ethernet devices, gone with the guard.
struct Pair {
    outside: String,
    inside: String,
}

fn ip(args: &[&str]) -> Result<String, String> {
    let ip = place::program("ip").ok_or("ip is not installed (iproute2)")?;
    let ran = Command::new(ip).args(args).output().unwrap();
    if ran.status.success() {
        Ok(String::from_utf8(ran.stdout).unwrap())
    } else {
        Err(String::from_utf8(ran.stderr).unwrap())
    }
}

impl Pair {
    fn new() -> Result<Self, String> {
        // Names have 15 characters at most.
        let number = place::unique("").replace('-', "");
        let pair = Self {
            outside: format!("ho{number}"),
            inside: format!("hi{number}"),
        };
        let (outside, inside) = (&pair.outside, &pair.inside);
        ip(&[
            "link", "add", outside, "type", "veth", "peer", "name", inside,
        ])?;
        ip(&["addr", "add", "198.51.100.7/24", "dev", inside])?;
        ip(&["addr", "add", "2001:db8::7/64", "nodad", "dev", inside])?;
        Ok(pair)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The other end goes with it; gone already when the container has ended.
        let _ = ip(&["link", "del", &self.outside]);
    }
}

fn with_device(bundle: Bundle, name: &str, device: Value) -> Bundle {
    let name = name.to_owned();
    bundle.with(move |spec| spec["linux"]["netDevices"] = json!({ name: device }))
}

/// What the container has to say of its device.
fn look(scratch: &Scratch, bundle: Bundle, name: &str) {
    let script =
        format!("ip addr show {name}; cat /sys/class/net/{name}/operstate; ls /sys/class/net");
    let ran = scratch.run(&bundle.script(&script));
    for words in ["198.51.100.7/24", "2001:db8::7/64", "UP"] {
        assert!(ran.ok().contains(words), "{words}: {ran}");
    }
}

fn on_a_pair(test: fn(&Scratch, &Pair), scratch: &Scratch) {
    match Pair::new() {
        Ok(pair) => {
            test(scratch, &pair);
            // It went with the container's network namespace, whoever that belonged to.
            let left = ip(&["link", "show", &pair.inside]);
            assert!(left.is_err(), "{left:?}");
        }
        Err(why) => skip("netDevices", &why),
    }
}

fn a_device_moves_with_its_addresses(scratch: &Scratch) {
    on_a_pair(
        |scratch, pair| {
            let bundle = with_device(scratch.bundle("box"), &pair.inside, json!({}));
            look(scratch, bundle, &pair.inside);
        },
        scratch,
    );
}

fn a_device_is_renamed_on_its_way(scratch: &Scratch) {
    on_a_pair(
        |scratch, pair| {
            let device = json!({"name": "data0"});
            look(
                scratch,
                with_device(scratch.bundle("box"), &pair.inside, device),
                "data0",
            );
        },
        scratch,
    );
}

fn a_device_for_a_user_namespace(scratch: &Scratch) {
    on_a_pair(
        |scratch, pair| {
            let bundle = scratch.bundle("box").user_namespace(100_000);
            let device = json!({"name": "data0"});
            look(scratch, with_device(bundle, &pair.inside, device), "data0");
        },
        scratch,
    );
}

fn a_device_for_a_network_namespace_that_is_joined(scratch: &Scratch) {
    on_a_pair(
        |scratch, pair| {
            let pod = scratch.bundle("pod").args(&["sleep", "600"]);
            let pid = scratch.start(&pod);
            let bundle = scratch
                .bundle("box")
                .namespace("network", Some(&format!("/proc/{pid}/ns/net")));
            look(
                scratch,
                with_device(bundle, &pair.inside, json!({})),
                &pair.inside,
            );
            // The namespace is the pod's, and so is the device now.
            let seen = scratch.exec(&pod, &["ip", "addr", "show", &pair.inside]);
            assert!(seen.ok().contains("198.51.100.7/24"), "{seen}");
            scratch.end(&pod);
        },
        scratch,
    );
}

/// Everything for which init and the runtime have to wait for each other (see runtime_upstream.rs).
fn a_device_beside_hooks_a_listener_and_a_user_namespace(scratch: &Scratch) {
    on_a_pair(
        |scratch, pair| {
            let socket = scratch.path("agent");
            // Connections wait in its backlog.
            let _agent = UnixListener::bind(&socket).unwrap();
            let hook = json!([{"path": "/bin/true"}]);
            let bundle = scratch.bundle("box").user_namespace(100_000).with(|spec| {
                spec["hooks"] =
                    json!({"prestart": hook, "createRuntime": hook, "createContainer": hook, "startContainer": hook});
                spec["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": text(&socket),
                    "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_NOTIFY"}],
                });
            });
            let device = json!({"name": "data0"});
            look(scratch, with_device(bundle, &pair.inside, device), "data0");
        },
        scratch,
    );
}

fn devices_that_cannot_be_had_are_refused(scratch: &Scratch) {
    let absent = with_device(scratch.bundle("absent"), "hf-absent0", json!({}));
    let shared = scratch.bundle("shared").without_namespace("network");
    let shared = with_device(shared, "hf-absent0", json!({}));
    for (bundle, words) in [
        (absent, "move the network device hf-absent0"),
        (shared, "linux.netDevices: need a network namespace"),
    ] {
        let ran = scratch.run(&bundle);
        assert_ne!(ran.code(), 0, "{ran}");
        assert!(ran.stderr.contains(words), "{ran}");
    }
}
