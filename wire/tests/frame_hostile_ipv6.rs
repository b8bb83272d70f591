//! IPv6 packets that lie, one refusal a test, and beside each the honest packet it resembles.

use std::net::Ipv6Addr;

use cnet_testkit::packets::*;
use cnet_wire::{DropReason, Fragment};

fn from(src: Ipv6Addr, next: u8, data: &[u8]) -> Vec<u8> {
    ip_frame(&v6_with(next, src, B6, data))
}

#[test]
fn lengths_version_and_hop_limit() {
    let good = v6(17, &udp(1, 2, &[0; 20]));
    let changed = |at: usize, value: u8| {
        let mut p = good.clone();
        p[at] = value;
        frame(MAC_B, MAC_A, 0x86dd, &p)
    };
    assert_eq!(header(&changed(5, 20)).end, ETH + 60);
    assert_eq!(refused(&changed(5, 29)), DropReason::BadIpHeader);
    assert_eq!(refused(&changed(4, 1)), DropReason::BadIpHeader);
    assert_eq!(refused(&changed(0, 0x40)), DropReason::BadIpHeader);
    assert_eq!(refused(&changed(7, 0)), DropReason::TtlExpired);
    let mut tos = good.clone();
    tos[0..2].copy_from_slice(&[0x6b, 0x80]);
    assert_eq!(header(&ip_frame(&tos)).tos, 0xb8);
    let short = frame(MAC_B, MAC_A, 0x86dd, &good[..39]);
    assert_eq!(refused(&short), DropReason::BadIpHeader);
}

#[test]
fn sources() {
    let d = udp(1, 2, &[]);
    for src in [
        "ff02::1",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
    ] {
        let f = from(src.parse().unwrap(), 17, &d);
        assert_eq!(refused(&f), DropReason::MartianSource, "{src}");
    }
    assert_eq!(refused(&from(B6, 17, &d)), DropReason::Land);
    let unspecified = Ipv6Addr::UNSPECIFIED;
    for kind in [131, 132, 133, 135, 143] {
        header(&from(unspecified, 58, &icmp(kind, 0, &[0; 20])));
    }
    for kind in [128, 134, 136, 137] {
        let f = from(unspecified, 58, &icmp(kind, 0, &[0; 20]));
        assert_eq!(refused(&f), DropReason::MartianSource, "{kind}");
    }
    let first = fragment6(58, 0, true, &icmp(143, 0, &[0; 20]));
    let reason = refused(&from(unspecified, 44, &first));
    assert_eq!(reason, DropReason::MartianSource);
    // MLD goes with a router alert before it (RFC 2710).
    let mut report = extension(58, 1, &icmp(143, 0, &[0; 4]));
    report[2..8].copy_from_slice(&[5, 2, 0, 0, 1, 0]);
    let h = header(&from(unspecified, 0, &report));
    assert_eq!((h.protocol, h.l4), (58, ETH + 48));
}

#[test]
fn extension_headers_in_moderation() {
    let d = udp(1, 2, &[]);
    let chain = |n: usize, units: u8| {
        let mut data = extension(17, units, &d);
        for _ in 1..n {
            data = extension(60, units, &data);
        }
        from(A6, 60, &data)
    };
    assert_eq!(header(&chain(8, 4)).l4, ETH + 40 + 256);
    assert_eq!(refused(&chain(9, 1)), DropReason::BadExtensionHeader);
    assert_eq!(refused(&chain(8, 5)), DropReason::BadExtensionHeader);
    header(&from(A6, 0, &extension(60, 1, &extension(17, 1, &d))));
    let late = from(A6, 60, &extension(0, 1, &extension(17, 1, &d)));
    assert_eq!(refused(&late), DropReason::BadExtensionHeader);
    let twice = from(A6, 0, &extension(0, 1, &extension(17, 1, &d)));
    assert_eq!(refused(&twice), DropReason::BadExtensionHeader);
}

#[test]
fn extension_headers_cut_short_or_overfull() {
    for data in [vec![], vec![17, 0, 1], vec![17, 1, 1, 4, 0, 0, 0, 0]] {
        let f = from(A6, 60, &data);
        assert_eq!(refused(&f), DropReason::BadExtensionHeader);
    }
    let mut past = extension(17, 1, &udp(1, 2, &[]));
    past[3] = 5;
    assert_eq!(
        refused(&from(A6, 60, &past)),
        DropReason::BadExtensionHeader
    );
    let mut no_length = extension(17, 1, &udp(1, 2, &[]));
    no_length[2..8].copy_from_slice(&[0, 0, 0, 0, 0, 5]);
    assert_eq!(
        refused(&from(A6, 0, &no_length)),
        DropReason::BadExtensionHeader
    );
}

#[test]
fn routing_headers() {
    let d = udp(1, 2, &[]);
    let routing = |kind: u8, left: u8| {
        let mut data = extension(17, 1, &d);
        data[2..4].copy_from_slice(&[kind, left]);
        from(A6, 43, &data)
    };
    assert_eq!(refused(&routing(0, 0)), DropReason::IpOption);
    assert_eq!(refused(&routing(4, 1)), DropReason::IpOption);
    assert_eq!(header(&routing(4, 0)).protocol, 17);
}

#[test]
fn unknown_headers_end_the_chain() {
    for next in [50, 51, 59, 135, 255] {
        assert_eq!(header(&from(A6, next, &[0; 8])).protocol, next);
    }
}

#[test]
fn fragments() {
    let d = udp(1, 2, &[0; 8]);
    let h = header(&from(A6, 44, &fragment6(17, 0, true, &d)));
    let expected = Fragment {
        id: 0xdead_beef,
        offset: 0,
        more: true,
    };
    assert_eq!((h.fragment, h.l4), (Some(expected), ETH + 48));
    let bad = [
        ("ragged", fragment6(17, 0, true, &d[..12])),
        ("empty", fragment6(17, 8, false, &[])),
        ("past the end", fragment6(17, 65528, false, &[0; 8])),
        ("header elsewhere", fragment6(6, 0, true, &tcp(&[])[..16])),
        ("rewrites TCP", fragment6(6, 8, false, &[0; 16])),
        (
            "nested",
            fragment6(44, 0, false, &fragment6(17, 0, false, &d)),
        ),
    ];
    for (what, data) in bad {
        assert_eq!(
            refused(&from(A6, 44, &data)),
            DropReason::BadFragment,
            "{what}"
        );
    }
    // Headers that the reassembled packet keeps count towards its length.
    let last = |len: usize| fragment6(17, 65520, false, &vec![0; len]);
    header(&from(A6, 44, &last(15)));
    header(&from(A6, 60, &extension(44, 1, &last(7))));
    let past = from(A6, 60, &extension(44, 1, &last(8)));
    assert_eq!(refused(&past), DropReason::BadFragment);
    let hidden = fragment6(60, 0, true, &extension(58, 1, &icmp(134, 0, &[0; 12])));
    assert_eq!(
        refused(&from(A6, 44, &hidden)),
        DropReason::BadExtensionHeader
    );
}

/// RFC 6946: an atomic fragment is a whole datagram and stands alone.
#[test]
fn atomic_fragments() {
    let h = header(&from(A6, 44, &fragment6(17, 0, false, &udp(1, 2, &[]))));
    assert_eq!((h.fragment, h.protocol, h.l4), (None, 17, ETH + 48));
}

/// RFC 6980: fragmented neighbour discovery is a way past RA guards.
#[test]
fn fragmented_neighbour_discovery() {
    for kind in 133..=137 {
        for more in [false, true] {
            let data = fragment6(58, 0, more, &icmp(kind, 0, &[0; 20]));
            assert_eq!(refused(&from(A6, 44, &data)), DropReason::BadFragment);
        }
    }
    header(&from(
        A6,
        44,
        &fragment6(58, 0, true, &icmp(128, 0, &[0; 20])),
    ));
}
