//! From the description of a network to the configuration of its router.

use cnet_nat::datagram::DatagramConfig;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway, Ipv6Gateway, Lease};
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_vswitch::{MacAddr, PortId};

use super::NetworkConfig;

/// The router of `config`, with the one container at `port`, behind a TAP whose container side has
/// the address `mac` and takes UDP super-frames if `uso`.
pub(super) fn router_config(
    config: &NetworkConfig,
    port: PortId,
    mac: MacAddr,
    uso: bool,
) -> RouterConfig {
    let (v4, v6) = (config.ipv4, config.ipv6);
    let gateway_v4 = v4.map(|plan| plan.gateway);
    let gateway_v6 = v6.map(|plan| plan.gateway);
    let lease = Lease {
        port: Some(port),
        mac: Some(mac),
        v4: v4.map(|plan| plan.container),
        v6: v6.and_then(|plan| plan.container),
        hostname: None,
    };
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
            leases: vec![lease],
            dhcp_range: v4.map(|plan| plan.dhcp_range),
        },
        policy: config.policy.clone(),
        tcp: TcpConfig {
            mtu: usize::from(config.mtu),
            max_flows: config.limits.tcp_flows,
            gateway_v4: gateway_v4.map(Into::into),
            gateway_v6: gateway_v6.map(Into::into),
            ..TcpConfig::default()
        },
        datagram: DatagramConfig {
            mtu: usize::from(config.mtu),
            limits: config.limits,
            host_alias_v4: gateway_v4,
            host_alias_v6: gateway_v6,
            gateway_v4,
            gateway_v6,
            uso,
            ..DatagramConfig::default()
        },
    }
}
