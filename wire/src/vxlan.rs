//! VXLAN (RFC 7348): an Ethernet frame in a UDP datagram behind eight bytes that name a network.
//!
//! The header is one byte of flags, of which only [`FLAG_VNI`] is used, three reserved bytes, the
//! 24-bit network identifier (VNI) and one reserved byte. As the kernel does (`vxlan_rcv` in
//! `drivers/net/vxlan/vxlan_core.c`), a reader refuses a header with other bits set: they would belong
//! to an extension that it does not speak.
//!
//! # Limits
//!
//! The outer IP and UDP headers are the kernel's. Extensions (group policy, GPE) are not spoken.

use crate::drops::DropReason;
use crate::ethernet::ETHERNET_HEADER_LEN;
use crate::frame::{IpHeader, protocol};
use crate::udp::UDP_HEADER_LEN;
use crate::{ipv4, ipv6};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// The UDP port of VXLAN (IANA). Linux without `dstport`, and flannel, use 8472.
pub const PORT: u16 = 4789;
/// What a tunnel over IPv4 takes from the MTU of its path, in bytes: outer IPv4, UDP and VXLAN headers,
/// and the inner Ethernet header.
pub const OVERHEAD_V4: u16 = 50;
/// The same over IPv6.
pub const OVERHEAD_V6: u16 = 70;
/// The first byte: a VNI follows.
pub const FLAG_VNI: u8 = 0x08;

/// A VXLAN network identifier: 24 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Vni(u32);

impl Vni {
    /// The largest.
    pub const MAX: u32 = 0x00ff_ffff;

    /// `None` if `number` has more than 24 bits.
    pub const fn new(number: u32) -> Option<Vni> {
        match number <= Vni::MAX {
            true => Some(Vni(number)),
            false => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The header of a frame of the network `vni`.
pub const fn header(vni: Vni) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.0.to_be_bytes();
    [FLAG_VNI, 0, 0, 0, a, b, c, 0]
}

/// Takes the header off a datagram's payload: the network, and the frame in it.
///
/// # Errors
///
/// [`DropReason::BadVxlanHeader`] if it is shorter than the header and an Ethernet header, or has other
/// bits set than a VNI's.
pub fn decode(datagram: &[u8]) -> Result<(Vni, &[u8]), DropReason> {
    let (&[flags, r0, r1, r2, a, b, c, r3], frame) = datagram
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(DropReason::BadVxlanHeader)?;
    if flags != FLAG_VNI || [r0, r1, r2, r3] != [0; 4] || frame.len() < ETHERNET_HEADER_LEN {
        return Err(DropReason::BadVxlanHeader);
    }
    Ok((Vni(u32::from_be_bytes([0, a, b, c])), frame))
}

/// Whether `frame`, an Ethernet frame of the network `vni`, carries a VXLAN datagram to `port` of that
/// same network: a tunnel within itself, whose frames would never come out.
pub fn is_nested(frame: &[u8], ip: &IpHeader, port: u16, vni: Vni) -> bool {
    if ip.protocol != protocol::UDP || ip.fragment.is_some_and(|f| f.offset > 0) {
        return false;
    }
    let l4 = frame.get(ip.l4..ip.end).unwrap_or_default();
    let to_port = l4.get(2..4) == Some(&port.to_be_bytes());
    to_port
        && l4
            .get(UDP_HEADER_LEN..)
            .and_then(|payload| decode(payload).ok())
            .is_some_and(|(inner, _)| inner == vni)
}

/// The network header of an Ethernet frame, checked; `None` if it carries no IP packet.
///
/// # Errors
///
/// As [`crate::Frame::parse`].
pub(crate) fn network_header(frame: &[u8]) -> Result<Option<IpHeader>, DropReason> {
    use crate::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
    let (ethernet, packet) = frame
        .split_first_chunk::<ETHERNET_HEADER_LEN>()
        .ok_or(DropReason::FrameTooShort)?;
    match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        ETHERTYPE_IPV4 => ipv4::parse(packet).map(Some),
        ETHERTYPE_IPV6 => ipv6::parse(packet).map(Some),
        _ => Ok(None),
    }
}

/// A number that is the same for all frames of a flow and differs between flows: what a tunnel's
/// source port is made of, so that the hosts' queues and the paths between them share the load
/// (RFC 7348 section 5). Made of the bytes where addresses and ports stand in a packet without options.
pub fn entropy(frame: &[u8]) -> u32 {
    // IPv4 addresses and ports, or IPv6's. Where the frame is something else, its Ethernet header.
    let range = match frame.get(12..14) {
        Some([0x08, 0x00]) => 26..38,
        Some([0x86, 0xdd]) => 22..58,
        _ => 0..12,
    };
    let bytes = frame.get(range).or(frame.get(..12)).unwrap_or_default();
    let hash = bytes.chunks(4).fold(0u32, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        // Knuth's multiplicative hash; the turn lets high bits count again.
        (hash.rotate_left(5) ^ u32::from_ne_bytes(word)).wrapping_mul(0x9e37_79b1)
    });
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_is_rfc_7348s() {
        let vni = Vni::new(0x01_0203).unwrap();
        assert_eq!(header(vni), [8, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(Vni::new(0x0100_0000), None);
        let mut datagram = header(vni).to_vec();
        datagram.extend([7; 14]);
        assert_eq!(decode(&datagram), Ok((vni, &[7; 14][..])));
    }

    #[test]
    fn truncated_and_foreign_headers_are_refused() {
        let vni = Vni::new(9).unwrap();
        let whole = [&header(vni)[..], &[0; 14]].concat();
        for len in 0..whole.len() {
            assert_eq!(decode(&whole[..len]), Err(DropReason::BadVxlanHeader));
        }
        for bit in (0..32).chain(56..64).filter(|&bit| bit != 4) {
            let mut other = whole.clone();
            other[bit / 8] ^= 0x80 >> (bit % 8);
            assert_eq!(decode(&other), Err(DropReason::BadVxlanHeader), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(number in 0..=Vni::MAX, frame in any::<[u8; 30]>()) {
            let vni = Vni::new(number).unwrap();
            let datagram = [&header(vni)[..], &frame].concat();
            prop_assert_eq!(decode(&datagram), Ok((vni, &frame[..])));
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = entropy(&bytes);
            if let Ok(Some(ip)) = network_header(&bytes) {
                let _ = is_nested(&bytes, &ip, PORT, Vni(1));
            }
        }
    }

    #[test]
    fn flows_differ_and_frames_of_one_do_not() {
        let frame = |source_port: u16, payload: u8| {
            let mut frame = vec![0; 60];
            frame[12] = 8;
            frame[34..36].copy_from_slice(&source_port.to_be_bytes());
            frame[50] = payload;
            frame
        };
        assert_eq!(entropy(&frame(5, 1)), entropy(&frame(5, 2)));
        let of_eight = |port| entropy(&frame(port, 0)) % 8;
        let used: std::collections::BTreeSet<u32> = (1000..1100).map(of_eight).collect();
        assert_eq!(used.len(), 8, "all of eight paths are used");
    }
}
