//! Frames and IPv4 packets that lie, one refusal a test, and beside each the honest frame it resembles.

use std::net::Ipv4Addr;

use cnet_testkit::packets::*;
use cnet_wire::arp::{ArpPacket, OP_REQUEST};
use cnet_wire::vnet::{self, VNET_HDR_LEN, VnetHeader};
use cnet_wire::{DropReason, Fragment, Frame, MacAddr};

const MF: u16 = 0x2000;

mod link {
    use super::*;

    #[test]
    fn runts() {
        let full = ip_frame(&v4(17, &udp(1, 2, &[])));
        for len in 0..VNET_HDR_LEN + ETH {
            assert_eq!(refused(&full[..len]), DropReason::FrameTooShort, "{len}");
        }
    }

    #[test]
    fn giants_unless_padded_to_the_minimum() {
        let exact = ip_frame(&v4(17, &udp(1, 2, &[0; MTU - 28])));
        header(&exact);
        let over = ip_frame(&v4(17, &udp(1, 2, &[0; MTU - 27])));
        assert_eq!(refused(&over), DropReason::FrameTooLong);
        let mut padded = ip_frame(&v4(17, &udp(1, 2, &[])));
        padded.resize(VNET_HDR_LEN + 60, 0);
        assert!(Frame::parse(&padded, 28).is_ok());
        padded.push(0);
        let reason = Frame::parse(&padded, 28).unwrap_err();
        assert_eq!(reason, DropReason::FrameTooLong);
    }

    #[test]
    fn tags_and_unknown_types() {
        let body = v4(17, &udp(1, 2, &[]));
        for t in [0x8100, 0x88a8, 0x9100] {
            assert_eq!(refused(&frame(MAC_B, MAC_A, t, &body)), DropReason::VlanTag);
        }
        // 0x0026: an 802.3 length, as spanning tree uses it.
        for t in [0x88cc, 0x0026, 0] {
            let reason = refused(&frame(MAC_B, MAC_A, t, &body));
            assert_eq!(reason, DropReason::UnknownEtherType);
        }
    }

    #[test]
    fn source_mac_group_or_zero() {
        let body = v4(17, &udp(1, 2, &[]));
        for src in [
            MacAddr::BROADCAST,
            MacAddr([1, 0, 0x5e, 0, 0, 1]),
            MacAddr([0; 6]),
        ] {
            let reason = refused(&frame(MAC_B, src, 0x0800, &body));
            assert_eq!(reason, DropReason::BadSourceMac);
        }
    }
}

mod offload {
    use super::*;

    const TSO: VnetHeader = VnetHeader {
        flags: vnet::F_NEEDS_CSUM,
        gso_type: vnet::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1460,
        csum_start: 34,
        csum_offset: 16,
    };
    const USO: VnetHeader = VnetHeader {
        gso_type: vnet::GSO_UDP_L4,
        hdr_len: 42,
        csum_offset: 6,
        ..TSO
    };

    fn tcp4() -> Vec<u8> {
        ip_frame(&v4(6, &tcp(&[0; 5000])))
    }

    fn parse(frame: Vec<u8>, h: VnetHeader) -> Result<(), DropReason> {
        Frame::parse(&with_vnet(frame, h), MTU).map(|_| ())
    }

    #[test]
    fn honest_super_frames() {
        let udp4 = ip_frame(&v4(17, &udp(1, 2, &[0; 5000])));
        let tcp6 = ip_frame(&v6(6, &tcp(&[0; 5000])));
        let udp6 = ip_frame(&v6(17, &udp(1, 2, &[0; 5000])));
        let v6_of = |h: VnetHeader| VnetHeader {
            gso_size: 1440,
            csum_start: 54,
            ..h
        };
        let tso6 = VnetHeader {
            gso_type: vnet::GSO_TCPV6 | vnet::GSO_ECN,
            ..v6_of(TSO)
        };
        assert_eq!(parse(tcp4(), TSO), Ok(()));
        assert_eq!(parse(tcp4(), VnetHeader { hdr_len: 0, ..TSO }), Ok(()));
        assert_eq!(parse(udp4, USO), Ok(()));
        assert_eq!(parse(tcp6, tso6), Ok(()));
        assert_eq!(parse(udp6, v6_of(USO)), Ok(()));
    }

    // Longer than 60 lines: a table, and each row is one field of the header that lies.
    #[test]
    fn lies() {
        let ecn = vnet::GSO_ECN;
        let lies = [
            (
                "UFO",
                VnetHeader {
                    gso_type: vnet::GSO_UDP,
                    ..TSO
                },
            ),
            ("type 2", VnetHeader { gso_type: 2, ..TSO }),
            (
                "type 0x44",
                VnetHeader {
                    gso_type: 0x44,
                    ..TSO
                },
            ),
            (
                "ECN alone",
                VnetHeader {
                    gso_type: ecn,
                    ..TSO
                },
            ),
            (
                "ECN on UDP",
                VnetHeader {
                    gso_type: vnet::GSO_UDP_L4 | ecn,
                    ..TSO
                },
            ),
            ("size 0", VnetHeader { gso_size: 0, ..TSO }),
            ("no checksum", VnetHeader { flags: 0, ..TSO }),
            (
                "RSC info",
                VnetHeader {
                    flags: 1 | 4,
                    ..TSO
                },
            ),
            (
                "hdr_len",
                VnetHeader {
                    hdr_len: 5055,
                    ..TSO
                },
            ),
            (
                "start low",
                VnetHeader {
                    csum_start: 33,
                    ..TSO
                },
            ),
            (
                "start outside",
                VnetHeader {
                    csum_start: 65535,
                    ..TSO
                },
            ),
            (
                "UDP's field",
                VnetHeader {
                    csum_offset: 6,
                    ..TSO
                },
            ),
            (
                "field outside",
                VnetHeader {
                    csum_offset: 65535,
                    ..TSO
                },
            ),
            (
                "v6",
                VnetHeader {
                    gso_type: vnet::GSO_TCPV6,
                    ..TSO
                },
            ),
            (
                "UDP",
                VnetHeader {
                    gso_type: vnet::GSO_UDP_L4,
                    ..TSO
                },
            ),
        ];
        for (what, h) in lies {
            let got = parse(tcp4(), h);
            assert_eq!(got, Err(DropReason::BadVnetHeader), "{what}");
        }
        let tcp6 = ip_frame(&v6(6, &tcp(&[0; 5000])));
        let h = VnetHeader {
            csum_start: 54,
            gso_size: 1440,
            ..TSO
        };
        assert_eq!(parse(tcp6, h), Err(DropReason::BadVnetHeader));
        let udp4 = ip_frame(&v4(17, &udp(1, 2, &[0; 5000])));
        let h = VnetHeader {
            csum_offset: 6,
            ..TSO
        };
        assert_eq!(parse(udp4, h), Err(DropReason::BadVnetHeader));
    }

    #[test]
    fn a_udp_super_frame_has_no_more_datagrams_than_a_kernel_makes() {
        let parsed = |payload: usize, gso_size| {
            let udp4 = ip_frame(&v4(17, &udp(1, 2, &vec![0; payload])));
            parse(udp4, VnetHeader { gso_size, ..USO })
        };
        let bad = Err(DropReason::BadVnetHeader);
        assert_eq!(parsed(128, 1), Ok(()));
        assert_eq!(parsed(129, 1), bad);
        assert_eq!(parsed(128 * 500, 500), Ok(()));
        assert_eq!(parsed(128 * 500, 499), bad);
        // A TCP's segments are one piece of work to whoever takes them in.
        assert_eq!(parse(tcp4(), VnetHeader { gso_size: 8, ..TSO }), Ok(()));
    }

    #[test]
    fn checksum_requests_need_a_checksum_field() {
        let needs = VnetHeader {
            flags: vnet::F_NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 2,
            ..VnetHeader::default()
        };
        let bad = Err(DropReason::BadVnetHeader);
        assert_eq!(parse(ip_frame(&v4(1, &icmp(8, 0, &[0; 4]))), needs), Ok(()));
        assert_eq!(parse(ip_frame(&v4(1, &[8, 0, 0])), needs), bad);
        assert_eq!(parse(ip_frame(&v4(132, &[0; 12])), needs), bad);
        let arp = arp(OP_REQUEST, MAC_A, A4, MacAddr::default(), B4);
        assert_eq!(parse(frame(MAC_B, MAC_A, 0x0806, &arp), needs), bad);
    }

    #[test]
    fn fragments_carry_no_offload() {
        let first = ip_frame(&v4_with(17, A4, B4, &[], MF, &udp(1, 2, &[0; 1000])));
        header(&first);
        let sum_only = VnetHeader {
            gso_type: 0,
            gso_size: 0,
            ..USO
        };
        for h in [USO, sum_only] {
            assert_eq!(parse(first.clone(), h), Err(DropReason::BadVnetHeader));
        }
    }

    #[test]
    fn segments_over_the_mtu() {
        let over = VnetHeader {
            gso_size: 1461,
            ..TSO
        };
        assert_eq!(parse(tcp4(), over), Err(DropReason::FrameTooLong));
        // A data offset that leaves less room.
        let mut f = tcp4();
        f[VNET_HDR_LEN + 34 + 12] = 8 << 4;
        assert_eq!(parse(f, TSO), Err(DropReason::FrameTooLong));
        // One segment only: its length is the frame's own.
        let short = ip_frame(&v4(6, &tcp(&[0; 100])));
        assert_eq!(
            parse(
                short,
                VnetHeader {
                    gso_size: 65535,
                    ..TSO
                }
            ),
            Ok(())
        );
    }
}

mod arp_rows {
    use super::*;

    /// CVE-2020-29129, CVE-2020-29130: an ARP body shorter than it claims was read past its end.
    #[test]
    fn cve_2020_29129_and_29130_truncated_arp() {
        let body = arp(OP_REQUEST, MAC_A, A4, MacAddr::default(), B4);
        for len in 0..body.len() {
            let f = frame(MacAddr::BROADCAST, MAC_A, 0x0806, &body[..len]);
            assert_eq!(refused(&f), DropReason::BadArp, "{len}");
        }
        let f = frame(MacAddr::BROADCAST, MAC_A, 0x0806, &body);
        let expected = ArpPacket {
            operation: OP_REQUEST,
            sender_mac: MAC_A,
            sender_ip: A4,
            target_mac: MacAddr::default(),
            target_ip: B4,
        };
        assert_eq!(Frame::parse(&f, MTU).unwrap().arp(), Some(expected));
    }

    #[test]
    fn other_kinds_and_lengths() {
        for (at, value) in [(1, 6), (0, 1), (2, 0x86), (3, 6), (4, 7), (4, 255), (5, 16)] {
            let mut body = arp(OP_REQUEST, MAC_A, A4, MacAddr::default(), B4);
            body[at] = value;
            let f = frame(MacAddr::BROADCAST, MAC_A, 0x0806, &body);
            assert_eq!(refused(&f), DropReason::BadArp, "byte {at} = {value}");
        }
    }
}

mod v4_rows {
    use super::*;

    fn changed(at: usize, value: u8) -> Vec<u8> {
        let mut p = v4(17, &udp(1, 2, &[0; 20]));
        p[at] = value;
        fix_v4(&mut p);
        ip_frame(&p)
    }

    fn from_to(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
        let d = udp(68, 67, &[]);
        ip_frame(&v4_with(17, src.into(), dst.into(), &[], 0, &d))
    }

    #[test]
    fn lengths_and_version() {
        header(&changed(1, 0));
        for (at, value) in [(0, 0x44), (0, 0x55), (0, 0x4f), (3, 19), (3, 49), (2, 0xff)] {
            let reason = refused(&changed(at, value));
            assert_eq!(reason, DropReason::BadIpHeader, "byte {at} = {value}");
        }
        // Shorter than the frame is padding.
        let h = header(&changed(3, 30));
        assert_eq!((h.l4, h.end), (34, 44));
    }

    #[test]
    fn checksum_and_ttl() {
        let mut f = changed(1, 0);
        f[VNET_HDR_LEN + ETH + 10] ^= 1;
        assert_eq!(refused(&f), DropReason::BadIpChecksum);
        assert_eq!(refused(&changed(8, 0)), DropReason::TtlExpired);
        assert_eq!(header(&changed(8, 1)).hop_limit, 1);
    }

    #[test]
    fn options() {
        let with = |options: &[u8]| ip_frame(&v4_with(17, A4, B4, options, 0, &udp(1, 2, &[])));
        // Router alert; NOPs; whatever follows the end of options.
        for fine in [[148, 4, 0, 0], [1, 1, 1, 1], [0, 137, 0, 0]] {
            assert_eq!(header(&with(&fine)).l4, 38);
        }
        let refused_ones: [&[u8]; 6] = [
            &[131, 3, 4, 0],
            &[137, 3, 4, 0],
            &[1, 131, 3, 4],
            &[7, 0, 0, 0],
            &[7, 1, 0, 0],
            &[7, 5, 0, 0],
        ];
        for bad in refused_ones {
            assert_eq!(refused(&with(bad)), DropReason::IpOption, "{bad:?}");
        }
        assert_eq!(refused(&with(&[1, 1, 1, 7])), DropReason::IpOption);
    }

    #[test]
    fn land() {
        assert_eq!(
            refused(&from_to([10, 0, 2, 100], [10, 0, 2, 100])),
            DropReason::Land
        );
    }

    #[test]
    fn martian_sources() {
        let to = [192, 0, 2, 7];
        for src in [
            [224, 0, 0, 1],
            [239, 255, 255, 250],
            [240, 0, 0, 1],
            [255, 255, 255, 255],
            [127, 0, 0, 1],
            [127, 255, 0, 1],
            [0, 0, 0, 0],
            [0, 0, 0, 1],
        ] {
            assert_eq!(
                refused(&from_to(src, to)),
                DropReason::MartianSource,
                "{src:?}"
            );
        }
        // DHCP's first words, and nothing else, come from nowhere.
        header(&from_to([0; 4], [255; 4]));
        let other = udp(68, 53, &[]);
        let nobody = Ipv4Addr::UNSPECIFIED;
        let f = ip_frame(&v4_with(17, nobody, Ipv4Addr::BROADCAST, &[], 0, &other));
        assert_eq!(refused(&f), DropReason::MartianSource);
        let first = udp(68, 67, &[0; 8]);
        let f = ip_frame(&v4_with(17, nobody, Ipv4Addr::BROADCAST, &[], MF, &first));
        assert_eq!(refused(&f), DropReason::MartianSource);
        // Loopback as destination is for policy to answer.
        header(&from_to([10, 0, 2, 100], [127, 0, 0, 1]));
        header(&from_to([10, 0, 2, 100], [0, 0, 0, 0]));
    }

    fn fragment(protocol: u8, word: u16, data: &[u8]) -> Vec<u8> {
        ip_frame(&v4_with(protocol, A4, B4, &[], word, data))
    }

    #[test]
    fn honest_fragments() {
        let h = header(&fragment(17, MF, &udp(1, 2, &[0; 1000])));
        let expected = Fragment {
            id: 0x1234,
            offset: 0,
            more: true,
        };
        assert_eq!(h.fragment, Some(expected));
        let h = header(&fragment(17, 126, &[0; 5]));
        let expected = Fragment {
            offset: 1008,
            more: false,
            ..expected
        };
        assert_eq!(h.fragment, Some(expected));
        assert_eq!(
            header(&fragment(17, 0x4000, &udp(1, 2, &[]))).fragment,
            None
        );
        assert!(header(&fragment(17, 0x4000, &udp(1, 2, &[]))).dont_fragment);
    }

    /// The ping of death, and CVE-2019-14378's kin: what ends past the longest datagram.
    #[test]
    fn fragments_past_the_end() {
        header(&fragment(17, 8188, &[0; 11]));
        assert_eq!(
            refused(&fragment(17, 8188, &[0; 12])),
            DropReason::BadFragment
        );
        assert_eq!(
            refused(&fragment(17, 0x1fff, &[0; 8])),
            DropReason::BadFragment
        );
    }

    #[test]
    fn fragments_of_impossible_length() {
        assert_eq!(
            refused(&fragment(17, MF, &[0; 12])),
            DropReason::BadFragment
        );
        assert_eq!(refused(&fragment(17, MF, &[])), DropReason::BadFragment);
        assert_eq!(refused(&fragment(17, 10, &[])), DropReason::BadFragment);
    }

    /// RFC 1858 and RFC 3128: flags hidden in, or rewritten by, a second fragment.
    #[test]
    fn tiny_fragments() {
        header(&fragment(6, MF, &tcp(&[0; 4])));
        let mut options = tcp(&[0; 4]);
        options[12] = 15 << 4;
        assert_eq!(refused(&fragment(6, MF, &options)), DropReason::BadFragment);
        assert_eq!(
            refused(&fragment(6, MF, &tcp(&[])[..16])),
            DropReason::BadFragment
        );
        let mut short = tcp(&[]);
        short[12] = 3 << 4;
        let reason = refused(&fragment(6, MF, &short[..16]));
        assert_eq!(reason, DropReason::BadFragment);
        assert_eq!(refused(&fragment(6, 1, &[0; 16])), DropReason::BadFragment);
        assert_eq!(refused(&fragment(6, 2, &[0; 16])), DropReason::BadFragment);
        header(&fragment(6, 3, &[0; 16]));
        header(&fragment(17, 1, &[0; 16]));
        header(&fragment(1, MF, &icmp(8, 0, &[0; 4])));
    }
}
