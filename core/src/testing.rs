//! A network of one container, and frames for it; its host is the kit's.

use cnet_nat::datagram::DatagramConfig;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway, Quirks};
use cnet_nat::policy::Policy;
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_testkit::independent::{IP, frame_from, udp_datagram};
use cnet_wire::VnetHeader;
use cnet_wire::time::Instant;

pub(crate) use cnet_testkit::host::scripted::Scripted as Host;
pub(crate) use cnet_testkit::independent::LINK;

pub(crate) const NOW: Instant = Instant::from_millis(1000);
pub(crate) const CONTAINER: [u8; 4] = [10, 0, 2, 100];
pub(crate) const GATEWAY: [u8; 4] = [10, 0, 2, 2];
pub(crate) const REMOTE: [u8; 4] = [192, 0, 2, 1];
pub(crate) fn config() -> RouterConfig {
    RouterConfig {
        mtu: 1500,
        gateway: GatewayConfig {
            mac: LINK.gateway_mac,
            mtu: 1500,
            v4: Some(Ipv4Gateway {
                address: GATEWAY.into(),
                prefix_len: 24,
                dns: None,
            }),
            v6: None,
            search: Vec::new(),
            dhcp_range: None,
            quirks: Quirks::default(),
        },
        policy: Policy::default(),
        tcp: TcpConfig::default(),
        datagram: DatagramConfig::default(),
    }
}

/// An IPv4 packet of the container to the gateway's MAC address, virtio-net header first.
pub(crate) fn ip(protocol: u8, to: [u8; 4], l4: &[u8]) -> Vec<u8> {
    let ends = (CONTAINER.into(), to.into());
    frame_from(VnetHeader::default(), ends, IP, protocol, l4)
}

/// A UDP datagram of the container.
pub(crate) fn udp_from(from: u16, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let ends = ((CONTAINER, from).into(), (to, 9).into());
    ip(17, to, &udp_datagram(ends.0, ends.1, payload))
}
