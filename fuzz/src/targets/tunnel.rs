//! What comes out of a tunnel: datagrams with frames in them, joined to super-frames.

use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::vnet::{self, VNET_HDR_LEN, VnetHeader};
use cnet_wire::vxlan::{self, PORT};
use cnet_wire::{Frame, Joined, Segments, Vni};

use crate::feedback;

const MTU: usize = 1450;

/// The datagrams of an input, each behind its length in two bytes.
fn datagrams(mut input: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((&length, behind)) = input.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(length)).min(behind.len());
        let (datagram, rest) = behind.split_at(length);
        found.push(datagram);
        input = rest;
    }
    found
}

/// A frame that stays alone comes out as it came in. One that others were joined to is a right
/// super-frame, and cuts into as many frames of the same bytes, but for what segmentation makes anew.
pub fn datagrams_joined(input: &[u8]) {
    let Some((&flags, rest)) = input.split_first() else {
        return;
    };
    let verified = flags & 1 != 0;
    let frames: Vec<&[u8]> = datagrams(rest)
        .into_iter()
        .filter_map(|datagram| Some(vxlan::decode(datagram).ok()?.1))
        .collect();
    let mut buf = vec![0xaa; FRAME_BUFFER_LEN];
    let mut next = 0;
    while let Some(first) = frames.get(next) {
        next += 1;
        let Ok(mut joined) = Joined::start(&mut buf, first, MTU, verified) else {
            feedback::note(1);
            continue;
        };
        if let (Some(ip), Some(vni)) = (joined.ip(), Vni::new(42)) {
            feedback::note(2 + u32::from(vxlan::is_nested(first, ip, PORT, vni)));
        }
        let start = next - 1;
        while joined.is_open()
            && let Some(frame) = frames.get(next)
            && joined.append(&mut buf, frame, verified)
        {
            next += 1;
        }
        let (len, count) = joined.finish(&mut buf);
        assert_eq!(count, next - start, "frames joined");
        check(&buf[..len], &frames[start..next]);
    }
}

fn check(whole: &[u8], frames: &[&[u8]]) {
    let header = VnetHeader::decode(whole).expect("a header");
    if let [frame] = frames {
        let bytes = &whole[VNET_HDR_LEN..];
        // Padding may be cut off.
        assert!(frame.starts_with(bytes), "alone, it is as it was");
        feedback::note(4 + u32::from(header.flags) + 4 * u32::from(header.gso_type));
        return;
    }
    assert!(matches!(header.gso_type, vnet::GSO_TCPV4 | vnet::GSO_TCPV6));
    feedback::note(40 + frames.len().min(8) as u32);
    // Segments of more than the MTU joined are too long still.
    let Ok(frame) = Frame::parse(whole, MTU) else {
        return feedback::note(60);
    };
    let segments = Segments::parse(whole, MTU).expect("it parses");
    assert_eq!(segments.count(), frames.len());
    let mut at = 0;
    segments.for_each(|headers, payload| {
        let original = frames[at];
        at += 1;
        assert_eq!(headers[..14], original[..14], "the link's addresses");
        let end = headers.len() + payload.len();
        assert_eq!(original.get(headers.len()..end), Some(payload));
    });
    assert!(frame.vnet.needs_csum());
}
