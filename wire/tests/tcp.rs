//! TCP segments that are read, segments that are refused, and segments that are written. Built and
//! read by etherparse and smoltcp, so that a mistake about the format is not made twice.

use std::net::SocketAddr;

use cnet_wire::headers::{FRAME_BUFFER_LEN, Link};
use cnet_wire::host::HeaderFields;
use cnet_wire::tcp::{
    Flags, Route, Segment, SegmentOut, Seq, SynOptions, TCP_HEADER_LEN, is_opening, write_segment,
};
use cnet_wire::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, VNET_HDR_LEN};
use cnet_wire::{DropReason, MacAddr, PortId, VnetHeader, checksum};
use etherparse::{SlicedPacket, TcpHeader, TransportSlice};
use proptest::prelude::*;
use smoltcp::wire::{TcpOption, TcpPacket};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;
/// MSS 1460, window shift 7, SACK permitted.
const SYN_OPTIONS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 0, 0];

/// A header as etherparse writes it.
fn header(flags: u8, seq: u32, ack: u32, options: &[u8], ports: (u16, u16)) -> TcpHeader {
    let mut h = TcpHeader::new(ports.0, ports.1, seq, 0x2000);
    h.acknowledgment_number = ack;
    h.fin = flags & FIN != 0;
    h.syn = flags & SYN != 0;
    h.rst = flags & RST != 0;
    h.psh = flags & PSH != 0;
    h.ack = flags & ACK != 0;
    h.urg = flags & URG != 0;
    h.set_options_raw(options).unwrap();
    h
}

fn bytes(header: &TcpHeader, payload: &[u8]) -> Vec<u8> {
    [&header.to_bytes()[..], payload].concat()
}

fn parse(flags: u8, options: &[u8]) -> Result<(), DropReason> {
    Segment::parse(&raw(flags, options)).map(|_| ())
}

/// A segment whose options are padded with ends of list, as etherparse would not write them.
fn raw(flags: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = bytes(&header(flags, 1, 2, &[], (1000, 80)), &[]);
    let padded = options.len().next_multiple_of(4);
    bytes[12] = (5 + padded / 4) as u8 * 16;
    bytes.extend(options);
    bytes.resize(TCP_HEADER_LEN + padded, 0);
    bytes
}

#[test]
fn a_whole_segment_is_read() {
    let flags = SYN | ACK | PSH | URG;
    let mut built = header(flags, 0xfffffffe, 0x80000001, SYN_OPTIONS, (40_000, 443));
    built.window_size = 0xabcd;
    // In line: the urgent pointer changes nothing, wherever it points.
    built.urgent_pointer = 9;
    let whole = bytes(&built, b"hello");
    let s = Segment::parse(&whole).unwrap();
    assert_eq!((s.src_port, s.dst_port), (40_000, 443));
    assert_eq!((s.seq, s.ack), (Seq(0xfffffffe), Seq(0x80000001)));
    assert_eq!(s.window, 0xabcd);
    assert_eq!((s.mss, s.window_scale), (Some(1460), Some(7)));
    assert!(s.sack_permitted && s.flags.syn && s.flags.ack && s.flags.psh);
    assert!(!s.flags.fin && !s.flags.rst);
    assert_eq!(s.payload, b"hello");
    assert_eq!(s.sequence_len(), 6);
    let mut options = vec![1, 1, 5, 18];
    for edge in [5u32, 9, 20, 30] {
        options.extend(edge.to_be_bytes());
    }
    let sacked = bytes(&header(ACK, 0, 0, &options, (1, 1)), &[]);
    let s = Segment::parse(&sacked).unwrap();
    assert_eq!(
        s.sack,
        [Some((Seq(5), Seq(9))), Some((Seq(20), Seq(30))), None]
    );
}

#[test]
fn what_no_stack_sends_is_refused() {
    let bad_flags = [
        ("null", 0),
        ("fin alone", FIN),
        ("xmas", FIN | PSH | URG),
        ("psh alone", PSH),
        ("syn fin", SYN | FIN),
        ("syn fin ack", SYN | FIN | ACK),
        ("syn rst", SYN | RST),
        ("syn rst ack", SYN | RST | ACK),
        ("everything", 0x3f),
    ];
    for (name, flags) in bad_flags {
        assert_eq!(parse(flags, &[]), Err(DropReason::BadTcpFlags), "{name}");
    }
    for flags in [
        SYN,
        SYN | ACK,
        ACK,
        ACK | FIN,
        RST,
        RST | ACK,
        ACK | PSH | URG,
    ] {
        assert_eq!(parse(flags, &[]), Ok(()), "{flags:#x}");
    }
}

#[test]
fn options_that_lie_are_refused() {
    let bad: [(&str, &[u8]); 9] = [
        ("length 0", &[3, 0, 0, 0]),
        ("length 1", &[3, 1, 0, 0]),
        ("unknown of length 0", &[254, 0, 0, 0]),
        ("unknown of length 1", &[254, 1, 0, 0]),
        ("past the header", &[254, 5, 0, 0]),
        ("kind without length", &[1, 1, 1, 2]),
        ("mss of 3 bytes", &[2, 3, 0, 0]),
        ("sack of 9 bytes", &[5, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("window scale of 4 bytes", &[3, 4, 1, 1]),
    ];
    for (name, options) in bad {
        let result = parse(ACK, options);
        assert_eq!(result, Err(DropReason::BadTcpHeader), "{name}");
    }
    let good: [(&str, &[u8]); 3] = [
        ("unknown ones are skipped", &[254, 4, 9, 9, 2, 4, 5, 180]),
        ("nothing counts behind the end", &[0, 3, 0, 0]),
        ("no options, padded", &[1, 1, 1, 1]),
    ];
    for (name, options) in good {
        assert_eq!(parse(ACK, options), Ok(()), "{name}");
    }
}

#[test]
fn the_window_shift_is_capped_and_the_rest_taken_as_it_is() {
    let options = [3, 3, 255, 2, 4, 0, 0];
    let bytes = raw(SYN, &options);
    let s = Segment::parse(&bytes).unwrap();
    assert_eq!((s.window_scale, s.mss), (Some(14), Some(0)));
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let whole = bytes(&header(ACK, 1, 1, &[], (1000, 80)), &[]);
    for len in 0..20 {
        let cut = Segment::parse(&whole[..len]).map(|_| ());
        assert_eq!(cut, Err(DropReason::BadTcpHeader), "{len} bytes");
    }
    for data_offset in [0, 1, 4, 6, 15] {
        let mut bytes = whole.clone();
        bytes[12] = data_offset << 4;
        let result = Segment::parse(&bytes).map(|_| ());
        assert_eq!(result, Err(DropReason::BadTcpHeader), "{data_offset}");
    }
    for (src, dst) in [(0, 80), (0, 0)] {
        let zero = bytes(&header(SYN, 1, 1, &[], (src, dst)), &[]);
        let result = Segment::parse(&zero).map(|_| ());
        assert_eq!(result, Err(DropReason::PortZero));
    }
}

proptest! {
    /// What etherparse builds is read as it was meant.
    #[test]
    fn reads_what_etherparse_builds(
        flags in 0u8..64,
        seq: u32,
        ack: u32,
        window: u16,
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        ports in (1u16.., 1u16..),
    ) {
        let mut built = header(flags, seq, ack, &[], ports);
        built.window_size = window;
        let bytes = bytes(&built, &payload);
        prop_assert_eq!(is_opening(&bytes), flags & (SYN | ACK) == SYN);
        let opening = flags & SYN != 0 && flags & (FIN | RST) != 0;
        match Segment::parse(&bytes) {
            Ok(s) => {
                prop_assert!(!opening && flags & (SYN | ACK | RST) != 0);
                prop_assert_eq!((s.src_port, s.dst_port), ports);
                prop_assert_eq!((s.seq.0, s.ack.0, s.window), (seq, ack, window));
                prop_assert_eq!(s.payload, &payload[..]);
            }
            Err(e) => {
                prop_assert_eq!(e, DropReason::BadTcpFlags);
                prop_assert!(opening || flags & (SYN | ACK | RST) == 0);
            }
        }
    }

    /// Whatever the bytes are, smoltcp's reader comes to the same result.
    #[test]
    fn reads_and_refuses_as_smoltcp_does(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
        offset in 0u8..16,
        options in proptest::collection::vec(0u8..12, 40),
    ) {
        if let Some(b) = bytes.get_mut(12) {
            *b = offset << 4;
        }
        // Small numbers are kinds and lengths that mean something.
        for (byte, small) in bytes.iter_mut().skip(TCP_HEADER_LEN).zip(options) {
            *byte = small;
        }
        let read = Segment::parse(&bytes);
        let Ok(p) = TcpPacket::new_checked(&bytes[..]) else {
            prop_assert_eq!(read.map(|_| ()), Err(DropReason::BadTcpHeader));
            return Ok(());
        };
        let (mut mss, mut scale, mut permitted, mut sack) = (None, None, false, [None; 3]);
        let mut rest = p.options();
        let mut malformed = false;
        while !rest.is_empty() {
            let Ok((behind, option)) = TcpOption::parse(rest) else {
                malformed = true;
                break;
            };
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(n) => mss = Some(n),
                TcpOption::WindowScale(n) => scale = Some(n.min(14)),
                TcpOption::SackPermitted => permitted = true,
                TcpOption::SackRange(ranges) => {
                    sack = ranges.map(|r| r.map(|(left, right)| (Seq(left), Seq(right))));
                }
                _ => {}
            }
            rest = behind;
        }
        match read {
            Ok(s) => {
                prop_assert!(!malformed);
                prop_assert_eq!((s.src_port, s.dst_port), (p.src_port(), p.dst_port()));
                prop_assert_eq!(s.seq.0, p.seq_number().0 as u32);
                prop_assert_eq!(s.ack.0, p.ack_number().0 as u32);
                prop_assert_eq!((s.window, s.payload), (p.window_len(), p.payload()));
                let flags = [s.flags.syn, s.flags.ack, s.flags.fin, s.flags.rst, s.flags.psh];
                prop_assert_eq!(flags, [p.syn(), p.ack(), p.fin(), p.rst(), p.psh()]);
                prop_assert_eq!((s.mss, s.window_scale), (mss, scale));
                prop_assert_eq!((s.sack_permitted, s.sack), (permitted, sack));
            }
            Err(DropReason::BadTcpHeader) => prop_assert!(malformed),
            Err(DropReason::PortZero) => prop_assert_eq!(p.src_port(), 0),
            Err(_) => prop_assert!(p.syn() && (p.fin() || p.rst()) || !p.ack() && !p.syn() && !p.rst()),
        }
    }

    /// What is written is read by etherparse as it was meant, and its checksum completes.
    #[test]
    fn writes_what_etherparse_reads(
        v6: bool,
        (seq, ack, window) in any::<(u32, u32, u16)>(),
        bits in 0u8..32,
        options in proptest::option::of((any::<u16>(), proptest::option::of(0u8..15), any::<bool>())),
        payload_len in 0usize..4000,
    ) {
        // Longer than 60 lines: one segment, every field of which is compared.
        let ends = match v6 {
            true => ("[2001:db8::1]:80", "[fd00::100]:4000"),
            false => ("192.0.2.1:80", "10.0.2.100:4000"),
        };
        let (src, dst): (SocketAddr, SocketAddr) = (ends.0.parse().unwrap(), ends.1.parse().unwrap());
        let payload_len = if options.is_some() { 0 } else { payload_len };
        let flags = Flags {
            fin: bits & FIN != 0,
            syn: bits & SYN != 0,
            rst: bits & RST != 0,
            psh: bits & PSH != 0,
            ack: bits & ACK != 0,
        };
        let seg = SegmentOut {
            seq: Seq(seq),
            ack: Seq(ack),
            flags,
            window,
            syn: options.map(|(mss, window_scale, sack_permitted)| SynOptions {
                mss,
                window_scale,
                sack_permitted,
            }),
            payload_len,
            mss: 1460,
            fields: HeaderFields::default(),
        };
        let link = Link {
            port: PortId(1),
            gateway_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            container_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        };
        let route = Route { src, dst };
        let mut buf = vec![0x5a; FRAME_BUFFER_LEN];
        let len = write_segment(&mut buf, &link, &route, &seg);
        let vnet = VnetHeader::decode(&buf).unwrap();
        let gso = match (payload_len > 1460, v6) {
            (false, _) => (GSO_NONE, 0),
            (true, false) => (GSO_TCPV4, 1460),
            (true, true) => (GSO_TCPV6, 1460),
        };
        prop_assert_eq!((vnet.gso_type, vnet.gso_size), gso);
        let packet = SlicedPacket::from_ethernet(&buf[VNET_HDR_LEN..len]).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            panic!("not TCP");
        };
        prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 4000));
        prop_assert_eq!(tcp.header_slice()[13], bits);
        prop_assert_eq!(tcp.sequence_number(), seq);
        prop_assert_eq!(tcp.acknowledgment_number(), if flags.ack { ack } else { 0 });
        prop_assert_eq!((tcp.window_size(), tcp.urgent_pointer()), (window, 0));
        prop_assert_eq!(tcp.payload().len(), payload_len);
        prop_assert_eq!(VNET_HDR_LEN + len - route.payload_offset(), VNET_HDR_LEN + payload_len + tcp.header_len() - TCP_HEADER_LEN);
        if let (Some((mss, scale, sack)), Ok(read)) = (options, Segment::parse(tcp.slice())) {
            prop_assert_eq!((read.mss, read.window_scale, read.sack_permitted), (Some(mss), scale, sack));
        }
        let sum = match (src.ip(), dst.ip()) {
            (std::net::IpAddr::V4(s), std::net::IpAddr::V4(d)) => tcp.calc_checksum_ipv4(s.octets(), d.octets()),
            (std::net::IpAddr::V6(s), std::net::IpAddr::V6(d)) => tcp.calc_checksum_ipv6(s.octets(), d.octets()),
            _ => unreachable!(),
        };
        prop_assert_eq!(checksum::finish(0, tcp.slice()), sum.unwrap());
    }
}
