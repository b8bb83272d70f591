//! The virtio-net header that travels before each frame.
//!
//! Source: `struct virtio_net_hdr` in `include/uapi/linux/virtio_net.h`, native (little-endian
//! here: legacy layout in host order) as a TAP carries it with IFF_VNET_HDR and a header size of
//! ten bytes. It says which checksum is still to be filled in and how a super-frame is to be cut.

/// Bytes of the header.
pub const VNET_HDR_LEN: usize = 10;

/// `flags`: the checksum from `csum_start` on is still to be computed; the field holds the
/// pseudo-header sum.
pub const F_NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum was verified.
pub const F_DATA_VALID: u8 = 2;

/// Not a super-frame.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// UDP fragmentation offload, obsolete.
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP segmentation (USO): each `gso_size` bytes of payload become one datagram.
pub const GSO_UDP_L4: u8 = 5;
/// Or-ed onto a TCP type: the super-frame carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// The header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHeader {
    /// `F_*` bits.
    pub flags: u8,
    /// One of `GSO_*`.
    pub gso_type: u8,
    /// Bytes of Ethernet, network and transport header. Set it always: the kernel then keeps the
    /// payload in page fragments.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksum starts, from the Ethernet header's first byte.
    pub csum_start: u16,
    /// Where the checksum field is, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header of a frame whose transport header of `header_len` bytes stands at `csum_start`, and
    /// whose checksum, `csum_offset` bytes behind, the receiver is to complete. It is not a super-frame
    /// until `gso_type` and `gso_size` are set.
    #[inline]
    pub fn unsummed(csum_start: usize, header_len: usize, csum_offset: u16) -> VnetHeader {
        VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_NONE,
            hdr_len: (csum_start + header_len) as u16,
            gso_size: 0,
            csum_start: csum_start as u16,
            csum_offset,
        }
    }

    /// Decodes the first [`VNET_HDR_LEN`] bytes; `None` if there are fewer.
    pub fn decode(b: &[u8]) -> Option<VnetHeader> {
        let b: &[u8; VNET_HDR_LEN] = b.get(..VNET_HDR_LEN)?.try_into().ok()?;
        let u16at = |i: usize| u16::from_ne_bytes([b[i], b[i + 1]]);
        Some(VnetHeader {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16at(2),
            gso_size: u16at(4),
            csum_start: u16at(6),
            csum_offset: u16at(8),
        })
    }

    /// Encodes the header as the kernel reads it.
    pub fn encode(self) -> [u8; VNET_HDR_LEN] {
        let mut b = [0; VNET_HDR_LEN];
        b[0] = self.flags;
        b[1] = self.gso_type;
        for (i, v) in [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ]
        .into_iter()
        .enumerate()
        {
            b[2 + 2 * i..4 + 2 * i].copy_from_slice(&v.to_ne_bytes());
        }
        b
    }

    /// Whether the transport checksum is still to be computed before it gets on a real wire.
    pub fn needs_csum(self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// The segmentation type without the ECN bit.
    pub fn gso(self) -> u8 {
        self.gso_type & !GSO_ECN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_and_decodes() {
        let h = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 66,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(VnetHeader::decode(&h.encode()), Some(h));
        assert_eq!(VnetHeader::decode(&h.encode()[..9]), None);
    }
}
