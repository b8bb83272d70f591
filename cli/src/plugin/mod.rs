//! What the network plug-ins of engines have in common: `cnet-cni` and `cnet-netavark`.
//!
//! # Theory of operation
//!
//! A plug-in is started by an engine for one step of one container, and ends. Networks, addresses and
//! members are kept by cnet itself: a plug-in has no state of its own, so a step that was killed leaves
//! nothing behind that the next one does not find. A network that does not exist yet is made on first use.
//!
//! The network's process is started from where the plug-in runs: in a rootless engine's namespaces, those
//! are its host.

use std::io::{self, Read};
use std::net::IpAddr;
use std::process::ExitCode;

use ipnet::IpNet;

use crate::log;
use cnet::definition::StoreError;
use cnet::network::{Network, NetworkError};
use cnet::publish::PublishSyntax;
use cnet::{Protocol, PublishSpec, Request};

/// Bytes of an engine's request that are read.
const MAX_REQUEST: u64 = 1 << 20;

/// The very program that runs, by which a plug-in starts a network's process.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Becomes a network's process, if the command line says so: a plug-in starts that by its own program,
/// whatever the file is called, so that it needs no other one.
pub(crate) fn network_process() -> Option<ExitCode> {
    let is_asked = std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == cnet::start::SUBCOMMAND);
    is_asked.then(crate::cnet::main)
}

/// Has what is traced go to standard error: standard output is for the engine.
pub(crate) fn start_log() {
    log::start(tracing::Level::WARN);
}

/// The engine's request.
///
/// # Errors
///
/// As read(2); one that is too long is `InvalidData`.
pub(crate) fn read_request() -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_REQUEST + 1)
        .read_to_end(&mut request)?;
    match request.len() as u64 > MAX_REQUEST {
        true => Err(io::ErrorKind::InvalidData.into()),
        false => Ok(request),
    }
}

/// Why there is no network as asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoNetwork {
    /// There is one, and it is another one.
    #[error(
        "the network `{name}` has no subnet {subnet}; choose another name, or leave the subnets out to join it as it is"
    )]
    Differs { name: String, subnet: IpNet },
    /// It cannot be had or made.
    #[error(transparent)]
    Failed(#[from] NetworkError),
}

/// The network that `request` names: the one there is, if it has the subnets asked for, or a new one.
pub(crate) fn ensure(request: Request) -> Result<Network, NoNetwork> {
    let name = request.name.clone();
    let asked = request.subnets.clone();
    let network = match find(&name)? {
        Some(network) => network,
        None => match Network::create(request) {
            Ok(network) => own(network),
            // Another plug-in was quicker.
            Err(NetworkError::Store(StoreError::Exists(_))) => own(Network::open(&name)?),
            Err(error) => return Err(error.into()),
        },
    };
    let there: Vec<IpNet> = network.definition().subnets().collect();
    let is_there = |subnet: &IpNet| there.contains(&subnet.trunc());
    match asked.into_iter().find(|subnet| !is_there(subnet)) {
        Some(subnet) => Err(NoNetwork::Differs { name, subnet }),
        None => Ok(network),
    }
}

/// The network of that name, if there is one.
pub(crate) fn find(name: &str) -> Result<Option<Network>, NetworkError> {
    match Network::open(name) {
        Ok(network) => Ok(Some(own(network))),
        Err(NetworkError::Store(StoreError::NotFound(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The network, whose process is started by this very program.
fn own(network: Network) -> Network {
    network.with_program(OWN_PROGRAM)
}

/// Ends the network's process if no container is on it and it runs in another network namespace than
/// this: the next container's comes out here. A rootless engine makes the namespaces of its networks anew
/// after its last container, faster than a process ends that has none.
pub(crate) async fn come_here(network: &Network) -> Result<(), NetworkError> {
    let Some(report) = network.inspect().await? else {
        return Ok(());
    };
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    // One that cannot be seen is one that is elsewhere on purpose.
    let there = namespace(&report.pid.to_string());
    if report.containers.is_empty() && there.is_some() && there != namespace("self") {
        // A container that has joined meanwhile keeps it.
        match network.stop(false).await {
            Err(error) if !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Takes a container out, by its id. One that is not there, or a network that does not run, is no error.
pub(crate) async fn detach(network: &Network, id: &str) -> Result<(), NetworkError> {
    match network.inspect().await? {
        Some(report) if report.containers.iter().any(|c| c.id == id) => {}
        _ => return Ok(()),
    }
    match network.detach(id).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// A port of the host that is to lead to a container, as engines have it.
#[derive(Clone, Debug)]
pub(crate) struct PortMapping<'a> {
    pub(crate) host_ip: &'a str,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
    /// How many ports from there on.
    pub(crate) range: u16,
    pub(crate) protocol: &'a str,
}

/// Why a port cannot be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error("the protocol `{0}` is not supported: it is tcp or udp")]
    Protocol(String),
    #[error("`{0}` is not an address of the host")]
    Address(String),
    #[error(transparent)]
    Syntax(#[from] PublishSyntax),
}

impl PortMapping<'_> {
    /// The same as a published port; `None` if the mapping names no port of the host, which kubelet
    /// gives for ports that are only declared.
    pub(crate) fn publish(&self) -> Result<Option<PublishSpec>, PortError> {
        if self.host_port == 0 {
            return Ok(None);
        }
        let protocol = match self.protocol {
            "" => Protocol::Tcp,
            name => name
                .parse()
                .map_err(|_| PortError::Protocol(name.to_owned()))?,
        };
        let ports = |first: u16| {
            let last = first.saturating_add(self.range.max(1) - 1);
            first..=last
        };
        let spec = PublishSpec::new(protocol, ports(self.container_port))?;
        let spec = spec.at_ports(ports(self.host_port))?;
        if self.host_ip.is_empty() {
            return Ok(Some(spec));
        }
        let address: Result<IpAddr, _> = self.host_ip.parse();
        let address = address.map_err(|_| PortError::Address(self.host_ip.to_owned()))?;
        Ok(Some(spec.on_address(address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_published_ports() {
        let mapping = PortMapping {
            host_ip: "",
            host_port: 8080,
            container_port: 80,
            range: 1,
            protocol: "",
        };
        let published = |mapping: PortMapping<'_>| {
            let spec = mapping.publish()?;
            Ok::<_, PortError>(spec.map(|spec| spec.to_string()))
        };
        assert_eq!(published(mapping.clone()), Ok(Some("8080:80/tcp".into())));
        let udp = PortMapping {
            host_ip: "::1",
            range: 3,
            protocol: "udp",
            ..mapping.clone()
        };
        let three = "[::1]:8080-8082:80-82/udp";
        assert_eq!(published(udp), Ok(Some(three.into())));
        let declared = PortMapping {
            host_port: 0,
            ..mapping.clone()
        };
        assert_eq!(published(declared), Ok(None));
        for wrong in [
            PortMapping {
                protocol: "sctp",
                ..mapping.clone()
            },
            PortMapping {
                host_ip: "here",
                ..mapping.clone()
            },
            PortMapping {
                container_port: 0,
                ..mapping
            },
        ] {
            assert!(wrong.publish().is_err(), "{wrong:?}");
        }
    }
}
