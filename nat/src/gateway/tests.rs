//! The gateway as a whole: what it owns, what it refuses, and that nothing makes it panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_wire::vnet::{F_NEEDS_CSUM, GSO_UDP_L4, VnetHeader};
use cnet_wire::{DropReason, Frame, MacAddr};
use proptest::prelude::*;

use super::testing::*;
use super::{GatewayCounters, Quirks};

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

#[test]
fn owns_its_addresses_and_the_groups_it_listens_to() {
    let gw = Bench::new().gw;
    assert_eq!(gw.link_local(), GW_LL);
    let own = [
        "10.0.2.2",
        "10.0.2.3",
        "10.0.2.255",
        "255.255.255.255",
        "fd00::2",
        "fd00::3",
        "fe80::5055:aff:fe00:202",
        "ff02::1",
        "ff02::2",
        "ff02::1:2",
        "ff02::1:ff00:2",
        "ff02::1:ff00:3",
        "ff02::1:ff00:202",
    ];
    for a in own {
        assert!(gw.owns(ip(a)), "{a}");
    }
    let others = [
        "10.0.2.4",
        "10.0.2.100",
        "10.0.3.255",
        "224.0.0.1",
        "fd00::4",
        "fe80::1",
        "ff02::16",
        "ff02::1:ff00:4",
    ];
    for a in others {
        assert!(!gw.owns(ip(a)), "{a}");
    }
    for (a, is) in [("10.0.2.3", true), ("10.0.2.2", false), ("fd00::3", true)] {
        assert_eq!(gw.is_dns(ip(a)), is, "{a}");
    }
}

#[test]
fn with_the_quirks_of_slirp4netns_dns_is_silent_where_it_is_off_and_the_gateway_is_fe80_2() {
    let mut cfg = config();
    cfg.quirks = Quirks {
        silent_dns: true,
        ..Quirks::slirp4netns()
    };
    let mut bench = Bench::with(cfg);
    assert_eq!(IpAddr::V6(bench.gw.link_local()), ip("fe80::2"));
    assert!(bench.gw.owns(ip("fe80::2")) && bench.gw.is_unreachable(ip("10.0.2.3")));
    assert!(bench.gw.owns(ip("10.0.2.3")) && bench.gw.is_dns(ip("10.0.2.3")));
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x07example\x03org\x00\x00\x01\x00\x01");
    let client = SocketAddr::from((A4, 4000));
    for (port, expected) in [(53, DropReason::Policy), (54, DropReason::NotServed)] {
        let server = SocketAddr::from((DNS4, port));
        let sent = bench.send(A, &udp(MAC_A, client, server, &query));
        assert_eq!(sent, Err(expected), "port {port}");
    }
    assert_eq!(bench.take_query(), None);
}

#[test]
fn on_link_is_what_a_container_does_not_ask_the_gateway_for() {
    let gw = Bench::new().gw;
    for (a, is) in [
        ("10.0.2.15", true),
        ("10.0.2.2", true),
        ("10.0.3.1", false),
        ("192.0.2.1", false),
        ("fd00::77", true),
        ("fd00:0:0:1::1", false),
        ("fe80::1", true),
        ("2001:db8::1", false),
    ] {
        assert_eq!(gw.is_on_link(ip(a)), is, "{a}");
    }
}

#[test]
fn a_family_that_is_off_is_not_there() {
    let mut cfg = config();
    cfg.v6 = None;
    let mut bench = Bench::with(cfg);
    for a in ["ff02::1", "fd00::2", "fe80::5055:aff:fe00:202"] {
        assert!(!bench.gw.owns(ip(a)), "{a}");
    }
    let frame = icmp6(MAC_A, (A6, GW6), 64, (128, 0, [0; 4]), b"");
    assert_eq!(bench.send(A, &frame), Err(DropReason::FamilyDisabled));
    let mut cfg = config();
    cfg.v4 = None;
    let mut bench = Bench::with(cfg);
    let frame = icmp4(MAC_A, (A4, GW4), [8, 0, 0, 0, 0, 1, 0, 1], b"");
    assert_eq!(bench.send(A, &frame), Err(DropReason::FamilyDisabled));
    bench.assert_silent();
}

#[test]
fn what_is_not_served_is_said_to_be_not_served() {
    let mut bench = Bench::new();
    let client = SocketAddr::from((A4, 4000));
    let cases = [
        (SocketAddr::from((GW4, 53)), DropReason::NotServed),
        (SocketAddr::from((DNS4, 54)), DropReason::NotServed),
        (SocketAddr::from((GW4, 0)), DropReason::NotServed),
        (SocketAddr::from(([10, 0, 2, 9], 53)), DropReason::NotServed),
        (SocketAddr::from((A4, 53)), DropReason::Land),
    ];
    for (to, reason) in cases {
        assert_eq!(
            bench.send(A, &udp(MAC_A, client, to, &[0; 12])),
            Err(reason)
        );
    }
    let from_us = SocketAddr::from((GW4, 53));
    let to = SocketAddr::from((DNS4, 53));
    let frame = udp(MAC_A, from_us, to, &[0; 12]);
    assert_eq!(bench.send(A, &frame), Err(DropReason::Spoofed));
    let mut frame = udp(MAC_A, client, to, &[0; 12]);
    frame[14 + 20 + 6] ^= 1;
    assert_eq!(bench.send(A, &frame), Err(DropReason::BadChecksum));
    let mut frame = udp(MAC_A, client, to, &[0; 12]);
    frame[14 + 9] = 132; // SCTP
    let sum = u16::from_be_bytes([frame[24], frame[25]]).wrapping_sub(132 - 17);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(bench.send(A, &frame), Err(DropReason::UnknownProtocol));
    bench.assert_silent();
    assert_eq!(bench.gw.counters(), GatewayCounters::default());
    assert_eq!(bench.gw.poll_timeout(), None);
}

#[test]
fn solicits_on_every_port_within_its_rate() {
    let mut bench = Bench::new();
    let solicit = |bench: &mut Bench, address| {
        let (now, stations) = (bench.now, &bench.stations);
        let gw = &mut bench.gw;
        with_io(&mut bench.wire, |io| gw.solicit(now, address, stations, io));
    };
    solicit(&mut bench, B4.into());
    let sent: Vec<_> = bench.wire.0.drain(..).collect();
    assert_eq!(sent.iter().map(|s| s.0).collect::<Vec<_>>(), [A, B]);
    let arp = smoltcp::wire::ArpPacket::new_checked(&sent[0].1[14..]).unwrap();
    assert_eq!(arp.operation(), smoltcp::wire::ArpOperation::Request);
    assert_eq!(arp.source_protocol_addr(), GW4.octets());
    assert_eq!(arp.target_protocol_addr(), B4.octets());
    assert_eq!(sent[0].1[..6], MacAddr::BROADCAST.0);
    solicit(&mut bench, DNS4.into());
    solicit(&mut bench, Ipv4Addr::BROADCAST.into());
    bench.assert_silent();
    for _ in 0..10_000 {
        solicit(&mut bench, B6.into());
    }
    assert_eq!(bench.wire.0.len(), 2 * 99);
    assert_eq!(bench.gw.counters().ndp.solicitations, 198);
}

/// A gateway and frames that are nearly right.
fn mutated(bench: &mut Bench, buf: &[u8]) {
    bench.now = cnet_wire::time::Instant::from_millis(5_000);
    if let Ok(frame) = Frame::parse(buf, 65535) {
        let _ = handle_frame(bench, A, &frame);
    }
    while bench.take_query().is_some() {}
    bench.wire.0.clear();
}

/// Frames of every protocol the gateway speaks.
fn samples() -> Vec<Vec<u8>> {
    let s4 = |p| SocketAddr::from((A4, p));
    let s6 = |a: Ipv6Addr, p| SocketAddr::from((a, p));
    let mut dhcp = vec![0; 240];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp[236..].copy_from_slice(&[99, 130, 83, 99]);
    dhcp.extend([53, 1, 1, 61, 3, 1, 2, 3, 50, 4, 10, 0, 2, 100, 255]);
    let all_dhcp = super::addresses::ALL_DHCP_SERVERS;
    let dhcp6 = [
        &[1, 0, 0, 1, 0, 1, 0, 10, 0, 3, 0, 1, 2, 2, 2, 2, 2, 2][..],
        &[0, 3, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 5, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0; 16],
    ]
    .concat();
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    query.extend(b"\x01a\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00");
    let ns = [&GW6.octets()[..], &[1, 1], &MAC_A.0].concat();
    let na = [&A_LL.octets()[..], &[2, 1], &MAC_A.0].concat();
    let mut arp = [&GATEWAY.0[..], &MAC_A.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    arp.extend(MAC_A.0);
    arp.extend(A4.octets());
    arp.extend([0; 6]);
    arp.extend(GW4.octets());
    let mut syn = Vec::new();
    etherparse::PacketBuilder::ethernet2(MAC_A.0, GATEWAY.0)
        .ipv4(A4.octets(), DNS4.octets(), 64)
        .tcp(4000, 53, 7, 1000)
        .syn()
        .options_raw(&[2, 4, 5, 0xb4, 3, 3, 7, 0])
        .unwrap()
        .write(&mut syn, b"")
        .unwrap();
    vec![
        arp,
        icmp4(MAC_A, (A4, GW4), [8, 0, 0, 0, 0, 1, 0, 1], b"payload"),
        icmp6(MAC_A, (A6, GW6), 255, (128, 0, [0; 4]), b"payload"),
        icmp6(MAC_A, (A_LL, GW6), 255, (135, 0, [0; 4]), &ns),
        icmp6(MAC_A, (A_LL, GW6), 255, (136, 0, [0x60, 0, 0, 0]), &na),
        icmp6(MAC_A, (A_LL, GW6), 255, (133, 0, [0; 4]), &ns[16..]),
        udp(MAC_A, s4(68), SocketAddr::from((GW4, 67)), &dhcp),
        udp(MAC_A, s6(A_LL, 546), s6(all_dhcp, 547), &dhcp6),
        udp(MAC_A, s4(4000), SocketAddr::from((DNS4, 53)), &query),
        syn,
    ]
}

#[test]
fn the_samples_are_served_and_each_is_counted_once() {
    // In the order of the samples; advertisements and segments are not counted as such.
    let counted = [
        Some("arp_replies"),
        Some("echo_replies"),
        Some("echo_replies"),
        Some("neighbour_advertisements"),
        None,
        Some("router_advertisements"),
        Some("dhcpv4_replies"),
        Some("dhcpv6_replies"),
        Some("dns_udp_queries"),
        None,
    ];
    let samples = samples();
    assert_eq!(samples.len(), counted.len());
    for (sample, name) in samples.iter().zip(counted) {
        let mut bench = Bench::new();
        assert_eq!(bench.send(A, sample), Ok(()));
        let changed: Vec<_> = bench
            .gw
            .counters()
            .iter()
            .filter(|(_, n)| *n != 0)
            .collect();
        let want: Vec<_> = name.map(|name| (name, 1)).into_iter().collect();
        assert_eq!(changed, want);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_make_a_panic(
        frames in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..200), 0..20,
        ),
    ) {
        let mut bench = Bench::new();
        for frame in frames {
            mutated(&mut bench, &frame);
        }
    }

    /// Checksums are declared verified, so that mutations get past them.
    #[test]
    fn mutated_frames_never_make_a_panic(
        mutations in proptest::collection::vec(
            (any::<prop::sample::Index>(),
             proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
             any::<prop::sample::Index>()),
            1..40,
        ),
    ) {
        let mut bench = Bench::new();
        let samples = samples();
        let vnet = VnetHeader { flags: 2, ..VnetHeader::default() };
        for (which, bytes, cut) in mutations {
            let mut frame = which.get(&samples).clone();
            for (at, value) in bytes {
                let at = 14 + at.index(frame.len() - 14);
                frame[at] = value;
            }
            if frame[12..14] == [8, 0] {
                fix_ipv4(&mut frame, cut);
            }
            let buf = [&vnet.encode()[..], &frame].concat();
            mutated(&mut bench, &buf);
        }
    }
}

/// Cuts an IPv4 packet somewhere and makes its length and header checksum right again.
fn fix_ipv4(frame: &mut Vec<u8>, cut: prop::sample::Index) {
    frame[14] = 0x45;
    let len = 21 + cut.index(frame.len() - 14 - 20);
    frame.truncate(14 + len);
    frame[16..18].copy_from_slice(&(len as u16).to_be_bytes());
    frame[20..22].fill(0);
    frame[24..26].fill(0);
    let sum = cnet_wire::checksum::finish(0, &frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn queries_in_a_super_frame_are_all_taken() {
    let mut bench = Bench::new();
    let payload = [[0u8; 12], [0; 12], [0; 12]].concat();
    let client = SocketAddr::from((A4, 4000));
    let mut frame = udp(MAC_A, client, SocketAddr::from((DNS4, 53)), &payload);
    frame[40..42].fill(0);
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 42,
        gso_size: 12,
        csum_start: 34,
        csum_offset: 6,
    };
    assert_eq!(bench.send_vnet(A, vnet, &frame), Ok(()));
    assert_eq!(bench.gw.counters().dns.queries, 3);
    assert_eq!(bench.take_query().unwrap().message.len(), 12);
}
