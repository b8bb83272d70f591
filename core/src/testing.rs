//! A network of one container, a host whose sockets take everything, and frames for them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use cnet_nat::datagram::DatagramConfig;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway};
use cnet_nat::host::{
    DatagramError, DatagramKind, HostError, HostSockets, Received, SendOptions, SocketId, Token,
};
use cnet_nat::policy::Policy;
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_wire::headers::Link;
use cnet_wire::time::Instant;
use cnet_wire::{MacAddr, PortId, VnetHeader};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, UdpHeader};

pub(crate) const NOW: Instant = Instant::from_millis(1000);
pub(crate) const CONTAINER: [u8; 4] = [10, 0, 2, 100];
pub(crate) const GATEWAY: [u8; 4] = [10, 0, 2, 2];
pub(crate) const REMOTE: [u8; 4] = [192, 0, 2, 1];
/// Where the container is.
pub(crate) const LINK: Link = Link {
    port: PortId(3),
    gateway_mac: MacAddr([0x52, 0x55, 10, 0, 2, 2]),
    container_mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
};

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
            leases: Vec::new(),
            dhcp_range: None,
        },
        policy: Policy::default(),
        tcp: TcpConfig::default(),
        datagram: DatagramConfig::default(),
    }
}

/// Opens whatever it is asked for, keeps what is sent, and never delivers.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) opened: u32,
    pub(crate) sent: Vec<(SocketAddr, Vec<u8>)>,
}

impl Host {
    fn open(&mut self) -> Result<SocketId, HostError> {
        self.opened += 1;
        Ok(SocketId(self.opened))
    }
}

impl HostSockets for Host {
    fn tcp_connect(&mut self, _: Token, _: SocketAddr) -> Result<SocketId, HostError> {
        self.open()
    }
    fn tcp_adopt(&mut self, _: Token, _: SocketId) -> Result<(), HostError> {
        Ok(())
    }
    fn tcp_connected(&mut self, _: SocketId) -> Result<(), HostError> {
        Err(HostError::WouldBlock)
    }
    fn tcp_send(&mut self, _: SocketId, data: &[u8]) -> Result<usize, HostError> {
        Ok(data.len())
    }
    fn tcp_peek(&mut self, _: SocketId, _: usize, _: &mut [u8]) -> Result<usize, HostError> {
        Err(HostError::WouldBlock)
    }
    fn tcp_discard(&mut self, _: SocketId, _: usize) -> Result<(), HostError> {
        Ok(())
    }
    fn tcp_shutdown(&mut self, _: SocketId) {}
    fn tcp_reset(&mut self, _: SocketId) {}
    fn datagram_open(
        &mut self,
        _: Token,
        _: DatagramKind,
        _: std::net::IpAddr,
    ) -> Result<SocketId, HostError> {
        self.open()
    }
    fn datagram_send(
        &mut self,
        _: SocketId,
        options: SendOptions,
        payload: &[u8],
    ) -> Result<(), HostError> {
        self.sent.push((options.to, payload.to_vec()));
        Ok(())
    }
    fn datagram_receive(&mut self, _: SocketId, _: &mut [u8]) -> Result<Received, HostError> {
        Err(HostError::WouldBlock)
    }
    fn datagram_error(&mut self, _: SocketId, _: &mut [u8]) -> Result<DatagramError, HostError> {
        Err(HostError::WouldBlock)
    }
    fn close(&mut self, _: SocketId) {}
}

/// An IPv4 packet of the container to the gateway's MAC address, virtio-net header first.
pub(crate) fn ip(protocol: u8, to: [u8; 4], l4: &[u8]) -> Vec<u8> {
    let mut frame = VnetHeader::default().encode().to_vec();
    let ethernet = Ethernet2Header {
        source: LINK.container_mac.0,
        destination: LINK.gateway_mac.0,
        ether_type: EtherType::IPV4,
    };
    ethernet.write(&mut frame).unwrap();
    let protocol = IpNumber(protocol);
    let mut header = Ipv4Header::new(l4.len() as u16, 64, protocol, CONTAINER, to).unwrap();
    header.header_checksum = header.calc_header_checksum();
    header.write(&mut frame).unwrap();
    frame.extend(l4);
    frame
}

/// A UDP datagram of the container.
pub(crate) fn udp_from(from: u16, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let to = SocketAddrV4::new(Ipv4Addr::from(to), 9);
    let mut header = UdpHeader {
        source_port: from,
        destination_port: to.port(),
        length: 8 + payload.len() as u16,
        checksum: 0,
    };
    header.checksum = header
        .calc_checksum_ipv4_raw(CONTAINER, to.ip().octets(), payload)
        .unwrap();
    ip(
        17,
        to.ip().octets(),
        &[&header.to_bytes()[..], payload].concat(),
    )
}
