//! The other side of the gateway in its tests: ports, frames built by etherparse, and a station
//! with smoltcp's stack.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::datagram::testing::FakeHost;
use crate::fake_stations::FakeStations;
use crate::host::DnsQuery;
use crate::io::Io;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::stations::{Location, Stations};
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::{VNET_HDR_LEN, VnetHeader};
use cnet_wire::{DropReason, Frame, FrameSink, L3, MacAddr, Packet, PortFull, PortId};
use etherparse::{Icmpv4Type, PacketBuilder};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::{Gateway, GatewayConfig, Ipv4Gateway, Ipv6Gateway, Lease, Quirks};

pub(super) const GATEWAY: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
pub(super) const A: PortId = PortId(1);
pub(super) const B: PortId = PortId(2);
/// The station on port A, which has a fixed lease, and the one on port B, which has none.
pub(super) const MAC_A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xa]);
pub(super) const MAC_B: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xb]);
pub(super) const GW4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const DNS4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(super) const A4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub(super) const B4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 200);
pub(super) const GW6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
pub(super) const DNS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
pub(super) const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
pub(super) const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x200);
/// Link-local addresses of the gateway and of A.
pub(super) const GW_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5055, 0x0aff, 0xfe00, 0x0202);
pub(super) const A_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0x00ff, 0xfe00, 0x000a);

pub(super) fn config() -> GatewayConfig {
    GatewayConfig {
        mac: GATEWAY,
        mtu: 1500,
        v4: Some(Ipv4Gateway {
            address: GW4,
            prefix_len: 24,
            dns: Some(DNS4),
        }),
        v6: Some(Ipv6Gateway {
            address: GW6,
            prefix_len: 64,
            dns: Some(DNS6),
            advertise_default_route: true,
        }),
        search: vec!["net.example".into(), "example".into()],
        dhcp_range: Some((Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 30))),
        quirks: Quirks::default(),
    }
}

/// The lease of port A.
pub(super) fn lease() -> Lease {
    Lease {
        port: A,
        v4: Some(A4),
        v6: Some(A6),
        hostname: Some("box".into()),
    }
}

/// Keeps the frames sent to each port, without their virtio-net headers, the frame buffer, and the host.
#[derive(Default)]
pub(super) struct Wire(
    pub(super) VecDeque<(PortId, Vec<u8>)>,
    Vec<u8>,
    pub(super) FakeHost,
);

impl FrameSink for Wire {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        let vnet = VnetHeader::decode(frame).unwrap();
        // Everything the gateway sends is complete.
        assert_eq!((vnet.flags, vnet.gso_type), (0, 0));
        let parsed = Frame::parse(frame, 65535).unwrap();
        assert_eq!(parsed.src, GATEWAY);
        self.0.push_back((port, frame[VNET_HDR_LEN..].to_vec()));
        Ok(())
    }
}

/// Effects for a gateway: it has the wire and the frame buffer, and asks the host for names alone.
pub(super) fn with_io<T>(wire: &mut Wire, f: impl FnOnce(&mut Io<'_, (Wire, FakeHost)>) -> T) -> T {
    let mut buf = std::mem::take(&mut wire.1);
    buf.resize(FRAME_BUFFER_LEN, 0);
    let mut hosts = std::mem::take(&mut wire.2);
    let result = f(&mut Io::new(wire, &mut hosts, &mut buf));
    (wire.1, wire.2) = (buf, hosts);
    result
}

/// Hands in a frame as the router does, its source learned as the switch does.
pub(super) fn handle_frame(
    bench: &mut Bench,
    port: PortId,
    frame: &Frame<'_>,
) -> Result<(), DropReason> {
    let Bench {
        gw,
        now,
        wire,
        stations,
    } = bench;
    let (now, stations) = (*now, &*stations);
    let source = match &frame.l3 {
        L3::Arp => frame.arp().map(|arp| IpAddr::V4(arp.sender_ip)),
        L3::Ip(ip) => Some(ip.src),
    };
    if let Some(source) = source {
        stations.learn(source, port, frame.src);
    }
    with_io(wire, |io| match &frame.l3 {
        L3::Arp => gw.handle_arp((now, port), frame, stations, io),
        L3::Ip(ip) => gw.handle_packet(&Packet::new(now, port, frame, ip), stations, io),
    })
}

/// A gateway with ports A and B.
pub(super) struct Bench {
    pub(super) gw: Gateway,
    pub(super) now: Instant,
    pub(super) wire: Wire,
    pub(super) stations: FakeStations,
}

impl Bench {
    /// The next DNS query that was asked.
    pub(super) fn take_query(&mut self) -> Option<DnsQuery> {
        self.wire.2.queries.pop_front()
    }

    pub(super) fn new() -> Bench {
        Bench::with(config())
    }

    pub(super) fn with(cfg: GatewayConfig) -> Bench {
        let now = Instant::from_millis(1_000);
        let mut gw = Gateway::new(cfg, 7, now);
        gw.add_lease(lease());
        let stations = FakeStations::of([A, B]);
        for address in [A4.into(), A6.into()] {
            stations.lease(address, A, Some(MAC_A));
        }
        Bench {
            gw,
            now,
            wire: Wire::default(),
            stations,
        }
    }

    /// Where the table of stations has `address`.
    pub(super) fn locate(&self, address: Ipv4Addr) -> Option<Location> {
        self.stations.by_address(self.now, address.into())
    }

    /// The port goes, and another has its number.
    pub(super) fn replace_port(&mut self, port: PortId) {
        self.gw.remove_port(port);
        self.stations.remove_port(port);
        self.stations.ports.insert(port);
    }

    /// Hands in an Ethernet frame.
    pub(super) fn send(&mut self, port: PortId, frame: &[u8]) -> Result<(), DropReason> {
        self.send_vnet(port, VnetHeader::default(), frame)
    }

    pub(super) fn send_vnet(
        &mut self,
        port: PortId,
        vnet: VnetHeader,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let buf = [&vnet.encode(), frame].concat();
        let frame = Frame::parse(&buf, 65535)?;
        handle_frame(self, port, &frame)
    }

    /// The one frame that was sent, which went to `port`.
    pub(super) fn reply(&mut self, port: PortId) -> Vec<u8> {
        let (to, frame) = self.wire.0.pop_front().expect("no reply");
        assert_eq!(to, port);
        assert_eq!(self.wire.0.len(), 0, "more than one reply");
        frame
    }

    pub(super) fn assert_silent(&self) {
        assert_eq!(self.wire.0.len(), 0);
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now += by;
        let (gw, now) = (&mut self.gw, self.now);
        with_io(&mut self.wire, |io| gw.handle_timeout(now, io));
    }

    pub(super) fn answer(&mut self, id: super::QueryId, message: &[u8]) {
        let (gw, now) = (&mut self.gw, self.now);
        with_io(&mut self.wire, |io| gw.answer(now, id, message, io));
    }
}

/// Whether the transport checksum of an Ethernet frame is right.
pub(super) fn checksum_ok(frame: &[u8]) -> bool {
    let buf = [&VnetHeader::default().encode()[..], frame].concat();
    let frame = Frame::parse(&buf, 65535).unwrap();
    match frame.l3 {
        cnet_wire::L3::Ip(ip) => frame.l4_checksum_ok(&ip),
        cnet_wire::L3::Arp => true,
    }
}

/// A UDP datagram in a frame to the gateway's MAC, or to `to` if given.
pub(super) fn udp(mac: MacAddr, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let b = PacketBuilder::ethernet2(mac.0, GATEWAY.0);
    let b = match (src.ip(), dst.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => b.ipv4(s.octets(), d.octets(), 64),
        (IpAddr::V6(s), IpAddr::V6(d)) => b.ipv6(s.octets(), d.octets(), 64),
        _ => panic!("two families"),
    };
    let mut frame = Vec::new();
    b.udp(src.port(), dst.port())
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// An ICMP message of 8 bytes and `payload`, for IPv4.
pub(super) fn icmp4(
    mac: MacAddr,
    ends: (Ipv4Addr, Ipv4Addr),
    head: [u8; 8],
    body: &[u8],
) -> Vec<u8> {
    let rest = [head[4], head[5], head[6], head[7]];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac.0, GATEWAY.0)
        .ipv4(ends.0.octets(), ends.1.octets(), 64)
        .icmpv4(Icmpv4Type::Unknown {
            type_u8: head[0],
            code_u8: head[1],
            bytes5to8: rest,
        })
        .write(&mut frame, body)
        .unwrap();
    frame
}

/// An ICMPv6 message: type, code, the four bytes behind the checksum, and `body`.
pub(super) fn icmp6(
    mac: MacAddr,
    ends: (Ipv6Addr, Ipv6Addr),
    hop_limit: u8,
    (kind, code, rest): (u8, u8, [u8; 4]),
    body: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac.0, GATEWAY.0)
        .ipv6(ends.0.octets(), ends.1.octets(), hop_limit)
        .icmpv6_raw(kind, code, rest)
        .write(&mut frame, body)
        .unwrap();
    frame
}

/// A station with smoltcp's stack on one port.
pub(super) struct Station {
    pub(super) port: PortId,
    pub(super) iface: Interface,
    pub(super) sockets: SocketSet<'static>,
    device: Cable,
}

impl Station {
    pub(super) fn new(port: PortId, mac: MacAddr, addresses: &[IpCidr]) -> Station {
        let mut device = Cable::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = u64::from(port.0);
        let mut iface = Interface::new(config, &mut device, StackInstant::ZERO);
        iface.update_ip_addrs(|a| a.extend(addresses.iter().copied()));
        Station {
            port,
            iface,
            sockets: SocketSet::new(Vec::new()),
            device,
        }
    }

    /// Lets the station and the gateway talk until both are silent. What goes to other ports
    /// is lost.
    pub(super) fn talk(&mut self, bench: &mut Bench) {
        for _ in 0..100 {
            let now = StackInstant::from_micros((bench.now.as_nanos() / 1000) as i64);
            self.iface.poll(now, &mut self.device, &mut self.sockets);
            let sent = std::mem::take(&mut self.device.outgoing);
            for frame in &sent {
                // The station's own multicasts are none of the gateway's business.
                let _ = bench.send(self.port, frame);
            }
            if sent.is_empty() && bench.wire.0.is_empty() {
                return;
            }
            let (mine, _): (VecDeque<_>, VecDeque<_>) =
                bench.wire.0.drain(..).partition(|(p, _)| *p == self.port);
            self.device
                .incoming
                .extend(mine.into_iter().map(|(_, frame)| frame));
        }
        panic!("the station and the gateway talk without end");
    }
}

#[derive(Default)]
struct Cable {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl smoltcp::phy::Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, Sent<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Received(frame), Sent(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 1514;
        caps
    }
}
