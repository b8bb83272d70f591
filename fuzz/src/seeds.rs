//! The inputs that mutation starts from, made from the kit's packets.
//!
//! They stand in `fuzz/corpus/` as files; `fuzz --write-corpus` writes them anew after a change of the
//! layout of an input.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_testkit::addresses::{DNS_V4, GATEWAY_V4, IPV4, IPV6, address};
use cnet_testkit::corpus as kinds;
use cnet_testkit::frames::{self, Tcp, flag};
use cnet_testkit::packets;
use cnet_testkit::template::{self, dns_message};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::{MacAddr, Vni, vxlan};

use crate::corpus::directory;
use crate::mutate::{Record, build};
use crate::targets::frames::{CLIENT, FROM_NEIGHBOUR, RELATIVE, REPLUG, TIME};

/// Settings of the inputs: checksums complete, brought to the end.
const SETTINGS: u8 = 0x41;

type Seeds = Vec<(&'static str, Vec<u8>)>;

/// Writes the inputs of all targets.
///
/// # Errors
/// A file cannot be written.
pub fn write() -> io::Result<()> {
    for (target, seeds) in all() {
        fs::create_dir_all(directory(target))?;
        for (name, input) in seeds {
            fs::write(directory(target).join(format!("{name}.bin")), input)?;
        }
    }
    Ok(())
}

/// The inputs of all targets, by the target's name.
fn all() -> Vec<(&'static str, Seeds)> {
    vec![
        ("switch", switch()),
        ("gateway", gateway()),
        ("tcp", tcp()),
        ("udp", udp()),
        ("icmp", icmp()),
        ("fragments", fragments()),
        ("dhcp", dhcp()),
        ("dhcpv6", dhcpv6()),
        ("ndp", neighbour_discovery()),
        ("dns-query", dns_query()),
        ("dns-answer", dns_answer()),
        ("control-json", control_json()),
        ("network-file", network_file()),
        ("qemu", qemu()),
        ("tunnel", tunnel()),
    ]
}

fn record(operation: u8, bytes: impl Into<Vec<u8>>) -> Record {
    Record {
        operation,
        bytes: bytes.into(),
    }
}

fn input(records: impl IntoIterator<Item = Record>) -> Vec<u8> {
    build(SETTINGS, &records.into_iter().collect::<Vec<_>>())
}

fn each(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    input(frames.into_iter().map(|frame| record(0, frame)))
}

/// The container's and a far address in one family.
fn ends(v6: bool) -> (IpAddr, IpAddr) {
    let far_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
    match v6 {
        true => (IPV6.into(), far_v6.into()),
        false => (IPV4.into(), Ipv4Addr::new(203, 0, 113, 7).into()),
    }
}

/// The frames of the kit's corpus that `wanted` picks, by protocol number and destination port.
fn picked(wanted: impl Fn(u8, u16) -> bool) -> Vec<Vec<u8>> {
    let mut all = kinds::all();
    all.retain(|frame| {
        let ip = VNET_HDR_LEN + 14;
        let (protocol, l4) = match frame[VNET_HDR_LEN + 12..ip] {
            [8, 0] => (frame[ip + 9], ip + 20),
            [0x86, 0xdd] => (frame[ip + 6], ip + 40),
            _ => return false,
        };
        let port = frame.get(l4 + 2..l4 + 4);
        wanted(
            protocol,
            port.map_or(0, |p| u16::from_be_bytes([p[0], p[1]])),
        )
    });
    all
}

fn switch() -> Seeds {
    let other = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
    let addressed = |to: MacAddr, from: MacAddr| {
        let mut frame = template::unicast(to).bytes().to_vec();
        frame[VNET_HDR_LEN + 6..VNET_HDR_LEN + 12].copy_from_slice(&from.0);
        frame
    };
    let container = cnet_testkit::addresses::MAC;
    vec![
        (
            "there-and-back",
            input([
                record(FROM_NEIGHBOUR, addressed(MacAddr::BROADCAST, other)),
                record(0, addressed(other, container)),
                record(FROM_NEIGHBOUR, addressed(container, other)),
            ]),
        ),
        (
            "everybody",
            input([
                record(0, template::broadcast().bytes()),
                record(FROM_NEIGHBOUR, template::broadcast().bytes()),
                record(REPLUG, []),
                record(0, template::broadcast().bytes()),
            ]),
        ),
        (
            "super-frame",
            input([
                record(FROM_NEIGHBOUR, addressed(MacAddr::BROADCAST, other)),
                record(0, {
                    let mut frame = template::udp_super().bytes()[..6_000].to_vec();
                    frame[VNET_HDR_LEN..VNET_HDR_LEN + 6].copy_from_slice(&other.0);
                    frame
                }),
            ]),
        ),
        (
            "other-types",
            each([
                frames::ethernet(MacAddr::BROADCAST, 0x88cc, &[0; 60]),
                frames::ethernet(MacAddr::BROADCAST, 0x8100, &[0, 1, 8, 0, 0x45, 0, 0, 20]),
                frames::arp(1, IPV4, IPV4),
            ]),
        ),
    ]
}

fn gateway() -> Seeds {
    let arp = [
        frames::arp(1, IPV4, GATEWAY_V4),
        frames::arp(2, IPV4, GATEWAY_V4),
        frames::arp(1, GATEWAY_V4, GATEWAY_V4),
    ];
    vec![
        ("arp", each(arp)),
        (
            "echo",
            each(picked(|protocol, _| matches!(protocol, 1 | 58))),
        ),
        (
            "dns-over-udp",
            each(picked(|protocol, port| protocol == 17 && port == 53)),
        ),
        ("dns-over-tcp", dns_over_tcp(false)),
        ("dns-over-tcp-v6", dns_over_tcp(true)),
        (
            "nobody",
            each(picked(|protocol, port| protocol == 17 && port == 9)),
        ),
    ]
}

fn dns_over_tcp(v6: bool) -> Vec<u8> {
    let from = SocketAddr::new(address(v6), 4001);
    let dns: IpAddr = match v6 {
        true => cnet_testkit::addresses::DNS_V6.into(),
        false => DNS_V4.into(),
    };
    let message = dns_message("a.example");
    let stream = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    connection(from, SocketAddr::new(dns, 53), &stream)
}

/// A connection that is opened, used and closed by the container.
fn connection(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let options = [2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7, 0, 0];
    let segment = |seq, ack, flags, options: &[u8], payload: &[u8]| {
        Tcp {
            from,
            to,
            seq,
            ack,
            flags,
            window: 10_000,
            urgent: 0,
            options,
            payload,
        }
        .frame()
    };
    let end = 1001 + data.len() as u32;
    input([
        record(0, segment(1000, 0, flag::SYN, &options, &[])),
        record(RELATIVE, segment(1001, 1, flag::ACK, &[], &[])),
        record(RELATIVE, segment(1001, 1, flag::ACK | flag::PSH, &[], data)),
        record(TIME, 20u16.to_be_bytes()),
        record(
            RELATIVE,
            segment(
                end,
                1,
                flag::ACK,
                &[1, 1, 5, 10, 0, 0, 4, 0, 0, 0, 8, 0],
                &[],
            ),
        ),
        record(RELATIVE, segment(end, 1461, flag::ACK, &[], &[])),
        record(
            RELATIVE,
            segment(end, 1461, flag::ACK | flag::FIN, &[], &[]),
        ),
        record(TIME, 300u16.to_be_bytes()),
        record(RELATIVE, segment(end + 1, 6001, flag::ACK, &[], &[])),
        record(RELATIVE, segment(end + 1, 6002, flag::ACK, &[], &[])),
    ])
}

fn tcp() -> Seeds {
    let mut seeds = Vec::new();
    for (v6, whole, reset, incoming) in [
        (false, "connection", "reset", "client"),
        (true, "connection-v6", "reset-v6", "client-v6"),
    ] {
        let (here, far) = ends(v6);
        let (from, to) = (SocketAddr::new(here, 4000), SocketAddr::new(far, 80));
        seeds.push((whole, connection(from, to, b"GET / HTTP/1.0\r\n\r\n")));
        let segment = |seq, ack, flags, from, to| {
            Tcp {
                from,
                to,
                seq,
                ack,
                flags,
                window: 500,
                urgent: 0,
                options: &[],
                payload: &[],
            }
            .frame()
        };
        let open = [
            record(0, segment(1000, 0, flag::SYN, from, to)),
            record(RELATIVE, segment(1001, 1, flag::ACK, from, to)),
            record(RELATIVE, segment(1001, 1, flag::RST, from, to)),
            record(0, segment(5000, 7, flag::ACK, from, to)),
        ];
        seeds.push((reset, input(open)));
        // The client's end as the container sees it.
        let client: SocketAddr = match v6 {
            true => ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9], 7).into(),
            false => ([198, 51, 100, 9], 7).into(),
        };
        let port = SocketAddr::new(here, 80);
        let accepted = [
            record(CLIENT, [u8::from(v6)]),
            record(TIME, 5u16.to_be_bytes()),
            record(
                RELATIVE,
                segment(1000, 1, flag::SYN | flag::ACK, port, client),
            ),
            record(
                RELATIVE,
                segment(1001, 1, flag::ACK | flag::FIN, port, client),
            ),
            record(TIME, 1000u16.to_be_bytes()),
            record(RELATIVE, segment(1002, 501, flag::ACK, port, client)),
        ];
        seeds.push((incoming, input(accepted)));
    }
    seeds.push(("every-kind", each(picked(|protocol, _| protocol == 6))));
    seeds
}

fn udp() -> Seeds {
    let mut seeds = Vec::new();
    for (v6, name, super_name) in [(false, "v4", "super"), (true, "v6", "super-v6")] {
        let (here, far) = ends(v6);
        let from = SocketAddr::new(here, 5000);
        let to = |port| SocketAddr::new(far, port);
        let records = [
            record(0, frames::udp(from, to(7), b"hello")),
            record(TIME, 5u16.to_be_bytes()),
            record(0, frames::udp(from, to(7), b"")),
            record(0, frames::udp(from, to(9), b"nobody")),
            record(TIME, 5u16.to_be_bytes()),
            record(0, frames::udp(from, to(123), &[1; 1200])),
            record(TIME, 60_000u16.to_be_bytes()),
        ];
        seeds.push((name, input(records)));
        let frame = match v6 {
            true => template::udp_super_v6(),
            false => template::udp_super(),
        };
        let mut frame = frame.bytes().to_vec();
        let source = if v6 {
            VNET_HDR_LEN + 22
        } else {
            VNET_HDR_LEN + 26
        };
        match here {
            IpAddr::V4(a) => frame[source..source + 4].copy_from_slice(&a.octets()),
            IpAddr::V6(a) => frame[source..source + 16].copy_from_slice(&a.octets()),
        }
        frame[VNET_HDR_LEN..VNET_HDR_LEN + 6]
            .copy_from_slice(&cnet_testkit::addresses::GATEWAY_MAC.0);
        frame[VNET_HDR_LEN + 6..VNET_HDR_LEN + 12].copy_from_slice(&cnet_testkit::addresses::MAC.0);
        frames::complete_ip(&mut frame);
        let rest = record(TIME, 5u16.to_be_bytes());
        let input = build(0x44, &[record(0, frame), rest]);
        seeds.push((super_name, input[..input.len().min(20_000)].to_vec()));
    }
    seeds
}

fn icmp() -> Seeds {
    vec![
        ("echo", each(picked(|protocol, _| protocol == 1))),
        ("echo-v6", each(picked(|protocol, _| protocol == 58))),
        ("error-about-a-mapping", {
            let (here, far) = ends(false);
            let to = SocketAddr::new(far, 7);
            let from = SocketAddr::new(here, 5000);
            let back = frames::udp(to, from, b"hello");
            let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
            error.extend_from_slice(&back[VNET_HDR_LEN + 14..]);
            input([
                record(0, frames::udp(from, to, b"hello")),
                record(0, frames::icmp(here, far, 64, &error)),
                record(TIME, 5u16.to_be_bytes()),
            ])
        }),
        ("last-hop", {
            let (here, far) = ends(false);
            each([frames::ip(here, far, 17, 1, &[0, 9, 0, 9, 0, 8, 0, 0])])
        }),
    ]
}

fn fragments() -> Seeds {
    let mut seeds = Vec::new();
    for (v6, order, reverse, tiny, echo) in [
        (false, "in-order", "reversed", "tiny", "echo"),
        (true, "in-order-v6", "reversed-v6", "tiny-v6", "echo-v6"),
    ] {
        let (here, far) = ends(v6);
        let ends = (SocketAddr::new(here, 5000), SocketAddr::new(far, 7));
        let long = frames::udp(ends.0, ends.1, &[7; 4000]);
        let mut pieces = frames::fragments(&long, 1200);
        seeds.push((order, each(pieces.clone())));
        pieces.reverse();
        seeds.push((reverse, each(pieces)));
        let short = frames::udp(ends.0, ends.1, &[7; 40]);
        seeds.push((tiny, each(frames::fragments(&short, 8))));
        let kind = if v6 { 128 } else { 8 };
        let request = [&[kind, 0, 0, 0, 0, 9, 0, 1][..], &[3; 3000]].concat();
        let ping = frames::icmp(here, far, 64, &request);
        let mut records: Vec<_> = frames::fragments(&ping, 1200)
            .into_iter()
            .map(|frame| record(0, frame))
            .collect();
        // One is missing, and its datagram is given up.
        records.pop();
        records.push(record(TIME, 61_000u16.to_be_bytes()));
        seeds.push((echo, input(records)));
    }
    seeds
}

/// The payload of a UDP frame.
fn payload(frame: &[u8]) -> Vec<u8> {
    let headers = if frame[VNET_HDR_LEN + 14] >> 4 == 4 {
        20
    } else {
        40
    };
    frame[VNET_HDR_LEN + 14 + headers + 8..].to_vec()
}

fn dhcp() -> Seeds {
    let messages = picked(|protocol, port| protocol == 17 && port == 67);
    let names = ["discover", "request", "decline", "release", "inform"];
    let mut seeds: Seeds = names
        .into_iter()
        .zip(messages.iter().map(|f| payload(f)))
        .collect();
    // With a client identifier, a server and an option that is overloaded.
    let mut long = payload(&messages[1]);
    long.pop();
    long.extend_from_slice(&[
        61, 7, 1, 0x52, 0x54, 0, 0, 0, 1, 54, 4, 10, 0, 2, 2, 52, 1, 3, 255,
    ]);
    seeds.push(("more-options", long));
    seeds
}

fn dhcpv6() -> Seeds {
    let messages = picked(|protocol, port| protocol == 17 && port == 547);
    let names = ["solicit", "request", "renew", "release", "information"];
    names
        .into_iter()
        .zip(messages.iter().map(|f| payload(f)))
        .collect()
}

fn neighbour_discovery() -> Seeds {
    let messages = picked(|protocol, _| protocol == 58);
    let bodies = messages.iter().map(|f| f[VNET_HDR_LEN + 54..].to_vec());
    let of = |kind: u8| {
        let mut found = bodies.clone().filter(move |body| body[0] == kind);
        found.next().unwrap_or_default()
    };
    let with = |ends: u8, kind: u8| [&[ends][..], &of(kind)].concat();
    vec![
        ("solicitation", with(8, 135)),
        ("solicitation-unicast", with(0, 135)),
        ("advertisement", with(0, 136)),
        ("router-solicitation", with(4, 133)),
        ("router-advertisement", with(12, 134)),
        ("redirect", with(0, 137)),
        ("echo", with(0, 128)),
        ("multicast-listener", with(6, 143)),
        (
            "duplicate-address-detection",
            [&[11][..], &of(135)[..24]].concat(),
        ),
    ]
}

fn dns_query() -> Seeds {
    let message = dns_message("a.example");
    let stream = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let two = [&stream[..], &stream].concat();
    let mut transfer = message.clone();
    transfer[24] = 252;
    vec![
        ("udp", [&[0][..], &message].concat()),
        ("udp-v6", [&[1][..], &message].concat()),
        ("tcp", [&[2][..], &stream].concat()),
        ("tcp-v6-two", [&[3][..], &two].concat()),
        ("zone-transfer", [&[0][..], &transfer].concat()),
    ]
}

fn dns_answer() -> Seeds {
    let mut empty = dns_message("a.example");
    empty[2] |= 0x80;
    let question = empty[12..27].to_vec();
    let header = |code: u8, answers: u8| {
        let mut head = vec![0x12, 0x34, 0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
        head.extend_from_slice(&question);
        head
    };
    let mut address = header(0, 1);
    address.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    let mut long = header(0, 40);
    for n in 0..40 {
        long.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, n]);
    }
    long[11] = 1;
    long.extend_from_slice(&[0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    vec![
        ("empty-with-opt", empty),
        ("address", address),
        ("no-such-name", header(3, 0)),
        ("failed", header(2, 0)),
        ("long", long),
    ]
}

fn control_json() -> Seeds {
    let texts = [
        ("inspect", r#"{"inspect":{}}"#),
        (
            "attach",
            r#"{"attach":{"name":"web","aliases":["www"],"ipv4":"10.88.0.7","ipv6":"fd00::7","mac":"02:00:00:00:00:01","interface":"eth0","publish":["127.0.0.1:8080-8083:80-83/tcp","53/udp"],"member":7}}"#,
        ),
        (
            "attach-vm",
            r#"{"attach":{"id":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","vm":"dgram:/run/a:/run/b"}}"#,
        ),
        (
            "attach-path",
            r#"{"attach":{"path":"/run/netns/a","vm":"stream:/run/c"}}"#,
        ),
        ("detach", r#"{"detach":{"container":"web"}}"#),
        (
            "publish",
            r#"{"publish":{"container":"web","ports":["[::1]:80:8080/tcp","9000-9010"]}}"#,
        ),
        (
            "unpublish",
            r#"{"unpublish":{"container":"web","ports":["80"]}}"#,
        ),
        ("statistics", r#"{"statistics":{}}"#),
        ("stop", r#"{"stop":{"force":true}}"#),
    ];
    texts
        .map(|(name, text)| (name, text.as_bytes().to_vec()))
        .into()
}

fn network_file() -> Seeds {
    let head = "name = \"web\"\nid = \"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"\ncreated = \"2026-01-02T03:04:05Z\"\ndriver = \"bridge\"\n";
    let v4 = "[ipv4]\nsubnet = \"10.88.0.0/24\"\ngateway = \"10.88.0.1\"\nip_range = \"10.88.0.128/25\"\n";
    let v6 = "[ipv6]\nsubnet = \"fd00:88::/64\"\ngateway = \"fd00:88::1\"\n";
    let extras = "internal = true\nisolate = true\nmtu = 9000\ndns = [\"192.0.2.53\", \"2001:db8::53\"]\ndns_search = [\"example\"]\n";
    vec![
        ("ipv4", [head, v4].concat().into()),
        ("ipv6", [head, v6].concat().into()),
        (
            "everything",
            [head, extras, v4, v6, "[labels]\nowner = \"a\"\n"]
                .concat()
                .into(),
        ),
        ("none", head.into()),
    ]
}

fn qemu() -> Seeds {
    let framed = |frame: &[u8]| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
    let plain: Vec<Vec<u8>> = kinds::all()
        .iter()
        .map(|frame| framed(&frame[VNET_HDR_LEN..]))
        .collect();
    let with = |way: u8, stream: &[u8]| [&[way][..], stream].concat();
    vec![
        ("byte-by-byte", with(0, &plain[0])),
        ("three-bytes", with(1, &plain[..3].concat())),
        ("many", with(4, &plain.concat())),
        ("at-once", with(7, &plain[..12].concat())),
        (
            "a-lie",
            with(5, &[&plain[0][..], &[0, 0, 0, 13, 1, 2]].concat()),
        ),
        ("cut-short", with(6, &plain[1][..30])),
    ]
}

/// Datagrams behind their lengths: a run of segments that go on, with one in between that does not.
fn tunnel() -> Seeds {
    let header = vxlan::header(const { Vni::new(42).unwrap() });
    let datagram = |frame: &[u8]| {
        let length = (header.len() + frame.len()) as u16;
        [&length.to_be_bytes()[..], &header, frame].concat()
    };
    let segment = |n: usize, payload: &[u8]| {
        let mut tcp = packets::tcp(payload);
        tcp[4..8].copy_from_slice(&((n * 100) as u32).to_be_bytes());
        // ACK alone, as bulk has it.
        tcp[13] = 0x10;
        let frame = packets::ip_frame(&packets::v4(6, &tcp));
        frame[VNET_HDR_LEN..].to_vec()
    };
    let run: Vec<Vec<u8>> = (0..6)
        .map(|n| datagram(&segment(n, &[n as u8; 100])))
        .collect();
    let plain = kinds::all();
    let plain = plain.iter().map(|frame| datagram(&frame[VNET_HDR_LEN..]));
    let with = |flags: u8, datagrams: &[Vec<u8>]| [&[flags][..], &datagrams.concat()].concat();
    let (early, late) = run.split_at(3);
    let last = datagram(&segment(6, &[6; 30]));
    let broken = [early, &[datagram(&segment(9, &[1; 100]))], late].concat();
    vec![
        ("a-run", with(1, &[&run[..], &[last]].concat())),
        ("a-hole", with(1, &broken)),
        ("not-verified", with(0, &run)),
        ("all-kinds", with(1, &plain.collect::<Vec<_>>())),
        ("cut-short", with(1, &[run[0][..40].to_vec()])),
    ]
}
