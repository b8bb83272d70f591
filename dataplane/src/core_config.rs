//! From the descriptions of a network and of a container to the configuration of router and switch.

use cnet_nat::datagram::DatagramConfig;
use cnet_nat::flow::FlowBudget;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway, Ipv6Gateway};
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_vswitch::port::{Lease, PortConfig, PortRole};
use cnet_wire::MacAddr;

use super::{NetworkConfig, PortPlan, memory_budget};

/// MAC addresses, and IP addresses, that are learned behind an uplink.
const UPLINK_STATIONS: usize = 1 << 16;

/// The port of `plan`, whose device has the hardware address `device_mac`, if that is known.
pub(super) fn port_config(plan: PortPlan, device_mac: Option<MacAddr>) -> PortConfig {
    let limits = match plan.role {
        PortRole::Station | PortRole::Router => PortConfig::default(),
        PortRole::Uplink => PortConfig {
            max_macs: UPLINK_STATIONS,
            max_addresses: UPLINK_STATIONS,
            ..PortConfig::default()
        },
    };
    PortConfig {
        role: plan.role,
        lease: Lease {
            mac: plan.mac.or(device_mac),
            ipv4: plan.ipv4.into_iter().collect(),
            ipv6: plan.ipv6.into_iter().collect(),
            hostname: plan.hostname,
        },
        spoof_protection: plan.spoof_protection,
        isolated: plan.isolated,
        offers_services: plan.offers_services,
        ..limits
    }
}

/// The routers of `config`, whose containers together may hold `budget`. All are alike: each has an
/// equal part of the TCP flows of each container, and of the memory for what their sockets do not
/// take. UDP and ICMP are the first one's, which has all of them.
pub(super) fn router_config(config: &NetworkConfig, budget: &FlowBudget) -> RouterConfig {
    let workers = usize::from(config.workers.max(1));
    let alone = TcpConfig::default();
    let (v4, v6) = match config.lan {
        true => (None, None),
        false => (config.ipv4, config.ipv6),
    };
    let gateway_v4 = v4.map(|plan| plan.gateway);
    let gateway_v6 = v6.map(|plan| plan.gateway);
    RouterConfig {
        mtu: usize::from(config.mtu),
        gateway: GatewayConfig {
            mac: config.gateway_mac,
            mtu: config.mtu,
            v4: v4.map(|plan| Ipv4Gateway {
                address: plan.gateway,
                prefix_len: plan.prefix_len,
                dns: plan.dns,
            }),
            v6: v6.map(|plan| Ipv6Gateway {
                address: plan.gateway,
                prefix_len: plan.prefix_len,
                dns: plan.dns,
                advertise_default_route: true,
            }),
            search: config.search.clone(),
            dhcp_range: v4.map(|plan| plan.dhcp_range),
            quirks: config.quirks,
        },
        policy: config.policy.clone(),
        tcp: TcpConfig {
            mtu: usize::from(config.mtu),
            max_flows: budget.total(),
            budget: budget.clone(),
            max_flows_per_port: config.limits.tcp_flows.div_ceil(workers),
            unsent_limit: memory_budget::unsent_limit(config.memory, alone.unsent_limit) / workers,
            keep_ports: config.keep_tcp_ports,
            gateway_v4: gateway_v4.map(Into::into),
            gateway_v6: gateway_v6.map(Into::into),
            ..alone
        },
        datagram: DatagramConfig {
            mtu: usize::from(config.mtu),
            limits: config.limits,
            budget: budget.clone(),
            host_alias_v4: gateway_v4,
            host_alias_v6: gateway_v6,
            host_own: config.policy.host_own.clone(),
            gateway_v4,
            gateway_v6,
            uso: true,
            ..DatagramConfig::default()
        },
    }
}
