//! The UDP header (RFC 768): its reader and its writers.
//!
//! A datagram to a container leaves in one of two forms. [`write_unsummed`] writes all headers of a
//! frame, or of a super-frame, and leaves the checksum to the receiving kernel (NEEDS_CSUM).
//! [`write_summed`] writes the UDP header alone with a real checksum, for datagrams that travel in
//! fragments, which cannot be completed later.

use std::net::{IpAddr, SocketAddr};

use crate::headers::{IpOut, Link, l4_offset, write_headers};
use crate::ip::protocol;
use crate::vnet::{self, VNET_HDR_LEN, VnetHeader};
use crate::{DropReason, checksum};

/// Bytes of the UDP header.
pub const UDP_HEADER_LEN: usize = 8;
/// Offset of the checksum in the UDP header, in bytes.
pub const CHECKSUM_OFFSET: u16 = 6;

/// A received datagram, or a super-frame of several.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Sender's port.
    pub src_port: u16,
    /// Receiver's port.
    pub dst_port: u16,
    /// Data, without what follows the UDP length (RFC 9868 calls it the surplus area; a socket cannot
    /// send it).
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads a UDP header and payload. The caller verifies the checksum.
    ///
    /// # Errors
    /// [`DropReason::BadUdpHeader`] for a truncated header or a length that lies;
    /// [`DropReason::PortZero`] where no answer could find the sender, which is one of that port.
    pub fn parse(l4: &'a [u8]) -> Result<Datagram<'a>, DropReason> {
        let bad = DropReason::BadUdpHeader;
        let h: &[u8; UDP_HEADER_LEN] = l4.first_chunk().ok_or(bad)?;
        let len = usize::from(u16::from_be_bytes([h[4], h[5]]));
        let payload = l4.get(UDP_HEADER_LEN..len).ok_or(bad)?;
        let src_port = u16::from_be_bytes([h[0], h[1]]);
        let dst_port = u16::from_be_bytes([h[2], h[3]]);
        if src_port == 0 {
            return Err(DropReason::PortZero);
        }
        Ok(Datagram {
            src_port,
            dst_port,
            payload,
        })
    }
}

/// The part of `l4` that the checksum of the datagram at its start covers, and whether the header has
/// a checksum at all. `None` for a truncated header or a length that lies.
pub(crate) fn checksummed(l4: &[u8]) -> Option<(&[u8], bool)> {
    let h: &[u8; UDP_HEADER_LEN] = l4.first_chunk()?;
    let len = usize::from(u16::from_be_bytes([h[4], h[5]]));
    let datagram = l4.get(..len).filter(|d| d.len() >= UDP_HEADER_LEN)?;
    Some((datagram, h[6..8] != [0, 0]))
}

/// Writes `len`, the bytes of header and payload, into the header at the start of `udp`.
pub(crate) fn set_len(udp: &mut [u8], len: usize) {
    udp[4..6].copy_from_slice(&(len as u16).to_be_bytes());
}

/// A checksum as the header has it: zero would say that there is none (RFC 768).
pub(crate) fn nonzero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

/// The header of a datagram of `len` bytes, header and payload.
pub fn header(ports: [u16; 2], len: usize, checksum: u16) -> [u8; UDP_HEADER_LEN] {
    let [s0, s1] = ports[0].to_be_bytes();
    let [d0, d1] = ports[1].to_be_bytes();
    let [l0, l1] = (len as u16).to_be_bytes();
    let [c0, c1] = checksum.to_be_bytes();
    [s0, s1, d0, d1, l0, l1, c0, c1]
}

fn pseudo_header(src: IpAddr, dst: IpAddr, len: usize) -> u64 {
    checksum::pseudo_header(src, dst, protocol::UDP, len as u32)
}

/// Writes the header at the start of `l4`, checksum included. The payload stands behind it and ends
/// with `l4`. Both addresses are of one family.
pub fn write_summed(l4: &mut [u8], src: SocketAddr, dst: SocketAddr) {
    let len = l4.len();
    let ports = [src.port(), dst.port()];
    l4[..UDP_HEADER_LEN].copy_from_slice(&header(ports, len, 0));
    let pseudo = pseudo_header(src.ip(), dst.ip(), len);
    let sum = nonzero(checksum::finish(pseudo, l4));
    l4[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// Writes all headers of a frame into `buf` and returns the frame's length. `payload_len` bytes of
/// payload stand behind the place of the UDP header already. With `segment` they are several datagrams
/// of that many bytes, the last one possibly shorter, and the frame is a super-frame.
pub fn write_unsummed(
    buf: &mut [u8],
    link: &Link,
    ip: &IpOut,
    ports: [u16; 2],
    payload_len: usize,
    segment: Option<u16>,
) -> usize {
    let len = UDP_HEADER_LEN + payload_len;
    let start = l4_offset(ip.src.is_ipv6());
    let sum = checksum::fold(pseudo_header(ip.src, ip.dst, len));
    buf[start..start + UDP_HEADER_LEN].copy_from_slice(&header(ports, len, sum));
    let mut vnet = VnetHeader::unsummed(start - VNET_HDR_LEN, UDP_HEADER_LEN, CHECKSUM_OFFSET);
    if let Some(size) = segment {
        vnet.gso_type = vnet::GSO_UDP_L4;
        vnet.gso_size = size;
    }
    write_headers(buf, vnet, link, ip, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{UdpHeader, UdpSlice};
    use proptest::prelude::*;

    #[test]
    fn lengths_that_lie_and_senders_of_port_zero_are_refused() {
        let datagram = |len: u16, ports: [u16; 2]| {
            let mut bytes = header(ports, 0, 0).to_vec();
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
            bytes.extend(b"payload");
            bytes
        };
        for len in [0, 7, 16, u16::MAX] {
            let parsed = Datagram::parse(&datagram(len, [1, 2])).map(|d| d.payload.len());
            assert_eq!(parsed, Err(DropReason::BadUdpHeader), "{len}");
            assert!(checksummed(&datagram(len, [1, 2])).is_none());
        }
        for ports in [[0, 2], [0, 0]] {
            let parsed = Datagram::parse(&datagram(15, ports)).map(|d| d.payload.len());
            assert_eq!(parsed, Err(DropReason::PortZero));
        }
        let whole = datagram(12, [1, 2]);
        let d = Datagram::parse(&whole).unwrap();
        assert_eq!((d.src_port, d.dst_port, d.payload), (1, 2, &b"payl"[..]));
        assert_eq!(checksummed(&whole).unwrap(), (&whole[..12], false));
        for len in 0..UDP_HEADER_LEN {
            assert!(Datagram::parse(&whole[..len]).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_summed_datagram_is_what_etherparse_makes(
            v6: bool,
            ports in (1u16.., 1u16..),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let (src, dst) = match v6 {
                true => ("2001:db8::1", "fd00::100"),
                false => ("192.0.2.1", "10.0.2.100"),
            };
            let src: IpAddr = src.parse().unwrap();
            let dst: IpAddr = dst.parse().unwrap();
            let mut l4 = vec![0xaa; UDP_HEADER_LEN];
            l4.extend(&payload);
            write_summed(&mut l4, (src, ports.0).into(), (dst, ports.1).into());
            let built = match (src, dst) {
                (IpAddr::V4(s), IpAddr::V4(d)) => {
                    UdpHeader::with_ipv4_checksum(
                        ports.0,
                        ports.1,
                        &etherparse::Ipv4Header::new(0, 64, 17.into(), s.octets(), d.octets()).unwrap(),
                        &payload,
                    )
                }
                (IpAddr::V6(s), IpAddr::V6(d)) => {
                    let ip = etherparse::Ipv6Header {
                        source: s.octets(),
                        destination: d.octets(),
                        ..Default::default()
                    };
                    UdpHeader::with_ipv6_checksum(ports.0, ports.1, &ip, &payload)
                }
                _ => unreachable!(),
            };
            prop_assert_eq!(&l4[..UDP_HEADER_LEN], &built.unwrap().to_bytes()[..]);
            prop_assert_eq!(UdpSlice::from_slice(&l4).unwrap().payload(), &payload[..]);
            let read = Datagram::parse(&l4).unwrap();
            prop_assert_eq!((read.src_port, read.dst_port, read.payload), (ports.0, ports.1, &payload[..]));
        }
    }
}
