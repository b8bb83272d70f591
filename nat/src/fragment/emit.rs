//! IP payloads to a container: whole where they fit its MTU, else in fragments.
//!
//! Theory of operation. A payload stands in the frame buffer at [`l4_offset`], its transport
//! checksum already real: a fragment has no field through which the kernel could be asked to fill it in.
//! Headers are written directly before each fragment's data, over data that was sent just before,
//! so that nothing is copied. Only the first IPv6 fragment lacks the room for its fragment header
//! (the buffer starts with the headers of a whole packet): its data moves by eight bytes, and the
//! bytes it covers are put back afterwards.
//!
//! Limits. Every fragment but the last carries a multiple of eight bytes, as many as fit. Fragments
//! have DF clear. After [`PortFull`] the rest of the datagram is not sent: it could not be
//! reassembled anyway.
//!
//! RFC 791 (IPv4), RFC 8200 section 4.5 (IPv6), RFC 6864 (the identification of a packet that is
//! not a fragment means nothing).

use cnet_wire::frame::ETHERNET_HEADER_LEN;
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{FrameSink, PortFull, VnetHeader, checksum};

use cnet_wire::headers::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpOut, Link, l4_offset, write_headers};

/// Bytes of the IPv6 fragment header.
pub(super) const FRAGMENT_HEADER_LEN: usize = 8;
/// Next Header value of the IPv6 fragment header.
pub(super) const FRAGMENT_HEADER: u8 = 44;
/// Where the IP header stands in a frame buffer.
pub(crate) const IP_OFFSET: usize = VNET_HDR_LEN + ETHERNET_HEADER_LEN;
/// More-fragments bit of the IPv4 flags and offset field.
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;

/// Sends `l4`, a transport header and payload with its checksum in place, as `ip` says, in packets
/// of at most `mtu` bytes. `id` is the identification if fragments are needed. `buf` is at least
/// [`cnet_wire::headers::FRAME_BUFFER_LEN`] bytes, `l4` at most what fits it.
///
/// # Errors
/// [`PortFull`] when the port did not take a frame; the remaining ones are not sent.
pub fn emit_ip_payload(
    sink: &mut impl FrameSink,
    buf: &mut [u8],
    link: &Link,
    ip: &IpOut,
    mtu: usize,
    id: u32,
    l4: &[u8],
) -> Result<(), PortFull> {
    let at = l4_offset(ip.src.is_ipv6());
    buf[at..at + l4.len()].copy_from_slice(l4);
    emit_in_place(sink, buf, link, ip, mtu, id, l4.len())
}

/// As [`emit_ip_payload`], for `l4_len` bytes of transport header and payload that stand at
/// [`l4_offset`] in `buf` already. What `buf` holds afterwards means nothing.
///
/// # Errors
/// As [`emit_ip_payload`].
pub fn emit_in_place(
    sink: &mut impl FrameSink,
    buf: &mut [u8],
    link: &Link,
    ip: &IpOut,
    mtu: usize,
    id: u32,
    l4_len: usize,
) -> Result<(), PortFull> {
    let v6 = ip.src.is_ipv6();
    let header_len = if v6 { IPV6_HEADER_LEN } else { IPV4_HEADER_LEN };
    if header_len + l4_len <= mtu {
        let vnet = whole_vnet(v6, l4_len);
        let end = write_headers(buf, vnet, link, ip, l4_len);
        return sink.emit(link.port, &buf[..end]);
    }
    let overhead = header_len + if v6 { FRAGMENT_HEADER_LEN } else { 0 };
    let step = (mtu.saturating_sub(overhead) & !7).max(8);
    let mut offset = 0;
    while offset < l4_len {
        let len = step.min(l4_len - offset);
        let piece = Piece {
            id,
            offset,
            len,
            more: offset + len < l4_len,
        };
        if v6 {
            piece.emit_v6(sink, buf, link, ip)?;
        } else {
            piece.emit_v4(sink, buf, link, ip)?;
        }
        offset += len;
    }
    Ok(())
}

/// The virtio-net header of a packet that is whole and has its checksum.
fn whole_vnet(v6: bool, l4_len: usize) -> VnetHeader {
    VnetHeader {
        hdr_len: (l4_offset(v6) - VNET_HDR_LEN + l4_len.min(8)) as u16,
        ..VnetHeader::default()
    }
}

/// Rewrites identification, flags and fragment offset of the IPv4 header at `ip`, and its checksum.
pub(super) fn set_ipv4_fragment(ip: &mut [u8], id: u16, offset: usize, more: bool) {
    let flags = if more { IPV4_MORE_FRAGMENTS } else { 0 };
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    ip[6..8].copy_from_slice(&(flags | (offset / 8) as u16).to_be_bytes());
    ip[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum::finish(0, &ip[..IPV4_HEADER_LEN]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// One fragment: `len` bytes, `offset` behind the start of the payload.
struct Piece {
    id: u32,
    offset: usize,
    len: usize,
    more: bool,
}

impl Piece {
    fn emit_v4(
        &self,
        sink: &mut impl FrameSink,
        buf: &mut [u8],
        link: &Link,
        ip: &IpOut,
    ) -> Result<(), PortFull> {
        let frame = &mut buf[self.offset..];
        let end = write_headers(frame, whole_vnet(false, 0), link, ip, self.len);
        set_ipv4_fragment(
            &mut frame[IP_OFFSET..],
            self.id as u16,
            self.offset,
            self.more,
        );
        sink.emit(link.port, &frame[..end])
    }

    fn emit_v6(
        &self,
        sink: &mut impl FrameSink,
        buf: &mut [u8],
        link: &Link,
        ip: &IpOut,
    ) -> Result<(), PortFull> {
        if self.offset > 0 {
            // The fragment before is at least eight bytes long.
            return self.write_v6(
                sink,
                &mut buf[self.offset - FRAGMENT_HEADER_LEN..],
                link,
                ip,
            );
        }
        let (start, end) = (l4_offset(true), l4_offset(true) + self.len);
        let mut covered = [0; FRAGMENT_HEADER_LEN];
        covered.copy_from_slice(&buf[end..end + FRAGMENT_HEADER_LEN]);
        buf.copy_within(start..end, start + FRAGMENT_HEADER_LEN);
        let sent = self.write_v6(sink, buf, link, ip);
        buf[end..end + FRAGMENT_HEADER_LEN].copy_from_slice(&covered);
        sent
    }

    /// Writes the headers at the start of `frame`, whose data already stands behind them.
    fn write_v6(
        &self,
        sink: &mut impl FrameSink,
        frame: &mut [u8],
        link: &Link,
        ip: &IpOut,
    ) -> Result<(), PortFull> {
        let outer = IpOut {
            protocol: FRAGMENT_HEADER,
            ..*ip
        };
        let len = FRAGMENT_HEADER_LEN + self.len;
        let end = write_headers(frame, whole_vnet(true, 0), link, &outer, len);
        let at = l4_offset(true);
        frame[at] = ip.protocol;
        frame[at + 1] = 0;
        // Offset in units of eight bytes in the upper 13 bits: a multiple of eight as it stands.
        let field = self.offset as u16 | u16::from(self.more);
        frame[at + 2..at + 4].copy_from_slice(&field.to_be_bytes());
        frame[at + 4..at + 8].copy_from_slice(&self.id.to_be_bytes());
        sink.emit(link.port, &frame[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::testing::{LINK, Wire};
    use cnet_wire::headers::FRAME_BUFFER_LEN;
    use etherparse::{IpNumber, NetSlice, SlicedPacket};
    use proptest::prelude::*;

    fn ip(v6: bool) -> IpOut {
        let (src, dst) = if v6 {
            ("2001:db8::1", "fd00::100")
        } else {
            ("192.0.2.1", "10.0.2.100")
        };
        IpOut {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol: 253,
            hop_limit: 61,
            tos: 0xb8,
        }
    }

    /// Puts the payload of the frames together, checking every header on the way.
    fn reassemble(frames: &[Vec<u8>], mtu: usize, id: u32) -> Vec<u8> {
        let mut whole = Vec::new();
        for (i, frame) in frames.iter().enumerate() {
            let last = i + 1 == frames.len();
            let packet = SlicedPacket::from_ethernet(&frame[VNET_HDR_LEN..]).unwrap();
            assert!(frame.len() - IP_OFFSET <= mtu);
            match packet.net.unwrap() {
                NetSlice::Ipv4(p) => {
                    let h = p.header();
                    assert_eq!(h.to_header().calc_header_checksum(), h.header_checksum());
                    assert_eq!(h.ttl(), 61);
                    assert_eq!(h.dcp().value() << 2, 0xb8);
                    assert_eq!(h.more_fragments(), !last);
                    if frames.len() > 1 {
                        assert!(!h.dont_fragment());
                        assert_eq!(u32::from(h.identification()), id & 0xffff);
                    }
                    assert_eq!(usize::from(h.fragments_offset().byte_offset()), whole.len());
                    whole.extend_from_slice(p.payload().payload);
                }
                NetSlice::Ipv6(p) => {
                    assert_eq!(p.header().hop_limit(), 61);
                    assert_eq!(p.header().traffic_class(), 0xb8);
                    assert_eq!(p.payload().ip_number, IpNumber(253));
                    let mut extensions = p.extensions().clone().into_iter();
                    match extensions.next() {
                        Some(etherparse::Ipv6ExtensionSlice::Fragment(f)) => {
                            assert!(frames.len() > 1);
                            assert_eq!(f.identification(), id);
                            assert_eq!(f.more_fragments(), !last);
                            assert_eq!(usize::from(f.fragment_offset().byte_offset()), whole.len());
                        }
                        None => assert_eq!(frames.len(), 1),
                        Some(_) => panic!("unexpected extension header"),
                    }
                    whole.extend_from_slice(p.payload().payload);
                }
                NetSlice::Arp(_) => panic!("not IP"),
            }
        }
        whole
    }

    fn round_trip(v6: bool, mtu: usize, payload: &[u8]) -> usize {
        let mut wire = Wire::default();
        let mut buf = vec![0x55; FRAME_BUFFER_LEN];
        let id = 0xdead_beef;
        emit_ip_payload(&mut wire, &mut buf, &LINK, &ip(v6), mtu, id, payload).unwrap();
        assert_eq!(reassemble(&wire.frames, mtu, id), payload);
        wire.frames.len()
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    #[test]
    fn whole_up_to_the_mtu_and_fragments_above() {
        assert_eq!(round_trip(false, 1500, &bytes(1480)), 1);
        assert_eq!(round_trip(false, 1500, &bytes(1481)), 2);
        assert_eq!(round_trip(true, 1500, &bytes(1460)), 1);
        assert_eq!(round_trip(true, 1500, &bytes(1461)), 2);
    }

    #[test]
    fn the_largest_payloads_fit_the_buffer() {
        for mtu in [1280, 1500, 9000, 65520, 65535] {
            round_trip(false, mtu, &bytes(65515));
            round_trip(true, mtu, &bytes(65495));
        }
    }

    #[test]
    fn a_full_port_ends_the_datagram() {
        let mut wire = Wire {
            room: Some(2),
            ..Wire::default()
        };
        let mut buf = vec![0; FRAME_BUFFER_LEN];
        let sent = emit_ip_payload(&mut wire, &mut buf, &LINK, &ip(true), 1280, 1, &bytes(9000));
        assert_eq!(sent, Err(PortFull));
        assert_eq!(wire.frames.len(), 2);
    }

    proptest! {
        #[test]
        fn any_length_and_mtu_arrives_whole(
            v6 in any::<bool>(),
            mtu in 576usize..9100,
            len in 1usize..20000,
        ) {
            round_trip(v6, mtu, &bytes(len));
        }
    }
}
