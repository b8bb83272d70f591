//! What a container may put on the wire: segments that are read, and those that are refused.

use cnet_wire::DropReason;
use proptest::prelude::*;

use crate::tcp::segment::Segment;
use crate::tcp::seq::Seq;
use crate::tcp::testing::*;

fn parse(flags: u8, options: &[u8]) -> Result<(), DropReason> {
    let bytes = raw(flags, options);
    Segment::parse(&bytes).map(|_| ())
}

/// A segment whose options are padded with ends of list, as etherparse would not write them.
fn raw(flags: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = seg(flags, 1, 2).bytes(1000, 80);
    let padded = options.len().next_multiple_of(4);
    bytes[12] = (5 + padded / 4) as u8 * 16;
    bytes.extend(options);
    bytes.resize(20 + padded, 0);
    bytes
}

#[test]
fn a_whole_segment_is_read() {
    let built = Seg {
        urgent: 9,
        ..seg(SYN | ACK | PSH | URG, 0xfffffffe, 0x80000001)
    };
    let built = built.window(0xabcd).options(SYN_OPTIONS).data(b"hello");
    let bytes = built.bytes(40_000, 443);
    let s = Segment::parse(&bytes).unwrap();
    assert_eq!((s.src_port, s.dst_port), (40_000, 443));
    assert_eq!((s.seq, s.ack), (Seq(0xfffffffe), Seq(0x80000001)));
    assert_eq!(s.window, 0xabcd);
    assert_eq!((s.mss, s.window_scale), (Some(1460), Some(7)));
    assert!(s.sack_permitted && s.flags.syn && s.flags.ack && s.flags.psh);
    assert!(!s.flags.fin && !s.flags.rst);
    assert_eq!(s.payload, b"hello");
    assert_eq!(s.sequence_len(), 6);
    // In line: the urgent pointer changes nothing, wherever it points.
    let sacked = seg(ACK, 0, 0).sack(&[(5, 9), (20, 30)]).bytes(1, 1);
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
    let whole = seg(ACK, 1, 1).bytes(1000, 80);
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
    for (src, dst) in [(0, 80), (1000, 0), (0, 0)] {
        let bytes = seg(SYN, 1, 1).bytes(src, dst);
        let result = Segment::parse(&bytes).map(|_| ());
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
        let built = seg(flags, seq, ack).window(window).data(&payload);
        let bytes = built.bytes(ports.0, ports.1);
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

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = Segment::parse(&bytes);
    }
}
