//! Any bytes may come in, none may hurt; honest packets read as an independent parser reads them.

use std::net::IpAddr;

use cnet_testkit::packets::*;
use cnet_wire::vnet::{self, VNET_HDR_LEN, VnetHeader};
use cnet_wire::{Frame, IpHeader, L3};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::collection::vec;
use proptest::prelude::*;

/// What holds for every frame that was accepted.
fn check_invariants(frame: &Frame<'_>) {
    let L3::Ip(ip) = &frame.l3 else {
        assert!(frame.arp().is_some());
        return;
    };
    assert!(frame.arp().is_none());
    assert!(ETH + 20 <= ip.l4 && ip.l4 <= ip.end && ip.end <= frame.bytes.len());
    assert_eq!(frame.l4(ip).len(), ip.end - ip.l4);
    assert_eq!(frame.ip_packet(ip).len(), ip.end - ETH);
    assert_eq!(ip.src.is_ipv4(), ip.dst.is_ipv4());
    assert!(ip.hop_limit > 0);
    if let Some(f) = ip.fragment {
        assert!(f.offset as usize + frame.l4(ip).len() <= 65535);
        assert!(f.offset > 0 || f.more);
    }
    if frame.vnet.needs_csum() {
        let field = usize::from(frame.vnet.csum_start) + usize::from(frame.vnet.csum_offset);
        assert!(field >= ip.l4 && field + 2 <= ip.end);
    }
    frame.l4_checksum_ok(ip);
}

/// Honest frames of every kind that the mutations start from.
fn seeds() -> Vec<Vec<u8>> {
    let d = udp(4000, 53, &[1; 30]);
    let seeds = [
        v4(17, &d),
        v4(6, &tcp(&[7; 40])),
        v4(1, &icmp(8, 0, &[0; 20])),
        v4_with(17, A4, B4, &[148, 4, 0, 0], 0x2000, &udp(1, 2, &[0; 8])),
        v6(17, &d),
        v6(6, &tcp(&[7; 40])),
        v6(58, &icmp(135, 0, &[0; 20])),
        v6(0, &extension(60, 2, &extension(17, 1, &d))),
        v6(44, &fragment6(17, 0, true, &udp(1, 2, &[0; 8]))),
    ];
    let mut seeds: Vec<_> = seeds.iter().map(|p| ip_frame(p)).collect();
    seeds.push(frame(MAC_B, MAC_A, 0x0806, &arp(1, MAC_A, A4, MAC_B, B4)));
    seeds.push(with_vnet(
        ip_frame(&v4(6, &tcp(&[0; 4000]))),
        VnetHeader {
            flags: vnet::F_NEEDS_CSUM,
            gso_type: vnet::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
        },
    ));
    seeds
}

#[test]
fn seeds_are_honest() {
    for seed in seeds() {
        check_invariants(&Frame::parse(&seed, MTU).unwrap());
    }
}

/// Transport kinds the oracle builds.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Udp,
    Echo,
}

fn build(v4: bool, kind: Kind, src: [u8; 16], dst: [u8; 16], ttl: u8, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(MAC_A.0, MAC_B.0);
    let mut frame = vec![0; VNET_HDR_LEN];
    let first4 = |a: [u8; 16]| [a[0], a[1], a[2], a[3]];
    let ip = if v4 {
        link.ipv4(first4(src), first4(dst), ttl)
    } else {
        link.ipv6(src, dst, ttl)
    };
    match kind {
        Kind::Tcp => ip.tcp(1000, 2000, 3, 4).write(&mut frame, payload),
        Kind::Udp => ip.udp(1000, 2000).write(&mut frame, payload),
        Kind::Echo if v4 => ip.icmpv4_echo_request(1, 2).write(&mut frame, payload),
        Kind::Echo => ip.icmpv6_echo_request(1, 2).write(&mut frame, payload),
    }
    .unwrap();
    frame
}

/// The same description, as the oracle sees it.
fn oracle(frame: &[u8]) -> IpHeader {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (at, (src, dst, hop_limit, tos, dont_fragment)) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(s) => {
            let h = s.header();
            let src = IpAddr::V4(h.source_addr());
            let dst = IpAddr::V4(h.destination_addr());
            let tos = (h.dcp().value() << 2) | h.ecn().value();
            (s.payload(), (src, dst, h.ttl(), tos, h.dont_fragment()))
        }
        NetSlice::Ipv6(s) => {
            let h = s.header();
            let src = IpAddr::V6(h.source_addr());
            let dst = IpAddr::V6(h.destination_addr());
            let tos = h.traffic_class();
            (s.payload(), (src, dst, h.hop_limit(), tos, true))
        }
        NetSlice::Arp(_) => panic!("not IP"),
    };
    assert!(matches!(
        sliced.transport,
        Some(
            TransportSlice::Tcp(_)
                | TransportSlice::Udp(_)
                | TransportSlice::Icmpv4(_)
                | TransportSlice::Icmpv6(_)
        )
    ));
    let l4 = at.payload.as_ptr() as usize - frame.as_ptr() as usize;
    IpHeader {
        src,
        dst,
        protocol: at.ip_number.0,
        hop_limit,
        tos,
        dont_fragment,
        l4,
        end: l4 + at.payload.len(),
        fragment: None,
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Tcp), Just(Kind::Udp), Just(Kind::Echo)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..200), mtu in 0usize..2000) {
        if let Ok(frame) = Frame::parse(&bytes, mtu) {
            check_invariants(&frame);
        }
    }

    #[test]
    fn arbitrary_payloads_do_no_harm(
        vnet in any::<[u8; VNET_HDR_LEN]>(),
        plain in any::<bool>(),
        ethertype in prop_oneof![Just(0x0800u16), Just(0x86dd), Just(0x0806)],
        mut payload in vec(any::<u8>(), 0..400),
    ) {
        if let Some(b) = payload.first_mut() {
            *b = if ethertype == 0x86dd { 0x60 } else { 0x40 | (*b & 0x0f) };
        }
        if ethertype == 0x0800 && payload.len() >= 20 {
            fix_v4(&mut payload);
        }
        let mut f = frame(MAC_B, MAC_A, ethertype, &payload);
        if !plain {
            f[..VNET_HDR_LEN].copy_from_slice(&vnet);
        }
        if let Ok(frame) = Frame::parse(&f, MTU) {
            check_invariants(&frame);
        }
    }

    #[test]
    fn mutated_frames_do_no_harm(
        seed in 0usize..11,
        changes in vec((0usize..120, any::<u8>()), 0..6),
        cut in 0usize..5000,
        repair in any::<bool>(),
    ) {
        let mut f = seeds()[seed].clone();
        for (at, value) in changes {
            if let Some(b) = f.get_mut(at) {
                *b = value;
            }
        }
        f.truncate(cut);
        let packet = VNET_HDR_LEN + ETH;
        // With the sum repaired, the mutation reaches the checks behind it.
        if repair && f.len() >= packet + 20 && f[packet] >> 4 == 4 {
            fix_v4(&mut f[packet..]);
        }
        if let Ok(frame) = Frame::parse(&f, MTU) {
            check_invariants(&frame);
        }
    }

    #[test]
    fn agrees_with_etherparse(
        v4 in any::<bool>(),
        kind in kinds(),
        src in any::<[u8; 16]>(),
        dst in any::<[u8; 16]>(),
        ttl in 1u8..,
        payload in vec(any::<u8>(), 0..1000),
        padding in 0usize..20,
    ) {
        // An ordinary unicast source in either family.
        let mut src = src;
        src[0] = 0x20 | (src[0] & 0x1f);
        prop_assume!(src[..4] != dst[..4]);
        let mut f = build(v4, kind, src, dst, ttl, &payload);
        let expected = oracle(&f[VNET_HDR_LEN..]);
        f.resize(f.len() + padding, 0xaa);
        let frame = Frame::parse(&f, MTU).unwrap();
        check_invariants(&frame);
        prop_assert_eq!(frame.l3, L3::Ip(expected));
        prop_assert_eq!((frame.src, frame.dst), (MAC_A, MAC_B));
        prop_assert!(frame.l4_checksum_ok(&expected));
    }

    #[test]
    fn a_flipped_bit_breaks_the_checksum(
        v4 in any::<bool>(),
        kind in kinds(),
        payload in vec(any::<u8>(), 1..200),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let addr = |last: u8| [10, 0, 2, last, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let mut f = build(v4, kind, addr(1), addr(2), 64, &payload);
        let start = f.len() - payload.len();
        f[start + at.index(payload.len())] ^= 1 << bit;
        let frame = Frame::parse(&f, MTU).unwrap();
        let ip = header(&f);
        prop_assert!(!frame.l4_checksum_ok(&ip));
        let trusted = with_vnet(f.clone(), VnetHeader { flags: vnet::F_DATA_VALID, ..VnetHeader::default() });
        prop_assert!(Frame::parse(&trusted, MTU).unwrap().l4_checksum_ok(&ip));
    }
}

#[test]
fn udp_without_checksum_is_for_ipv4_alone() {
    for (packet, fine) in [
        (v4(17, &udp(1, 2, &[9; 9])), true),
        (v6(17, &udp(1, 2, &[9; 9])), false),
    ] {
        let f = ip_frame(&packet);
        let ip = header(&f);
        assert_eq!(Frame::parse(&f, MTU).unwrap().l4_checksum_ok(&ip), fine);
    }
}

#[test]
fn truncated_or_lying_transport_headers_have_no_right_checksum() {
    let mut long = udp(1, 2, &[9; 9]);
    long[5] = 18;
    let mut short = udp(1, 2, &[9; 9]);
    short[5] = 7;
    for (next, data) in [
        (17, &long[..]),
        (17, &short[..]),
        (17, &[0; 7][..]),
        (6, &[][..]),
        (1, &[][..]),
    ] {
        let f = ip_frame(&v4(next, data));
        let ip = header(&f);
        assert!(
            !Frame::parse(&f, MTU).unwrap().l4_checksum_ok(&ip),
            "{next} {data:?}"
        );
    }
    let f = ip_frame(&v4(132, &[1, 2, 3]));
    assert_eq!(header(&f).protocol, 132);
    assert!(Frame::parse(&f, MTU).unwrap().l4_checksum_ok(&header(&f)));
}
