//! What may happen: steps are drawn, predicted and performed here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_testkit::addresses::{GATEWAY_MAC, GATEWAY_V4, gateway};
use cnet_testkit::frames::{self, Tcp, flag};
use cnet_testkit::rng::Rng;
use cnet_wire::host::SocketId;
use cnet_wire::time::Duration;
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{DropReason, MacAddr};

use super::network::Network;
use super::reference::{
    CLIENTS_PORT, CONTAINERS, DENIED_V4, DENIED_V6, Expected, Inside, Mapping, Model, Observed,
    Refused, Seen,
};

/// What passes before each step.
const PAUSE: Duration = Duration::from_millis(5);
/// Longer than any mapping lives.
const LONG: Duration = Duration::from_secs(1000);
/// Longer than a mapping in use is safe, and shorter than any lives.
const REST: Duration = Duration::from_secs(31);
/// A port that nothing in the containers listens at.
const NOBODYS_PORT: u16 = 5678;
/// The first local port of containers.
const LOCAL_PORT: u16 = 4000;

/// A step. `c` and `d` number containers.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Datagrams of one batch to the world.
    Udp {
        c: usize,
        v6: bool,
        port: u16,
        remote: u8,
        len: usize,
        burst: usize,
    },
    /// A datagram to an address that policy denies.
    Denied { c: usize, v6: bool },
    /// A datagram arrives at a mapping's socket.
    Arrives {
        mapping: Mapping,
        remote: u8,
        len: usize,
        full: bool,
    },
    /// An echo request to the world.
    Echo { c: usize, v6: bool, id: u16 },
    /// The answer to one.
    EchoAnswered { mapping: Mapping },
    /// An echo request to the gateway.
    EchoToGateway { c: usize, v6: bool },
    /// A datagram straight to another container.
    Neighbour {
        c: usize,
        d: usize,
        len: usize,
        full: bool,
    },
    /// A datagram to everybody.
    Broadcast { c: usize },
    /// Who has the gateway's address?
    ArpForGateway { c: usize },
    /// Who has the other container's address?
    ArpForNeighbour { c: usize, d: usize },
    /// A datagram with another container's address as source.
    Spoofed { c: usize, d: usize, v6: bool },
    /// A datagram whose checksum is wrong.
    BadChecksum { c: usize, v6: bool },
    /// A packet whose header's checksum is wrong.
    BadHeader { c: usize },
    /// A frame with a VLAN tag.
    Vlan { c: usize },
    /// A frame that is too short.
    Runt { c: usize },
    /// A datagram with one hop left.
    LastHop { c: usize, v6: bool },
    /// A segment of no connection.
    Stray { c: usize, v6: bool },
    /// A connect that the far end refuses.
    Connect { c: usize, v6: bool, port: u16 },
    /// A datagram, while the primary worker takes none of another's frames.
    NoRoom { c: usize, v6: bool },
    /// A client of the published port.
    Client { n: u8, len: usize },
    /// The first container sends from the published port.
    Answer { n: u8, len: usize },
    /// Long enough for mappings in use to make room.
    Rest,
    /// Everything expires.
    Pass,
}

impl Step {
    /// The next step.
    pub fn draw(rng: &mut Rng, model: &Model) -> Step {
        let c = rng.below(CONTAINERS.len());
        let d = (c + rng.within(1..CONTAINERS.len())) % CONTAINERS.len();
        let (v6, len) = (rng.chance(500), rng.pick(&[0, 1, 100, 1200]));
        let (remote, full) = (rng.below(3) as u8, rng.chance(200));
        let port = LOCAL_PORT + rng.below(3) as u16;
        let of = |is_echo: bool, rng: &mut Rng| {
            let all: Vec<Mapping> = model
                .mappings
                .iter()
                .filter(|m| m.inside.1 == is_echo)
                .copied()
                .collect();
            (!all.is_empty()).then(|| all[rng.below(all.len())])
        };
        match rng.below(42) {
            0..8 => Step::Udp {
                c,
                v6,
                port,
                remote,
                len,
                burst: rng.pick(&[1, 1, 2, 5]),
            },
            8..10 => Step::Denied { c, v6 },
            10..15 => match of(false, rng) {
                Some(mapping) => Step::Arrives {
                    mapping,
                    remote,
                    len,
                    full,
                },
                None => Step::Pass,
            },
            15..17 => Step::Echo { c, v6, id: port },
            17..19 => match of(true, rng) {
                Some(mapping) => Step::EchoAnswered { mapping },
                None => Step::EchoToGateway { c, v6 },
            },
            19 => Step::EchoToGateway { c, v6 },
            20..23 => Step::Neighbour { c, d, len, full },
            23 => Step::Broadcast { c },
            24 => Step::ArpForGateway { c },
            25 => Step::ArpForNeighbour { c, d },
            26 => Step::Spoofed { c, d, v6 },
            27 => Step::BadChecksum { c, v6 },
            28 => Step::BadHeader { c },
            29 => Step::Vlan { c },
            30 => Step::Runt { c },
            31 => Step::LastHop { c, v6 },
            32 => Step::Stray { c, v6 },
            33 => Step::Connect { c, v6, port },
            34 => Step::NoRoom { c, v6 },
            35 | 36 => Step::Client { n: remote, len },
            37 | 38 => Step::Answer { n: remote, len },
            39 | 40 => Step::Rest,
            _ => Step::Pass,
        }
    }

    /// The container that sends, and its frames.
    fn frames(self) -> Option<(usize, Vec<Vec<u8>>)> {
        // Longer than 60 lines: an arm a step.
        let (c, frame) = match self {
            Step::Udp {
                c,
                v6,
                port,
                remote,
                len,
                burst,
            } => {
                let from = SocketAddr::new(CONTAINERS[c].address(v6), port);
                let frame = frames::udp(from, far(v6, remote), &data(len));
                return Some((c, vec![from_container(c, GATEWAY_MAC, frame); burst]));
            }
            Step::Denied { c, v6 } => {
                let to: IpAddr = if v6 {
                    DENIED_V6.into()
                } else {
                    DENIED_V4.into()
                };
                (c, frames::udp(local(c, v6), (to, 7).into(), b"denied"))
            }
            Step::Echo { c, v6, id } => (c, echo(c, far(v6, 0).ip(), id)),
            Step::EchoToGateway { c, v6 } => (c, echo(c, gateway(v6), 77)),
            Step::Neighbour { c, d, len, .. } => {
                let to = SocketAddr::new(CONTAINERS[d].address(false), NOBODYS_PORT);
                let frame = frames::udp(local(c, false), to, &data(len));
                return Some((c, vec![from_container(c, CONTAINERS[d].mac, frame)]));
            }
            Step::Broadcast { c } => {
                let to = (Ipv4Addr::BROADCAST, NOBODYS_PORT).into();
                let frame = frames::udp(local(c, false), to, b"hello");
                return Some((c, vec![from_container(c, MacAddr::BROADCAST, frame)]));
            }
            Step::ArpForGateway { c } => return Some((c, vec![arp(c, GATEWAY_V4)])),
            Step::ArpForNeighbour { c, d } => return Some((c, vec![arp(c, CONTAINERS[d].v4)])),
            Step::Spoofed { c, d, v6 } => (c, frames::udp(local(d, v6), far(v6, 0), b"mine")),
            Step::BadChecksum { c, v6 } => {
                let mut frame = frames::udp(local(c, v6), far(v6, 0), b"garbled");
                let last = frame.len() - 1;
                frame[last] ^= 1;
                (c, frame)
            }
            Step::BadHeader { c } => {
                let mut frame = frames::udp(local(c, false), far(false, 0), b"garbled");
                frame[VNET_HDR_LEN + 14 + 10] ^= 1;
                (c, frame)
            }
            Step::Vlan { c } => (c, frames::ethernet(GATEWAY_MAC, 0x8100, &[0; 50])),
            Step::Runt { c } => {
                let frame = frames::ethernet(GATEWAY_MAC, 0x0800, &[]);
                return Some((c, vec![frame[..VNET_HDR_LEN + 10].to_vec()]));
            }
            Step::LastHop { c, v6 } => {
                let l4 = frames::udp(local(c, v6), far(v6, 0), b"last");
                let at = VNET_HDR_LEN + 14 + if v6 { 40 } else { 20 };
                let (from, to) = (CONTAINERS[c].address(v6), far(v6, 0).ip());
                (c, frames::ip(from, to, 17, 1, &l4[at..]))
            }
            Step::Stray { c, v6 } => (c, segment(local(c, v6), far(v6, 0), flag::ACK)),
            Step::Connect { c, v6, port } => {
                let from = SocketAddr::new(CONTAINERS[c].address(v6), port);
                (c, segment(from, far(v6, 0), flag::SYN))
            }
            Step::NoRoom { c, v6 } => (c, frames::udp(local(c, v6), far(v6, 1), b"no room")),
            Step::Answer { n, len } => {
                let from = (CONTAINERS[0].v4, CLIENTS_PORT).into();
                (0, frames::udp(from, client(n), &data(len)))
            }
            Step::Arrives { .. }
            | Step::EchoAnswered { .. }
            | Step::Client { .. }
            | Step::Rest
            | Step::Pass => {
                return None;
            }
        };
        Some((c, vec![from_container(c, GATEWAY_MAC, frame)]))
    }
}

/// What a far end's or a container's datagram carries.
fn data(len: usize) -> Vec<u8> {
    (0..len).map(|n| n as u8).collect()
}

/// A far end.
fn far(v6: bool, n: u8) -> SocketAddr {
    let v6_address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1 + u16::from(n));
    let address: IpAddr = match v6 {
        true => v6_address.into(),
        false => Ipv4Addr::new(203, 0, 113, 1 + n).into(),
    };
    SocketAddr::new(address, 7)
}

/// A client of the published port.
fn client(n: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, 1 + n), 3000).into()
}

fn local(c: usize, v6: bool) -> SocketAddr {
    SocketAddr::new(CONTAINERS[c].address(v6), LOCAL_PORT)
}

fn from_container(c: usize, to: MacAddr, mut frame: Vec<u8>) -> Vec<u8> {
    frame[VNET_HDR_LEN..VNET_HDR_LEN + 6].copy_from_slice(&to.0);
    frame[VNET_HDR_LEN + 6..VNET_HDR_LEN + 12].copy_from_slice(&CONTAINERS[c].mac.0);
    frame
}

fn echo(c: usize, to: IpAddr, id: u16) -> Vec<u8> {
    let v6 = to.is_ipv6();
    let [high, low] = id.to_be_bytes();
    let request = [if v6 { 128 } else { 8 }, 0, 0, 0, high, low, 0, 1, b'p'];
    frames::icmp(CONTAINERS[c].address(v6), to, 64, &request)
}

fn arp(c: usize, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = frames::arp(1, CONTAINERS[c].v4, target);
    let sender = VNET_HDR_LEN + 14 + 8;
    frame[sender..sender + 6].copy_from_slice(&CONTAINERS[c].mac.0);
    from_container(c, MacAddr::BROADCAST, frame)
}

fn segment(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let segment = Tcp {
        from,
        to,
        seq: 1000,
        ack: 0,
        flags,
        window: 1000,
        urgent: 0,
        options: &[],
        payload: &[],
    };
    segment.frame()
}

/// The gateway tells a container by ICMP why its packet went nowhere.
fn error(expected: &mut Expected, c: usize, v6: bool, kind: (u8, u8)) {
    let seen = Seen::Icmp(gateway(v6), CONTAINERS[c].address(v6), kind);
    expected.frames.push((CONTAINERS[c].port, seen));
}

/// What the step must lead to; the model is as it must be afterwards.
pub fn expect(step: Step, model: &mut Model) -> Expected {
    // Longer than 60 lines: an arm a step: the model at one glance.
    let mut expected = Expected::default();
    model.pass(PAUSE);
    let (_, sent) = step.frames().unwrap_or_default();
    if let Some((c, all)) = step.frames() {
        all.iter().for_each(|frame| model.count_in(c, frame));
    }
    match step {
        Step::Udp {
            c,
            v6,
            port,
            remote,
            len,
            burst,
        } => {
            let inside = (c, false, SocketAddr::new(CONTAINERS[c].address(v6), port));
            // Those of one run take one look at the mapping; empty ones make no run.
            let looks = if len == 0 { burst } else { 1 };
            let mapped = model.map(inside, looks);
            for _ in 0..burst {
                send(
                    model,
                    &mut expected,
                    inside,
                    mapped,
                    (far(v6, remote), data(len)),
                );
            }
        }
        Step::Denied { c, v6 } => {
            model.count_port_drop(c, DropReason::Policy);
            // Administratively prohibited (RFC 1812, section 5.2.7.1; RFC 4443, section 3.1).
            error(&mut expected, c, v6, if v6 { (1, 1) } else { (3, 13) });
        }
        Step::Arrives {
            mapping,
            remote,
            len,
            full,
        } => {
            let (c, _, to) = mapping.inside;
            model.arrived(mapping.inside);
            if full {
                model.count_port_drop(c, DropReason::PortFull);
            } else {
                let seen = Seen::Udp(far(to.is_ipv6(), remote), to, data(len));
                expected.frames.push((CONTAINERS[c].port, seen));
            }
        }
        Step::Echo { c, v6, id } => {
            let inside = (c, true, SocketAddr::new(CONTAINERS[c].address(v6), id));
            let mapped = model.map(inside, 1);
            let message = &sent[0][VNET_HDR_LEN + 14 + if v6 { 40 } else { 20 }..];
            let to = SocketAddr::new(far(v6, 0).ip(), 0);
            send(model, &mut expected, inside, mapped, (to, message.to_vec()));
        }
        Step::EchoAnswered { mapping } => {
            let (c, _, to) = mapping.inside;
            model.arrived(mapping.inside);
            let v6 = to.is_ipv6();
            let seen = Seen::Icmp(far(v6, 0).ip(), to.ip(), (if v6 { 129 } else { 0 }, 0));
            expected.frames.push((CONTAINERS[c].port, seen));
        }
        Step::EchoToGateway { c, v6 } => {
            model.count_service("echo_replies");
            error(&mut expected, c, v6, (if v6 { 129 } else { 0 }, 0));
        }
        Step::Neighbour { c, d, full, .. } => match (reach(c, d), full) {
            (false, _) => model.count_port_drop(c, DropReason::NoSuchPort),
            (true, true) => model.count_port_drop(d, DropReason::PortFull),
            (true, false) => model.copy(d, &sent[0], &mut expected),
        },
        Step::Broadcast { c } => {
            copy_to_all(model, c, &sent[0], &mut expected);
            model.count_port_drop(c, DropReason::NotServed);
        }
        Step::ArpForGateway { c } => {
            copy_to_all(model, c, &sent[0], &mut expected);
            model.count_service("arp_replies");
            let seen = Seen::Arp(GATEWAY_V4, CONTAINERS[c].v4);
            expected.frames.push((CONTAINERS[c].port, seen));
        }
        // The gateway need not hear of what is another's; an isolated container finds no other.
        Step::ArpForNeighbour { c, .. } => match CONTAINERS[c].isolated {
            true => model.count_port_drop(c, DropReason::NoSuchPort),
            false => copy_to_all(model, c, &sent[0], &mut expected),
        },
        Step::Spoofed { c, .. } => model.count_port_drop(c, DropReason::Spoofed),
        Step::BadChecksum { c, .. } => model.count_port_drop(c, DropReason::BadChecksum),
        Step::BadHeader { c } => model.count_port_drop(c, DropReason::BadIpChecksum),
        Step::Vlan { c } => model.count_port_drop(c, DropReason::VlanTag),
        Step::Runt { c } => model.count_port_drop(c, DropReason::FrameTooShort),
        Step::LastHop { c, v6 } => {
            model.count_port_drop(c, DropReason::TtlExpired);
            error(&mut expected, c, v6, (if v6 { 3 } else { 11 }, 0));
        }
        Step::Stray { c, v6 } => {
            model.count_port_drop(c, DropReason::NoFlow);
            let seen = Seen::Tcp(far(v6, 0), local(c, v6), flag::RST);
            expected.frames.push((CONTAINERS[c].port, seen));
        }
        Step::Connect { c, v6, port } => {
            model.connect(c);
            let to = SocketAddr::new(CONTAINERS[c].address(v6), port);
            let seen = Seen::Tcp(far(v6, 0), to, flag::RST | flag::ACK);
            expected.frames.push((CONTAINERS[c].port, seen));
        }
        Step::NoRoom { c, v6 } => match model.is_steered(c) {
            true => model.count_port_drop(c, DropReason::WorkerFull),
            false => {
                let inside = (c, false, local(c, v6));
                let mapped = model.map(inside, 1);
                send(
                    model,
                    &mut expected,
                    inside,
                    mapped,
                    (far(v6, 1), b"no room".to_vec()),
                );
            }
        },
        Step::Client { n, len } => {
            let guest = (CONTAINERS[0].v4, CLIENTS_PORT).into();
            let seen = Seen::Udp(client(n), guest, data(len));
            expected.frames.push((CONTAINERS[0].port, seen));
        }
        Step::Answer { n, len } => {
            // To those it has not heard, too: it speaks by the port that it is reached at.
            let socket = Some(Network::PUBLISHED);
            expected.sent.push((socket, client(n), data(len)));
        }
        Step::Rest => model.pass(REST),
        Step::Pass => model.pass(LONG),
    }
    expected
}

/// A packet leaves by the socket of its mapping, or its sender is told that there is no room for one.
fn send(
    model: &mut Model,
    expected: &mut Expected,
    (c, _, from): Inside,
    mapped: Result<Option<SocketId>, Refused>,
    (to, payload): (SocketAddr, Vec<u8>),
) {
    match mapped {
        Ok(socket) => expected.sent.push((socket, to, payload)),
        Err(Refused) => {
            model.count_port_drop(c, DropReason::Quota);
            let v6 = from.is_ipv6();
            error(expected, c, v6, if v6 { (1, 1) } else { (3, 13) });
        }
    }
}

/// Whether frames pass between two containers.
fn reach(c: usize, d: usize) -> bool {
    c != d && !CONTAINERS[c].isolated && !CONTAINERS[d].isolated
}

fn copy_to_all(model: &mut Model, c: usize, frame: &[u8], expected: &mut Expected) {
    for d in (0..CONTAINERS.len()).filter(|&d| reach(c, d)) {
        model.copy(d, frame, expected);
    }
}

/// Does the step.
pub fn perform(step: Step, network: &mut Network, model: &mut Model) -> Observed {
    network.pass(PAUSE);
    network.full = match step {
        Step::Arrives {
            mapping,
            full: true,
            ..
        } => Some(CONTAINERS[mapping.inside.0].port),
        Step::Neighbour { d, full: true, .. } => Some(CONTAINERS[d].port),
        _ => None,
    };
    network.no_room_at_the_primary = matches!(step, Step::NoRoom { .. });
    if let Some((c, frames)) = step.frames() {
        network.frames(c, &frames);
    }
    match step {
        Step::Arrives {
            mapping,
            remote,
            len,
            ..
        } => {
            let from = far(mapping.inside.2.is_ipv6(), remote);
            network.datagram(mapping.socket.expect("a socket"), from, &data(len));
        }
        Step::EchoAnswered { mapping } => {
            let v6 = mapping.inside.2.is_ipv6();
            let reply = [if v6 { 129 } else { 0 }, 0, 0, 0, 9, 9, 0, 1, b'p'];
            let from = SocketAddr::new(far(v6, 0).ip(), 0);
            network.datagram(mapping.socket.expect("a socket"), from, &reply);
        }
        Step::Client { n, len } => network.datagram(Network::PUBLISHED, client(n), &data(len)),
        Step::Connect { c, .. } if model.connected => network.refuse(c),
        Step::Rest => network.pass(REST),
        Step::Pass => network.pass(LONG),
        _ => {}
    }
    let observed = network.observed();
    model.opened(network.newest_socket());
    observed
}
