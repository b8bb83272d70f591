//! What a network is to be, and what a container on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use cnet_nat::flow::Limits;
use cnet_nat::gateway::Quirks;
use cnet_nat::policy::{PeerFilter, Policy};
use cnet_tap::InterfaceConfig;
use cnet_vswitch::PortRole;
use cnet_wire::MacAddr;
use cnet_wire::access::Access;
use cnet_wire::prefixes::{Ipv4Plan, Ipv6Plan, gateway_mac};

use crate::LocalPorts;

/// Polling on for this long after the last event: longer than a round trip through the host's kernel
/// and back, shorter than what a person notices.
pub const DEFAULT_BUSY_POLL: Duration = Duration::from_micros(50);

/// The longest that command lines take for it, in microseconds: a processor that is never given
/// back for a second is no longer a matter of latency.
pub const MAX_BUSY_POLL_MICROS: u32 = 1_000_000;

/// Packets that a container's queues towards its workers hold together (`txqueuelen` is that of one),
/// unless there are so many that each has [`LEAST_TX_QUEUE_LEN`].
/// While a worker is off its processor, datagrams wait there: this many last for 10 ms of 400,000 a
/// second, the kernel's 1000 for 2.5 ms, which one turn of another thread takes. TCP is bounded by its
/// windows. No quota covers what waits, up to 64 KiB a packet: 256 MiB for a container that floods
/// while its worker stands still.
const TX_QUEUE_LEN: u32 = 4096;

/// What the kernel gives a queue by itself, and each of many workers' queues has at least.
const LEAST_TX_QUEUE_LEN: u32 = 1000;

/// The most workers a network can have.
pub const MAX_WORKERS: u16 = 64;

/// What a network is to be.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// IP MTU of the link in bytes.
    pub mtu: u16,
    /// The gateway's address on the link.
    pub gateway_mac: MacAddr,
    /// The gateways of [`NetworkConfig::ipv4`] and [`NetworkConfig::ipv6`] are another machine's, on the LAN
    /// behind an uplink. Nothing answers for them here, and there is no way out but the LAN's.
    pub lan: bool,
    /// IPv4, if the network has it.
    pub ipv4: Option<Ipv4Plan>,
    /// IPv6, if the network has it.
    pub ipv6: Option<Ipv6Plan>,
    /// Where containers may send to.
    pub policy: Policy,
    /// Source address of outgoing IPv4, where it is not to be the kernel's choice.
    pub outbound_v4: Option<Ipv4Addr>,
    /// Source address of outgoing IPv6.
    pub outbound_v6: Option<Ipv6Addr>,
    /// What the gateway does otherwise for clients that were written against another one.
    pub quirks: Quirks,
    /// Domains that containers search.
    pub search: Vec<String>,
    /// What one container may hold; with several workers each has its part of the TCP flows. All
    /// together hold no more than the process has descriptors and memory for,
    /// and no container takes what the others need ([`cnet_nat::flow::FairShare`]).
    pub limits: Limits,
    /// How long the worker polls on after the last event before it sleeps; zero for never. See
    /// [`DEFAULT_BUSY_POLL`].
    pub busy_poll: Duration,
    /// Bytes of memory that the network may use; `None` for what the control groups of the process
    /// and the host have left when it starts ([`crate::available_memory`]). The number of flows, and
    /// of bytes that wait for sockets, follows from it.
    pub memory: Option<u64>,
    /// The host's ports of which a UDP mapping takes that of its container's number, where it is free.
    pub local_ports: LocalPorts,
    /// The same for TCP connections, of all numbers: each costs the host one more system call, and a
    /// search of its ports for one that is in use.
    pub keep_tcp_ports: bool,
    /// Threads that move packets, 1 to [`MAX_WORKERS`]. The TAP of every port needs a queue for each.
    pub workers: u16,
}

impl NetworkConfig {
    /// A network with these addresses and the policy, limits and polling that apply unless others
    /// are asked for. Without a plan for a family there is none of it at all.
    pub fn new(mtu: u16, ipv4: Option<Ipv4Plan>, ipv6: Option<Ipv6Plan>) -> NetworkConfig {
        let low_bits = |v6: Ipv6Plan| Ipv4Addr::from(u128::from(v6.gateway) as u32);
        let gateway = ipv4.map(|v4| v4.gateway).or(ipv6.map(low_bits));
        NetworkConfig {
            mtu,
            gateway_mac: gateway_mac(gateway.unwrap_or(Ipv4Addr::UNSPECIFIED)),
            lan: false,
            ipv4,
            ipv6,
            policy: Policy {
                ipv6: ipv6.is_some(),
                host_access_at: ipv4
                    .map(|plan| plan.gateway.into())
                    .into_iter()
                    .chain(ipv6.map(|plan| plan.gateway.into()))
                    .collect(),
                ..Policy::default()
            },
            outbound_v4: None,
            outbound_v6: None,
            quirks: Quirks::default(),
            search: Vec::new(),
            limits: Limits::default(),
            busy_poll: DEFAULT_BUSY_POLL,
            memory: None,
            local_ports: LocalPorts::default(),
            keep_tcp_ports: false,
            workers: 1,
        }
    }

    /// Lets containers reach the host's loopback at the gateway's addresses.
    pub fn allow_host_loopback(&mut self) {
        let v4 = self.ipv4.map(|plan| IpAddr::V4(plan.gateway));
        let v6 = self.ipv6.map(|plan| IpAddr::V6(plan.gateway));
        self.policy.host_loopback.extend(v4.into_iter().chain(v6));
    }

    /// Of each worker's queue.
    fn tx_queue_len(&self) -> u32 {
        (TX_QUEUE_LEN / u32::from(self.workers.max(1))).max(LEAST_TX_QUEUE_LEN)
    }

    /// The interface of a container in this network, with the planned hardware address or a random
    /// one.
    pub fn interface(&self, port: &PortPlan) -> InterfaceConfig {
        let mut interface = InterfaceConfig {
            mtu: self.mtu.into(),
            mac: port.mac.map(|mac| mac.0),
            tx_queue_len: Some(self.tx_queue_len()),
            ..InterfaceConfig::default()
        };
        if let (Some(plan), Some(address)) = (self.ipv4, port.ipv4) {
            let address = (address.into(), plan.prefix_len);
            interface.addresses.push(address);
            interface.gateways.push(plan.gateway.into());
        }
        if let (Some(plan), Some(address)) = (self.ipv6, port.ipv6) {
            let address = (address.into(), plan.prefix_len);
            interface.addresses.push(address);
            interface.gateways.push(plan.gateway.into());
        }
        interface
    }
}

/// What a container on a network is to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortPlan {
    /// Its hardware address; `None` for the one that its device has, or for a virtual machine
    /// whichever it sends from.
    pub mac: Option<MacAddr>,
    /// Its IPv4 address, also by DHCP.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, also by DHCPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Its name, told by DHCP.
    pub hostname: Option<String>,
    /// Drop what it sends from other addresses than these, and than IPv6 addresses it made up in
    /// the network's prefix.
    pub spoof_protection: bool,
    /// It reaches the gateway and no other container.
    pub isolated: bool,
    /// The far ends outside of the network that it may talk with, besides the network's policy.
    pub filter: PeerFilter,
    /// What is behind the port.
    pub role: PortRole,
    /// What policies allow to it; `None` where none selects it.
    pub access: Option<Arc<Access>>,
    /// What is behind an uplink may offer DHCP and advertise routers.
    pub offers_services: bool,
}

impl PortPlan {
    /// A port that the host's LAN is behind, with its own router.
    pub fn lan() -> PortPlan {
        PortPlan {
            offers_services: true,
            ..PortPlan::uplink()
        }
    }

    /// A port that other switches of the network are behind.
    pub fn uplink() -> PortPlan {
        PortPlan {
            role: PortRole::Uplink,
            ..PortPlan::default()
        }
    }

    /// Its fixed addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.ipv4.map(IpAddr::V4);
        v4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnet_wire::prefixes::{Subnet, ipv6_plan};

    #[test]
    fn workers_share_the_length_of_the_queue() {
        let mut config = NetworkConfig::new(1500, None, None);
        for (workers, length) in [(1, 4096), (2, 2048), (64, 1000)] {
            config.workers = workers;
            let interface = config.interface(&PortPlan::default());
            assert_eq!(interface.tx_queue_len, Some(length));
        }
    }

    #[test]
    fn a_container_has_what_both_it_and_the_network_have() {
        let port = PortPlan {
            ipv4: Some([10, 0, 2, 100].into()),
            ipv6: Some("fd00::100".parse().unwrap()),
            ..PortPlan::default()
        };
        let addresses = |config: &NetworkConfig| {
            let interface = config.interface(&port);
            assert_eq!(interface.addresses.len(), interface.gateways.len());
            interface.addresses
        };
        let both = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), Some(ipv6_plan()));
        let [v4, v6]: [IpAddr; 2] = [port.ipv4.unwrap().into(), port.ipv6.unwrap().into()];
        assert_eq!(addresses(&both), [(v4, 24), (v6, 64)]);
        let v6_only = NetworkConfig::new(1500, None, Some(ipv6_plan()));
        assert_eq!(addresses(&v6_only), [(v6, 64)]);
        assert!(!v6_only.gateway_mac.is_zero() && !v6_only.gateway_mac.is_multicast());
        let mut v4_only = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), None);
        assert!(!v4_only.policy.ipv6 && v4_only.policy.host_loopback.is_empty());
        v4_only.allow_host_loopback();
        let gateway = Subnet::DEFAULT.plan().gateway;
        assert_eq!(v4_only.policy.host_loopback, [IpAddr::V4(gateway)]);
    }
}
