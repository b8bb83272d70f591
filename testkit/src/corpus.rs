//! Valid frames of every family the core reads, to be mutated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_wire::MacAddr;

use crate::addresses::{DNS_V4, DNS_V6, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, IPV4, IPV6, MAC};
use crate::frames::{self, Tcp, flag};
use crate::host::simulated::CLOSED_PORT;

/// The container's and a far address in one family.
fn ends(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        let far = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
        (IPV6.into(), far.into())
    } else {
        (IPV4.into(), Ipv4Addr::new(203, 0, 113, 7).into())
    }
}

/// A frame of each kind.
pub fn all() -> Vec<Vec<u8>> {
    let mut all = vec![
        frames::arp(1, IPV4, GATEWAY_V4),
        frames::arp(1, IPV4, IPV4),
        frames::arp(2, IPV4, GATEWAY_V4),
        frames::arp(1, GATEWAY_V4, GATEWAY_V4),
        frames::ethernet(GATEWAY_MAC, 0x88cc, &[0; 60]),
        frames::ethernet(MacAddr::BROADCAST, 0x8100, &[0, 1, 8, 0, 0x45, 0, 0, 20]),
    ];
    all.extend(dhcp());
    all.extend(discovery());
    for v6 in [false, true] {
        all.extend(tcp(v6));
        all.extend(udp(v6));
        all.extend(icmp(v6));
    }
    all.extend(extended());
    all
}

fn tcp(v6: bool) -> Vec<Vec<u8>> {
    let (here, far) = ends(v6);
    let (from, to) = (SocketAddr::new(here, 4000), SocketAddr::new(far, 80));
    let options = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let sack = [
        1, 1, 5, 18, 0, 0, 9, 0, 0, 0, 10, 0, 0, 0, 11, 0, 0, 0, 12, 0,
    ];
    let segment = |flags, options: &'static [u8], payload: &'static [u8]| Tcp {
        from,
        to,
        seq: 1000,
        ack: 2000,
        flags,
        window: 1000,
        urgent: 0,
        options,
        payload,
    };
    let options: &'static [u8] = Vec::leak(options.to_vec());
    let sack: &'static [u8] = Vec::leak(sack.to_vec());
    let mut all: Vec<Vec<u8>> = [
        segment(flag::SYN, options, &[]),
        segment(flag::SYN | flag::ACK, options, &[]),
        segment(flag::ACK, &[], &[]),
        segment(flag::ACK, sack, &[]),
        segment(flag::ACK | flag::PSH, &[], b"GET / HTTP/1.0\r\n\r\n"),
        segment(flag::ACK | flag::URG, &[], b"urgent"),
        segment(flag::ACK | flag::FIN, &[], b"bye"),
        segment(flag::RST, &[], &[]),
    ]
    .iter()
    .map(Tcp::frame)
    .collect();
    // To the gateway's DNS, over TCP, and to the gateway itself.
    for address in gateway_addresses(v6) {
        for port in [53, 80] {
            let to = SocketAddr::new(address, port);
            let syn = Tcp {
                to,
                ..segment(flag::SYN, options, &[])
            };
            all.push(syn.frame());
        }
    }
    all
}

fn gateway_addresses(v6: bool) -> [IpAddr; 2] {
    if v6 {
        [GATEWAY_V6.into(), DNS_V6.into()]
    } else {
        [GATEWAY_V4.into(), DNS_V4.into()]
    }
}

/// A DNS query for the A record of "a.example".
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";

fn udp(v6: bool) -> Vec<Vec<u8>> {
    let (here, far) = ends(v6);
    let from = SocketAddr::new(here, 5000);
    let to = |ip, port| SocketAddr::new(ip, port);
    let long = frames::udp(from, to(far, 7), &[7; 4000]);
    let mut all = vec![
        frames::udp(from, to(far, 7), b"hello"),
        frames::udp(from, to(far, 7), b""),
        frames::udp(from, to(far, CLOSED_PORT), b"hello"),
        frames::udp(from, to(far, 123), &[1; 1400]),
    ];
    all.extend(frames::fragments(&long, 1400));
    all.extend(frames::fragments(&long, 8).into_iter().take(3));
    for address in gateway_addresses(v6) {
        all.push(frames::udp(from, to(address, 53), QUERY));
        all.push(frames::udp(from, to(address, 9), b"nobody"));
    }
    all
}

fn icmp(v6: bool) -> Vec<Vec<u8>> {
    let (here, far) = ends(v6);
    let (echo, unreachable, too_big) = if v6 { (128, 1, 2) } else { (8, 3, 3) };
    let request = [echo, 0, 0, 0, 0, 9, 0, 1, b'p', b'i', b'n', b'g'];
    let mut all = vec![
        frames::icmp(here, far, 64, &request),
        frames::icmp(here, far, 1, &request),
        frames::icmp(here, gateway_addresses(v6)[0], 64, &request),
    ];
    // Errors that quote a packet of the far end to us.
    let back = frames::udp(
        SocketAddr::new(far, 7),
        SocketAddr::new(here, 5000),
        b"hello",
    );
    let quote = &back[24..];
    for (kind, code) in [(unreachable, 3), (too_big, 4), (11, 0), (3, 0)] {
        let mut error = vec![kind, code, 0, 0, 0, 0, 5, 0];
        error.extend_from_slice(quote);
        all.push(frames::icmp(here, far, 64, &error));
    }
    let long = frames::icmp(here, far, 64, &[&request[..], &[3; 3000]].concat());
    all.extend(frames::fragments(&long, 1400));
    all
}

/// Neighbour and router discovery, and group membership.
fn discovery() -> Vec<Vec<u8>> {
    let here: IpAddr = IPV6.into();
    let link_layer = [&[1, 1][..], &MAC.0].concat();
    let message = |kind: u8, target: Option<Ipv6Addr>, options: &[u8]| {
        let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        body.extend(target.iter().flat_map(Ipv6Addr::octets));
        body.extend_from_slice(options);
        body
    };
    let all_nodes: IpAddr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into();
    let all_routers: IpAddr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).into();
    let group: IpAddr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2).into();
    vec![
        frames::icmp(
            here,
            group,
            255,
            &message(135, Some(GATEWAY_V6), &link_layer),
        ),
        frames::icmp(
            here,
            GATEWAY_V6.into(),
            255,
            &message(135, Some(GATEWAY_V6), &link_layer),
        ),
        frames::icmp(
            here,
            GATEWAY_V6.into(),
            255,
            &message(136, Some(IPV6), &link_layer),
        ),
        frames::icmp(here, all_routers, 255, &message(133, None, &link_layer)),
        frames::icmp(here, all_nodes, 255, &message(134, None, &link_layer)),
        frames::icmp(
            here,
            GATEWAY_V6.into(),
            255,
            &message(137, Some(IPV6), &link_layer),
        ),
        frames::icmp(here, all_routers, 1, &message(143, None, &[])),
    ]
}

fn dhcp() -> Vec<Vec<u8>> {
    let message = |kind: u8| {
        let mut b = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0];
        b.extend_from_slice(&[0; 16]);
        b.extend_from_slice(&MAC.0);
        b.extend_from_slice(&[0; 202]);
        b.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind, 55, 3, 1, 3, 6]);
        b.extend_from_slice(&[50, 4, 10, 0, 2, 100, 12, 2, b'c', b'1', 255]);
        b
    };
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 68);
    let server = SocketAddr::new(Ipv4Addr::BROADCAST.into(), 67);
    let mut all: Vec<Vec<u8>> = [1, 3, 4, 7, 8]
        .iter()
        .map(|&kind| {
            let mut frame = frames::udp(any, server, &message(kind));
            frame[10..16].fill(0xff);
            frame
        })
        .collect();
    let here = SocketAddr::new(IPV6.into(), 546);
    let servers = SocketAddr::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2).into(), 547);
    for kind in [1, 3, 5, 8, 11] {
        let mut b = vec![kind, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1];
        b.extend_from_slice(&MAC.0);
        b.extend_from_slice(&[0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        b.extend_from_slice(&[0, 6, 0, 4, 0, 23, 0, 24, 0, 8, 0, 2, 0, 0]);
        all.push(frames::udp(here, servers, &b));
    }
    all
}

/// IPv6 packets with extension headers, and an IPv4 one with options.
fn extended() -> Vec<Vec<u8>> {
    let (here, far) = ends(true);
    let (from, to) = (SocketAddr::new(here, 5000), SocketAddr::new(far, 7));
    let plain = frames::udp(from, to, b"hello");
    let with = |chain: &[u8], first: u8| {
        let mut f = plain[..64].to_vec();
        f[30] = first;
        f.extend_from_slice(chain);
        f.extend_from_slice(&plain[64..]);
        let len = (f.len() - 64) as u16;
        f[28..30].copy_from_slice(&len.to_be_bytes());
        f
    };
    let mut v4 = frames::udp(
        SocketAddr::new(IPV4.into(), 1),
        SocketAddr::new(ends(false).1, 2),
        b"x",
    );
    let rest = v4.split_off(44);
    v4[24] = 0x47;
    v4.extend_from_slice(&[1, 1, 1, 1, 131, 3, 4, 0]);
    v4.extend_from_slice(&rest);
    let len = (v4.len() - 24) as u16;
    v4[26..28].copy_from_slice(&len.to_be_bytes());
    frames::complete_ip(&mut v4);
    vec![
        with(&[17, 0, 1, 4, 0, 0, 0, 0], 0),
        with(&[17, 0, 1, 4, 0, 0, 0, 0], 60),
        with(&[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0], 0),
        with(&[17, 0, 0, 0, 0, 0, 0, 5], 44),
        with(&[17, 0, 4, 0, 0, 0, 0, 0], 43),
        v4,
    ]
}
