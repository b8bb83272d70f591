//! A network in the test's own process, its worker in the laboratory's host namespace, so that a test
//! has all counters at hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use cnet_dataplane::{
    Control, Dataplane, DnsQueries, NetworkConfig, PortDevice, PortEnd, PortError, PortId,
    PortPlan, PortStatistics, Statistics,
};
use cnet_tap::{Namespaces, open_tap_in};
use cnet_wire::prefixes::{Subnet, ipv6_plan};
use tokio::runtime::Runtime;

use super::Lab;
use super::namespace::Namespace;
use super::station::{Station, mac_of};

/// A network without a process of its own.
pub struct Network {
    /// To wait for its answers.
    pub runtime: Runtime,
    /// The workers.
    pub dataplane: Dataplane,
    /// To steer it by.
    pub control: Control,
    config: NetworkConfig,
    /// What containers ask of its DNS.
    pub queries: Option<DnsQueries>,
}

/// A container on it.
pub struct Member {
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its place.
    pub port: PortId,
    /// Its end, and the reason.
    pub end: PortEnd,
    /// Its address.
    pub v4: IpAddr,
    /// Its address.
    pub v6: IpAddr,
}

impl Network {
    /// One whose worker is in the laboratory's host.
    pub fn start(lab: &Lab, mtu: u16) -> Network {
        let config = NetworkConfig::new(mtu, Some(Subnet::DEFAULT.plan()), Some(ipv6_plan()));
        let started = lab.host.enter(|| Dataplane::start(config.clone()));
        let (dataplane, queries) = started.expect("descriptors and a thread");
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        Network {
            runtime: runtime.expect("an event loop"),
            control: dataplane.control(),
            dataplane,
            config,
            queries: Some(queries),
        }
    }

    /// A new container, the address ending in `number`, with spoof protection.
    pub fn join(&self, number: u8) -> Member {
        self.join_with(number, true)
    }

    /// A new container, with spoof protection or as one that may have any addresses.
    pub fn join_with(&self, number: u8, spoof_protection: bool) -> Member {
        let v4 = Ipv4Addr::new(10, 0, 2, number);
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, number.into());
        let plan = PortPlan {
            ipv4: Some(v4),
            ipv6: Some(v6),
            spoof_protection,
            ..PortPlan::default()
        };
        let namespace = Namespace::create();
        let path = namespace.path();
        let inside = Namespaces::from_paths(Path::new(&path), None).expect("a namespace");
        let interface = self.config.interface(&plan);
        let tap = open_tap_in(&inside, "eth0", 1, Some(&interface)).expect("a TAP as root");
        let added = self.control.add_port(plan, PortDevice::Tap(tap));
        let (port, end) = self.runtime.block_on(added).expect("room for a container");
        Member {
            namespace,
            port,
            end,
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// The gateway, as its neighbours know it.
    pub fn gateway(&self) -> Station {
        let (v4, v6) = (self.config.ipv4, self.config.ipv6);
        Station {
            mac: self.config.gateway_mac.0,
            v4: v4.expect("IPv4").gateway.into(),
            v6: v6.expect("IPv6").gateway.into(),
        }
    }

    /// Takes a container out.
    ///
    /// # Errors
    /// Where it has left already.
    pub fn remove(&self, port: PortId) -> Result<(), PortError> {
        self.runtime.block_on(self.control.remove_port(port))
    }

    /// What it has counted.
    pub fn statistics(&self) -> Statistics {
        let statistics = self.runtime.block_on(self.control.statistics());
        statistics.expect("the network runs")
    }

    /// What one port has counted.
    pub fn of_port(&self, port: PortId) -> PortStatistics {
        let ports = self.statistics().ports;
        let found = ports.into_iter().find(|p| p.port == port);
        found.expect("a port that is there")
    }
}

impl Member {
    /// As its neighbours know it.
    pub fn station(&self) -> Station {
        Station {
            mac: mac_of(&self.namespace.ip("-o link show eth0")),
            v4: self.v4,
            v6: self.v6,
        }
    }
}
