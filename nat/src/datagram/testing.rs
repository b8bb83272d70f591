//! What the tests of the datagram engines share beyond [`cnet_testkit`].

use cnet_wire::time::Instant;
use cnet_wire::{Frame, L3};

use crate::fragment::Reassembly;

pub(crate) use cnet_testkit::host::scripted::Scripted as FakeHost;
pub(crate) use cnet_testkit::independent::{IP, Ip, LINK, Packet, frame_from, udp_datagram};
pub(crate) use cnet_testkit::sink::Kept as Wire;

/// Reads frames to the container that are all of one packet.
pub(crate) fn reassemble(frames: &[Vec<u8>]) -> Packet {
    let mut reassembly = Reassembly::new();
    let mut whole = None;
    for bytes in frames {
        assert!(whole.is_none());
        let frame = Frame::parse(bytes, 65535).unwrap();
        let L3::Ip(ip) = frame.l3 else { panic!("ARP") };
        if ip.fragment.is_none() {
            return Packet::read(bytes);
        }
        whole = reassembly
            .handle_fragment(Instant::ZERO, LINK.port, &frame, &ip)
            .unwrap();
    }
    Packet::read(whole.unwrap().bytes())
}
