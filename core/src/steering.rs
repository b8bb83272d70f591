//! Further workers: which frames they keep, and which they hand to the primary worker.
//!
//! # Theory of operation
//!
//! With several workers each has a network, and reads one queue of every port. The kernel sends a
//! flow's frames to the queue that last wrote to the flow, and chooses by the flow's addresses and
//! ports before that: so a TCP flow that a container opens lives in the worker that got its SYN,
//! and needs nothing of the others. All else has one owner, the primary worker: a UDP mapping is one
//! for all destinations (RFC 4787), fragments meet in one table, and what the gateway answers (ARP,
//! neighbour discovery, DHCP, DNS, echo) is its own state. So are the flows of published ports,
//! whose first segment leaves by the primary worker's queue.
//!
//! A further worker therefore keeps
//!
//! - frames for another port's station, which need the switch alone;
//! - whole TCP packets to the world, if they open a flow or are of a flow that it has.
//!
//! All others it hands over ([`FrameSink::hand_over`]), unjudged and uncounted: the primary worker
//! treats them as its own.
//!
//! # Limits
//!
//! An ICMP error of a container about a flow of a further worker meets no flow in the primary one and
//! is dropped; TCP flows make no use of such errors. TCP in fragments, which hosts hardly send, is put
//! together by the primary worker, and refused there if the flow is another's.
//!
//! A flow's segments may take another queue while the kernel's table of flows is full (4,096 in
//! `drivers/net/tun.c`), but then by the same hash as its SYN did. Those of a published port's flow
//! may take both queues for a moment, where the container speaks first after a silence of three
//! seconds: a segment that overtakes one that is handed over has to be repeated.

use std::net::SocketAddr;

use cnet_nat::io::{Env, Io};
use cnet_nat::router::RouterConfig;
use cnet_wire::frame::{Frame, IpHeader, L3, protocol};
use cnet_wire::tcp;
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, FrameSink, PortId};

use crate::Network;

impl Network {
    /// The same network for a further worker: with the ports there are, the switch's tables shared,
    /// and flows of its own. `config` and `secret` as [`Network::new`] has them; with the same secret
    /// a flow's sequence numbers go on where they were, whichever worker has it.
    ///
    /// Every port that comes or goes is to be told to each, the primary one first. Queries, published
    /// ports and datagrams are the primary one's alone.
    #[must_use]
    pub fn further(&self, config: RouterConfig, secret: [u8; 32], now: Instant) -> Network {
        let mut further = Network::new(config, secret, now);
        further.switch = self.switch.for_worker();
        further.is_further = true;
        further
    }

    /// Whether a further worker is to leave `frame`, which came from `ingress`, to the primary one.
    pub(crate) fn is_for_primary(&self, ingress: PortId, frame: &Frame<'_>) -> bool {
        if frame.dst != self.gateway_mac {
            return frame.dst.is_multicast();
        }
        let L3::Ip(ip) = &frame.l3 else {
            return true;
        };
        if ip.protocol != protocol::TCP || ip.fragment.is_some() {
            return true;
        }
        let ports = frame.ports(ip);
        self.router
            .is_for_gateway(ingress, ip.dst, ip.protocol, ports)
            || !self.opens_or_has_flow(frame, ip, ports)
    }

    fn opens_or_has_flow(&self, frame: &Frame<'_>, ip: &IpHeader, ports: Option<[u16; 2]>) -> bool {
        let Some([source, destination]) = ports else {
            return false;
        };
        let container = SocketAddr::new(ip.src, source);
        let remote = SocketAddr::new(ip.dst, destination);
        tcp::is_opening(frame.l4(ip)) || self.router.has_tcp_flow(container, remote)
    }

    /// Leaves a frame to the primary worker, which counts it, unless there is no room.
    pub(crate) fn hand_over<E: Env>(
        &mut self,
        ingress: PortId,
        bytes: &[u8],
        io: &mut Io<'_, E>,
    ) -> Result<(), DropReason> {
        match io.sink.hand_over(ingress, bytes) {
            Ok(()) => Ok(()),
            Err(_) => self.refuse(ingress, bytes, DropReason::WorkerFull),
        }
    }
}

#[cfg(test)]
mod tests {
    use cnet_vswitch::port::{self, PortConfig};
    use cnet_wire::headers::FRAME_BUFFER_LEN;
    use cnet_wire::vnet::VNET_HDR_LEN;
    use cnet_wire::{MacAddr, PortFull, VnetHeader};
    use etherparse::TcpHeader;

    use super::*;
    use crate::testing::{CONTAINER, GATEWAY, Host, LINK, NOW, REMOTE, config, ip, udp_from};

    /// Another container.
    const OTHER: (PortId, MacAddr) = (PortId(5), MacAddr([0x52, 0x54, 0, 0, 0, 9]));

    /// Keeps what is written to a port, and what is handed over as long as there is room.
    #[derive(Default)]
    struct Sink {
        emitted: Vec<PortId>,
        handed: Vec<(PortId, Vec<u8>)>,
        full: bool,
    }

    impl FrameSink for Sink {
        fn emit(&mut self, port: PortId, _: &[u8]) -> Result<(), PortFull> {
            self.emitted.push(port);
            Ok(())
        }

        fn hand_over(&mut self, ingress: PortId, frame: &[u8]) -> Result<(), PortFull> {
            if self.full {
                return Err(PortFull);
            }
            self.handed.push((ingress, frame.to_vec()));
            Ok(())
        }
    }

    struct Bench {
        network: Network,
        sink: Sink,
        host: Host,
    }

    impl Bench {
        fn new(config: RouterConfig) -> Bench {
            let mut first = Network::new(config.clone(), [7; 32], NOW);
            let mut network = first.further(config, [7; 32], NOW);
            let lease = port::Lease {
                mac: Some(OTHER.1),
                ..port::Lease::default()
            };
            let other = PortConfig {
                lease,
                ..PortConfig::default()
            };
            for network in [&mut first, &mut network] {
                network.add_port(LINK.port, PortConfig::default()).unwrap();
                network.add_port(OTHER.0, other.clone()).unwrap();
            }
            Bench {
                network,
                sink: Sink::default(),
                host: Host::default(),
            }
        }

        fn handle(&mut self, frame: &[u8]) {
            let mut buf = vec![0; FRAME_BUFFER_LEN];
            let mut io = Io::new(&mut self.sink, &mut self.host, &mut buf);
            self.network.handle_frame(NOW, LINK.port, frame, &mut io);
        }

        /// Whether `frame` is handed over, as it is, and nothing else is done with it.
        fn hands_over(&mut self, frame: &[u8]) -> bool {
            let before = self.network.port_counters(LINK.port).unwrap().frames_in;
            self.handle(frame);
            let counted = self.network.port_counters(LINK.port).unwrap().frames_in - before;
            let handed = std::mem::take(&mut self.sink.handed);
            match handed.as_slice() {
                [] => assert_eq!(counted, 1),
                [one] => assert_eq!((one, counted), (&(LINK.port, frame.to_vec()), 0)),
                more => panic!("{} frames", more.len()),
            }
            !handed.is_empty()
        }
    }

    fn tcp(to: [u8; 4], from_port: u16, syn: bool, ack: bool) -> Vec<u8> {
        let mut header = TcpHeader::new(from_port, 80, 1, 1000);
        (header.syn, header.ack) = (syn, ack);
        header.checksum = header.calc_checksum_ipv4_raw(CONTAINER, to, &[]).unwrap();
        ip(protocol::TCP, to, &header.to_bytes())
    }

    fn udp(to: [u8; 4]) -> Vec<u8> {
        udp_from(9, to, b"x")
    }

    /// Overwrites bytes of a frame, counted from its Ethernet header.
    fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        frame[VNET_HDR_LEN + at..][..bytes.len()].copy_from_slice(bytes);
        frame
    }

    fn arp() -> Vec<u8> {
        let mut frame = VnetHeader::default().encode().to_vec();
        frame.extend(LINK.gateway_mac.0);
        frame.extend(LINK.container_mac.0);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(LINK.container_mac.0);
        frame.extend(CONTAINER);
        frame.extend([0; 6]);
        frame.extend(GATEWAY);
        frame
    }

    #[test]
    fn all_but_tcp_to_the_world_goes_to_the_primary_worker() {
        let mut bench = Bench::new(config());
        let mut syn = TcpHeader::new(9, 80, 1, 1000);
        syn.syn = true;
        let syn = [&syn.to_bytes()[..], &[0; 4]].concat();
        let mut fragment = with(ip(protocol::TCP, REMOTE, &syn), 20, &[0x20, 0]);
        // The header's checksum, made right again: DF was 0x4000.
        let sum = u16::from_be_bytes([fragment[VNET_HDR_LEN + 24], fragment[VNET_HDR_LEN + 25]]);
        fragment = with(fragment, 24, &(sum + 0x2000).to_be_bytes());
        for (what, frame) in [
            ("ARP", arp()),
            ("UDP", udp(REMOTE)),
            ("a group", with(udp(REMOTE), 0, &[0xff; 6])),
            ("a fragment of a SYN", fragment),
            (
                "ICMP",
                ip(protocol::ICMP, REMOTE, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
            ),
            ("a SYN to the gateway", tcp(GATEWAY, 1, true, false)),
            (
                "the answer to a client of a published port",
                tcp(REMOTE, 80, true, true),
            ),
            ("a segment of no flow here", tcp(REMOTE, 80, false, true)),
        ] {
            assert!(bench.hands_over(&frame), "{what}");
        }
        assert!(bench.host.sockets.is_empty() && bench.sink.emitted.is_empty());
    }

    #[test]
    fn a_flow_stays_with_the_worker_that_got_its_syn() {
        let mut bench = Bench::new(config());
        assert!(!bench.hands_over(&tcp(REMOTE, 7, true, false)));
        assert_eq!(bench.host.sockets.len(), 1);
        assert!(!bench.hands_over(&tcp(REMOTE, 7, false, true)));
        assert!(bench.hands_over(&tcp(REMOTE, 8, false, true)));
        assert_eq!(bench.network.port_flows(LINK.port).tcp, 1);
    }

    #[test]
    fn the_hosts_loopback_behind_the_gateway_counts_as_the_world() {
        let mut config = config();
        config.policy.host_loopback = vec![GATEWAY.into()];
        let mut bench = Bench::new(config);
        assert!(!bench.hands_over(&tcp(GATEWAY, 7, true, false)));
        assert!(bench.hands_over(&tcp(GATEWAY, 8, false, true)));
        assert!(bench.hands_over(&udp(GATEWAY)));
    }

    #[test]
    fn frames_between_containers_go_at_once() {
        let mut bench = Bench::new(config());
        assert!(!bench.hands_over(&with(udp(REMOTE), 0, &OTHER.1.0)));
        assert_eq!(bench.sink.emitted, [OTHER.0]);
    }

    #[test]
    fn what_finds_no_room_is_counted_where_it_came_in() {
        let mut bench = Bench::new(config());
        bench.sink.full = true;
        bench.handle(&udp(REMOTE));
        let counted = bench.network.port_counters(LINK.port).unwrap();
        assert_eq!(counted.frames_in, 1);
        assert_eq!(counted.drops.get(DropReason::WorkerFull), 1);
        assert_eq!(bench.network.drops().get(DropReason::WorkerFull), 1);
    }
}
