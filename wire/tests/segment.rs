//! Segmentation in software, held against an independent builder of packets, byte by byte.

use cnet_testkit::packets::*;
use cnet_wire::vnet::{self, VNET_HDR_LEN, VnetHeader};
use cnet_wire::{DropReason, Frame, L3, Segments};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader, TcpOptionElement,
};
use proptest::prelude::*;

/// A packet as the oracle is told it.
#[derive(Clone, Debug)]
struct Plan {
    v4: bool,
    tcp: bool,
    id: u16,
    sequence: u32,
    /// FIN, PSH, CWR, ECE.
    flags: [bool; 4],
    timestamps: bool,
    payload: Vec<u8>,
}

impl Plan {
    /// The plain frame, as the oracle writes it.
    fn frame(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(MAC_A.0, MAC_B.0);
        let number = if self.tcp {
            IpNumber::TCP
        } else {
            IpNumber::UDP
        };
        let ip = if self.v4 {
            let mut header = Ipv4Header::new(0, 64, number, A4.octets(), B4.octets()).unwrap();
            header.identification = self.id;
            header.dont_fragment = true;
            IpHeaders::Ipv4(header, Default::default())
        } else {
            let header = Ipv6Header {
                next_header: number,
                hop_limit: 64,
                source: A6.octets(),
                destination: B6.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        };
        let link = link.ip(ip);
        let mut frame = Vec::new();
        if self.tcp {
            let mut header = TcpHeader::new(4000, 80, self.sequence, 512);
            [header.fin, header.psh, header.cwr, header.ece] = self.flags;
            header.ack = true;
            header.acknowledgment_number = 77;
            if self.timestamps {
                let stamps = TcpOptionElement::Timestamp(1, 2);
                header
                    .set_options(&[TcpOptionElement::Noop, TcpOptionElement::Noop, stamps])
                    .unwrap();
            }
            link.tcp_header(header).write(&mut frame, &self.payload)
        } else {
            link.udp(4000, 53).write(&mut frame, &self.payload)
        }
        .unwrap();
        frame
    }

    fn headers_len(&self) -> usize {
        let ip = if self.v4 { 20 } else { 40 };
        let options = if self.timestamps { 12 } else { 0 };
        ETH + ip + if self.tcp { 20 + options } else { 8 }
    }

    fn vnet(&self, gso_size: u16) -> VnetHeader {
        let kind = match (self.tcp, self.v4) {
            (true, true) => vnet::GSO_TCPV4,
            (true, false) => vnet::GSO_TCPV6,
            (false, _) => vnet::GSO_UDP_L4,
        };
        let cwr = self.tcp && self.flags[2];
        VnetHeader {
            flags: vnet::F_NEEDS_CSUM,
            gso_type: if gso_size == 0 {
                vnet::GSO_NONE
            } else {
                kind | if cwr { vnet::GSO_ECN } else { 0 }
            },
            hdr_len: self.headers_len() as u16,
            gso_size,
            csum_start: if self.v4 { 34 } else { 54 },
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// With a virtio-net header, and nothing right where the checksum goes.
    fn offloaded(&self, gso_size: u16, junk: u16) -> Vec<u8> {
        let vnet = self.vnet(gso_size);
        let mut frame = vnet.encode().to_vec();
        frame.extend(self.frame());
        let field = VNET_HDR_LEN + usize::from(vnet.csum_start + vnet.csum_offset);
        frame[field..field + 2].copy_from_slice(&junk.to_be_bytes());
        frame
    }

    /// What a network card would make of it.
    fn cut(&self, size: usize) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(size).max(1);
        let part = |n: usize| {
            let last = n + 1 == count;
            let [fin, psh, cwr, ece] = self.flags;
            let start = n * size;
            let end = self.payload.len().min(start + size);
            Plan {
                id: self.id.wrapping_add(n as u16),
                sequence: self.sequence.wrapping_add(start as u32),
                flags: [fin && last, psh && last, cwr && n == 0, ece],
                payload: self.payload[start..end].to_vec(),
                ..self.clone()
            }
            .frame()
        };
        (0..count).map(part).collect()
    }
}

fn plans(longest: usize) -> impl Strategy<Value = Plan> {
    let kinds = any::<(bool, bool, bool)>();
    let numbers = any::<(u16, u32)>();
    let flags = any::<[bool; 4]>();
    (kinds, numbers, flags, 0..=longest, any::<u8>()).prop_map(
        |((v4, tcp, stamped), (id, sequence), flags, length, seed)| Plan {
            v4,
            tcp,
            id,
            sequence,
            flags,
            timestamps: tcp && stamped,
            payload: (0..length)
                .map(|i| (i as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0] ^ seed)
                .collect(),
        },
    )
}

fn collect(frame: &[u8]) -> Result<Vec<Vec<u8>>, DropReason> {
    let segments = Segments::parse(frame, MTU)?;
    let mut made = Vec::new();
    segments.for_each(|headers, payload| made.push([headers, payload].concat()));
    assert_eq!(made.len(), segments.count());
    assert_eq!(made.iter().map(Vec::len).sum::<usize>(), segments.bytes());
    Ok(made)
}

proptest! {
    #[test]
    fn super_frames_become_what_the_oracle_builds(
        plan in plans(65_000),
        size in 1..=MTU,
        junk: u16,
    ) {
        let longest = MTU + ETH - plan.headers_len();
        // Not much more than the segments a kernel asks for: the oracle is slow, and of datagrams
        // no more are taken.
        let most = if plan.tcp { 1400 } else { 128 };
        let size = size.clamp(plan.payload.len().div_ceil(most).max(1), longest);
        let made = collect(&plan.offloaded(size as u16, junk)).unwrap();
        prop_assert!(made.iter().all(|frame| frame.len() <= MTU + ETH));
        prop_assert_eq!(made, plan.cut(size));
    }

    #[test]
    fn checksums_are_filled_in(plan in plans(MTU - 80), junk: u16) {
        let made = collect(&plan.offloaded(0, junk)).unwrap();
        prop_assert_eq!(made, [plan.frame()]);
    }

    #[test]
    fn lies_are_refused_or_harmless(
        plan in plans(9000),
        at in 0..200_usize,
        value: u8,
        cut in 0..300_usize,
        gso in any::<u16>(),
    ) {
        let mut frame = plan.offloaded(gso, 0);
        let at = at % frame.len();
        frame[at] = value;
        frame.truncate(frame.len().saturating_sub(cut));
        if let Ok(made) = collect(&frame) {
            prop_assert!(made.iter().all(|frame| frame.len() <= MTU + ETH));
        }
    }
}

#[test]
fn frames_without_offloads_pass_as_they_are() {
    let arp = frame(MAC_B, MAC_A, 0x0806, &arp(1, MAC_A, A4, MAC_B, B4));
    assert_eq!(collect(&arp).unwrap(), [&arp[VNET_HDR_LEN..]]);
    let unknown = frame(MAC_B, MAC_A, 0x1234, &[9; 300]);
    assert_eq!(collect(&unknown).unwrap(), [&unknown[VNET_HDR_LEN..]]);
    for length in 0..VNET_HDR_LEN + ETH {
        assert_eq!(collect(&arp[..length]), Err(DropReason::FrameTooShort));
    }
}

#[test]
fn segments_behind_extension_headers_and_padding_are_right() {
    let datagram = udp(4000, 53, &[0x5a; 3000]);
    let packet = v6(60, &extension(17, 2, &datagram));
    let mut frame = with_vnet(
        ip_frame(&packet),
        VnetHeader {
            flags: vnet::F_NEEDS_CSUM,
            gso_type: vnet::GSO_UDP_L4,
            hdr_len: 0,
            gso_size: 1400,
            csum_start: 70,
            csum_offset: 6,
        },
    );
    frame.extend([0xee; 11]);
    let made = collect(&frame).unwrap();
    assert_eq!(made.len(), 3);
    let mut joined: Vec<u8> = Vec::new();
    for segment in &made {
        let with_header = [&[0; VNET_HDR_LEN], &segment[..]].concat();
        let parsed = Frame::parse(&with_header, MTU).unwrap();
        let L3::Ip(ip) = parsed.l3 else {
            panic!("not IP: {parsed:?}");
        };
        assert_eq!(ip.end, segment.len());
        assert!(parsed.l4_checksum_ok(&ip));
        joined.extend(&parsed.l4(&ip)[8..]);
    }
    assert_eq!(joined, [0x5a; 3000]);
    // As long as it fits: a chain of headers that leaves no room is refused.
    let long = v6(60, &extension(17, 25, &udp(1, 2, &[0; 100])));
    let vnet = VnetHeader {
        flags: vnet::F_NEEDS_CSUM,
        csum_start: 254,
        csum_offset: 6,
        ..VnetHeader::default()
    };
    assert!(collect(&with_vnet(ip_frame(&long), vnet)).is_err());
}

#[test]
fn a_sum_of_zero_is_written_in_its_other_form() {
    // Of the two bytes of payload one value in 65,536 makes the sum zero.
    let mut plan = Plan {
        v4: true,
        tcp: false,
        id: 0,
        sequence: 0,
        flags: [false; 4],
        timestamps: false,
        payload: vec![0, 0],
    };
    let sum = |frame: &[u8]| u16::from_be_bytes([frame[40], frame[41]]);
    plan.payload = sum(&plan.frame()).to_be_bytes().to_vec();
    let made = collect(&plan.offloaded(0, 0)).unwrap();
    assert_eq!(sum(&made[0]), 0xffff);
    assert_eq!(made, [plan.frame()]);
}
