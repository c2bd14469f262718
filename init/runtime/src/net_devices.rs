//! `linux.netDevices`: network devices of the host that the container takes over.
//!
//! The parent moves each into the container's network namespace, renaming it on the way, and
//! follows it there to give it back what the kernel takes from a device that moves: its
//! addresses, and being up. When the container ends the kernel returns physical devices and
//! ends virtual ones (runtime-spec, `config-linux.md`, network devices).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use libcontainer::network::NetworkError;
use libcontainer::network::address::AddressClient;
use libcontainer::network::cidr::CidrAddress;
use libcontainer::network::link::LinkClient;
use libcontainer::network::network_device::{
    dev_change_net_namespace, resolve_device_name, setup_addresses_in_network_namespace,
};
use libcontainer::network::wrapper::create_network_client;
use oci_spec::runtime::LinuxNamespaceType;

use crate::bundle::{Bundle, namespace};
use crate::error::{Doing, Error, Result};
use crate::sys::fd;

/// Moves the devices to the container whose init process is `pid`.
///
/// # Errors
/// The device, and what the kernel refused. Devices that were moved already stay there: the
/// container's end is theirs.
pub(crate) fn hand_over(bundle: &Bundle, pid: i32) -> Result<()> {
    let linux = bundle.linux()?;
    let devices: BTreeMap<_, _> = linux.net_devices().iter().flatten().collect();
    if devices.is_empty() {
        return Ok(());
    }
    // A namespace that is joined may not have been joined yet.
    let path = namespace(bundle.namespaces(), LinuxNamespaceType::Network)
        .and_then(|namespace| namespace.path().clone())
        .unwrap_or_else(|| PathBuf::from(format!("/proc/{pid}/ns/net")));
    let open = |path: &PathBuf| {
        File::open(path).doing(|| format!("open the network namespace {}", path.display()))
    };
    let there = open(&path)?;
    let home = open(&PathBuf::from("/proc/self/ns/net"))?;
    let mut moved = Vec::with_capacity(devices.len());
    for (name, device) in devices {
        let new = resolve_device_name(device, name);
        let addresses =
            dev_change_net_namespace(name, there.as_raw_fd(), device).map_err(|error| {
                failed(
                    format!(
                        "move the network device {name} into the container as {new}: is there a \
                         {name} in the runtime's network namespace"
                    ),
                    &error,
                )
            })?;
        moved.push((new, addresses));
    }
    fd::setns(there.as_fd(), libc::CLONE_NEWNET)
        .doing(|| format!("join the network namespace {}", path.display()))?;
    let outcome = moved
        .iter()
        .try_for_each(|(name, addresses)| set_up(name, addresses));
    fd::setns(home.as_fd(), libc::CLONE_NEWNET)
        .doing(|| "return to our own network namespace".into())?;
    outcome
}

/// Inside the container's namespace: addresses as before, and up.
fn set_up(name: &str, addresses: &[CidrAddress]) -> Result<()> {
    let work = || -> std::result::Result<(), NetworkError> {
        let mut links = LinkClient::new(create_network_client())?;
        let index = links.get_by_name(name)?.header.index;
        let mut clients = AddressClient::new(create_network_client())?;
        setup_addresses_in_network_namespace(addresses, index, name, &mut clients)?;
        links.set_up(index)
    };
    work().map_err(|error| {
        failed(
            format!("set the network device {name} up inside the container"),
            &error,
        )
    })
}

fn failed(doing: String, error: &NetworkError) -> Error {
    Error::Step {
        doing,
        detail: crate::error::chain(error),
        source: None,
    }
}
