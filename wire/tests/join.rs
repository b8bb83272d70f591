//! Joining frames, held against what [`Segments`] cuts and an independent builder of packets.

use cnet_testkit::packets::*;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::vnet::{self, VNET_HDR_LEN, VnetHeader};
use cnet_wire::{Frame, Joined, L3, Segments};
use etherparse::PacketBuilder;
use proptest::prelude::*;

const MTU: usize = 1450;

/// A segment of TCP as the oracle writes it.
fn segment(v4: bool, seq: u32, push: bool, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(MAC_A.0, MAC_B.0);
    let ip = match v4 {
        true => link.ipv4(A4.octets(), B4.octets(), 64),
        false => link.ipv6(A6.octets(), B6.octets(), 64),
    };
    let tcp = ip.tcp(4000, 80, seq, 512).ack(77);
    let tcp = if push { tcp.psh() } else { tcp };
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

/// Joins as many of `frames` as it takes; gives the whole and how many frames are in it.
fn join(frames: &[Vec<u8>], verified: bool) -> (Vec<u8>, usize) {
    let mut buf = vec![0xee; FRAME_BUFFER_LEN];
    let mut joined = Joined::start(&mut buf, &frames[0], MTU, verified).unwrap();
    for frame in &frames[1..] {
        if !joined.is_open() || !joined.append(&mut buf, frame, verified) {
            break;
        }
    }
    let (len, count) = joined.finish(&mut buf);
    buf.truncate(len);
    (buf, count)
}

fn payload_of(super_frame: &[u8]) -> Vec<u8> {
    Segments::parse(super_frame, MTU).unwrap().payload().into()
}

proptest! {
    #[test]
    fn what_is_joined_cuts_into_the_same_frames(
        v4 in any::<bool>(),
        verified in any::<bool>(),
        seq in any::<u32>(),
        size in 1_usize..=1390,
        len in 1_usize..20_000,
        push in any::<bool>(),
    ) {
        let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        let count = len.div_ceil(size);
        let frames: Vec<_> = payload.chunks(size).enumerate().map(|(n, part)| {
            let seq = seq.wrapping_add((n * size) as u32);
            segment(v4, seq, push && n + 1 == count, part)
        }).collect();
        let (whole, joined) = join(&frames, verified);
        // A first frame with PSH stays alone.
        prop_assert_eq!(joined, count);
        let parsed = Frame::parse(&whole, MTU).unwrap();
        let L3::Ip(ip) = parsed.l3 else { panic!("no packet") };
        prop_assert!(parsed.l4_checksum_ok(&ip));
        if count > 1 {
            prop_assert_eq!(usize::from(parsed.vnet.gso_size), size);
            let mut cut = Vec::new();
            Segments::parse(&whole, MTU).unwrap().for_each(|h, p| cut.push([h, p].concat()));
            prop_assert_eq!(cut.len(), frames.len());
            for (cut, frame) in cut.iter().zip(&frames) {
                let without_id = |frame: &[u8]| {
                    let mut frame = frame.to_vec();
                    if v4 {
                        frame[18..20].fill(0);
                        frame[24..26].fill(0);
                    }
                    frame
                };
                prop_assert_eq!(without_id(cut), without_id(frame));
            }
        } else {
            prop_assert_eq!(&whole[VNET_HDR_LEN..], &frames[0][..]);
        }
    }

    #[test]
    fn nothing_panics(
        first in proptest::collection::vec(any::<u8>(), 0..200),
        second in proptest::collection::vec(any::<u8>(), 0..200),
        at in 0_usize..100,
        byte in any::<u8>(),
    ) {
        let mut buf = vec![0; FRAME_BUFFER_LEN];
        let _ = Joined::start(&mut buf, &first, MTU, false);
        let mut changed = segment(true, 0, false, &second);
        if let Some(place) = changed.get_mut(at) {
            *place = byte;
        }
        let frame = segment(true, 0, false, &first);
        if let Ok(mut joined) = Joined::start(&mut buf, &frame, MTU, false) {
            joined.append(&mut buf, &changed, true);
            joined.finish(&mut buf);
        }
        if let Ok(mut joined) = Joined::start(&mut buf, &changed, MTU, true) {
            joined.append(&mut buf, &frame, false);
            joined.finish(&mut buf);
        }
    }
}

#[test]
fn what_does_not_go_on_is_not_joined() {
    let first = segment(true, 100, false, &[1; 1000]);
    let cases: [(&str, Vec<u8>); 6] = [
        ("a hole", segment(true, 1101, false, &[2; 1000])),
        ("a longer one", segment(true, 1100, false, &[2; 1001])),
        ("the other family", segment(false, 1100, false, &[2; 1000])),
        ("no payload", segment(true, 1100, false, &[])),
        ("another station", {
            let mut frame = segment(true, 1100, false, &[2; 1000]);
            frame[0] ^= 2;
            frame
        }),
        ("a wrong checksum", {
            let mut frame = segment(true, 1100, false, &[2; 1000]);
            frame[100] ^= 1;
            frame
        }),
    ];
    for (what, next) in cases {
        let (whole, count) = join(&[first.clone(), next], false);
        assert_eq!(count, 1, "{what}");
        assert_eq!(whole[VNET_HDR_LEN..], first[..], "{what}");
        assert_eq!(VnetHeader::decode(&whole), Some(VnetHeader::default()));
    }
    // Of a first frame with a wrong checksum nothing is made right.
    let mut wrong = first.clone();
    wrong[100] ^= 1;
    let (whole, count) = join(&[wrong.clone(), segment(true, 1100, false, &[2; 9])], false);
    assert_eq!((count, &whole[VNET_HDR_LEN..]), (1, &wrong[..]));
    // What was joined before one that does not go on is whole.
    let [second, hole] = [1100, 3100].map(|seq| segment(true, seq, false, &[3; 1000]));
    let (whole, count) = join(&[first.clone(), second, hole], true);
    assert_eq!((count, payload_of(&whole).len()), (2, 2000));
    assert_eq!(
        Frame::parse(&whole, MTU).unwrap().vnet.gso_type,
        vnet::GSO_TCPV4
    );
    // A shorter one is the last.
    let [short, long] =
        [(1100, 9), (1109, 1000)].map(|(s, n)| segment(true, s, false, &vec![3; n]));
    let (whole, count) = join(&[first.clone(), short, long], true);
    assert_eq!((count, payload_of(&whole).len()), (2, 1009));
}

#[test]
fn checksums_that_were_not_finished_are_left_to_the_receiver() {
    for v4 in [true, false] {
        let l4 = if v4 { 34 } else { 54 };
        for (whole_len, super_frame) in [(1000, false), (30_000, true)] {
            let mut frame = segment(v4, 5, false, &vec![4; whole_len]);
            let transport = (frame.len() - l4) as u32;
            let ends = match v4 {
                true => (A4.into(), B4.into()),
                false => (A6.into(), B6.into()),
            };
            let pseudo = cnet_wire::checksum::pseudo_header(ends.0, ends.1, 6, transport);
            let sum = cnet_wire::checksum::fold(pseudo);
            frame[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
            let (whole, _) = join(&[frame], false);
            let parsed = Frame::parse(&whole, MTU).unwrap();
            assert!(parsed.vnet.needs_csum());
            assert_eq!(parsed.vnet.gso_type != vnet::GSO_NONE, super_frame);
            assert_eq!(payload_of(&whole), vec![4; whole_len]);
        }
    }
}
