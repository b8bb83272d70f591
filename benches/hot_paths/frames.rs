//! What is done with any frame: parsing, checksums, headers.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::{Frame, protocol};
use cnet_wire::headers::{FRAME_BUFFER_LEN, IpOut, Link, write_headers};
use cnet_wire::host::HeaderFields;
use cnet_wire::tcp::{Flags, Route, SegmentOut, SynOptions, write_segment};
use cnet_wire::{PortId, Segments, VnetHeader, checksum};
use criterion::{BenchmarkId, Criterion, Throughput};

use crate::{group, measure};
use cnet_testkit::template::{
    self, GATEWAY_MAC, GATEWAY_V4, MTU, SUPER_PAYLOAD, Template, station,
};

/// A family's name, and a frame of it.
type Family = (&'static str, fn() -> Template);

pub fn parse(c: &mut Criterion) {
    let mut group = group(c, "parse");
    let families: [Family; 9] = [
        ("tcp_data", template::tcp_data),
        ("tcp_data_v6", template::tcp_data_v6),
        ("tcp_ack", template::tcp_ack),
        ("tcp_syn", template::tcp_syn),
        ("udp_small", template::udp_small),
        ("udp_super", template::udp_super),
        ("ping", template::ping),
        ("arp", || template::arp(GATEWAY_V4)),
        ("broadcast", template::broadcast),
    ];
    for (name, make) in families {
        let id = BenchmarkId::from_parameter(name);
        measure(&mut group, id, &mut None, make, |frame| {
            let frame = Frame::parse(black_box(frame.bytes()), MTU);
            assert!(black_box(frame).is_ok());
        });
    }
    group.finish();
}

pub fn checksum(c: &mut Criterion) {
    let mut group = group(c, "checksum");
    for len in [20, 64, 1500, 65535] {
        group.throughput(Throughput::Bytes(len as u64));
        let id = BenchmarkId::from_parameter(len);
        let make = || vec![0x5a_u8; len];
        measure(&mut group, id, &mut None, make, |data| {
            black_box(checksum::finish(0, black_box(data)));
        });
    }
    group.finish();
}

/// What a super-frame costs at the port of a virtual machine, the copy of its payload included.
pub fn segment(c: &mut Criterion) {
    let mut group = group(c, "segment");
    group.throughput(Throughput::Bytes(SUPER_PAYLOAD as u64));
    let families: [Family; 3] = [
        ("tcp_data", template::tcp_data),
        ("tcp_data_v6", template::tcp_data_v6),
        ("udp_super", template::udp_super),
    ];
    for (name, make) in families {
        let make = || (make(), Vec::with_capacity(2 * SUPER_PAYLOAD));
        let id = BenchmarkId::from_parameter(name);
        measure(&mut group, id, &mut None, make, |(frame, out)| {
            out.clear();
            let segments = Segments::parse(black_box(frame.bytes()), MTU);
            segments
                .expect("a frame with offloads")
                .for_each(|headers, payload| {
                    out.extend_from_slice(headers);
                    out.extend_from_slice(payload);
                });
            black_box(&out);
        });
    }
    group.finish();
}

pub fn headers(c: &mut Criterion) {
    // Longer than 60 lines: one bench after the other, each with what it writes.
    let mut group = group(c, "headers");
    let link = Link {
        port: PortId(1),
        gateway_mac: GATEWAY_MAC,
        container_mac: station(1).mac,
    };
    let end = |s: &str| s.parse::<SocketAddr>().expect("an address");
    let v4 = Route {
        src: end("198.18.0.1:443"),
        dst: end("10.0.1.1:40000"),
    };
    let v6 = Route {
        src: end("[2001:db8::1]:443"),
        dst: end("[fd00::100]:40000"),
    };
    let ack = SegmentOut {
        seq: Default::default(),
        ack: Default::default(),
        flags: Flags::ACK,
        window: 8192,
        syn: None,
        payload_len: 0,
        mss: template::MSS,
        fields: HeaderFields::default(),
    };
    let data = SegmentOut {
        payload_len: SUPER_PAYLOAD,
        ..ack
    };
    let syn_ack = SegmentOut {
        flags: Flags {
            syn: true,
            ..Flags::ACK
        },
        syn: Some(SynOptions {
            mss: template::MSS as u16,
            window_scale: Some(8),
            sack_permitted: true,
        }),
        ..ack
    };
    let buffer = || vec![0_u8; FRAME_BUFFER_LEN];
    for (name, route, segment) in [
        ("tcp_data", v4, data),
        ("tcp_data_v6", v6, data),
        ("tcp_ack", v4, ack),
        ("tcp_syn_ack", v4, syn_ack),
    ] {
        let id = BenchmarkId::from_parameter(name);
        measure(&mut group, id, &mut None, buffer, |buf| {
            black_box(write_segment(
                black_box(buf),
                &link,
                black_box(&route),
                &segment,
            ));
        });
    }
    for (name, route) in [("ip", v4), ("ip_v6", v6)] {
        let (src, dst): (IpAddr, IpAddr) = (route.src.ip(), route.dst.ip());
        let ip = IpOut {
            src,
            dst,
            protocol: protocol::UDP,
            hop_limit: 64,
            tos: 0,
        };
        let id = BenchmarkId::from_parameter(name);
        measure(&mut group, id, &mut None, buffer, |buf| {
            let vnet = VnetHeader::default();
            black_box(write_headers(
                black_box(buf),
                vnet,
                &link,
                black_box(&ip),
                72,
            ));
        });
    }
    group.finish();
}
