//! Super-frames come out of a TAP, and go in.

use std::io::{IoSlice, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use cnet_tap::socket::send_datagram;
use cnet_tap::{Limit, Tap, TapQueue, VNET_HDR_LEN};

use crate::stage::{eventually, in_new_namespaces};
use crate::tap::config;

// include/uapi/linux/virtio_net.h
const F_NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const IP_AT: usize = VNET_HDR_LEN + 14;
const TCP_AT: usize = IP_AT + 20;

fn tap(limit: Limit) -> Tap {
    let tap = Tap::create_with("tap0", 1, limit).unwrap();
    cnet_tap::netif::configure(tap.ifindex, "tap0", &config()).unwrap();
    tap
}

/// Reads the next frame that `wanted` takes, answering ARP on the way.
fn next_frame(queue: &TapQueue, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut space = vec![0; 70_000];
    let mut found = Vec::new();
    eventually("the frame", || {
        let Ok(length) = queue.read(&mut space) else {
            return false;
        };
        let frame = &space[..length];
        if frame[VNET_HDR_LEN + 12..IP_AT] == [8, 6] {
            queue.write(&arp_reply(frame)).unwrap();
        }
        if wanted(frame) {
            found = frame.to_vec();
        }
        !found.is_empty()
    });
    found
}

fn arp_reply(request: &[u8]) -> Vec<u8> {
    let arp = &request[IP_AT..];
    let mut reply = vec![0; VNET_HDR_LEN];
    reply.extend([&arp[8..14], &GATEWAY_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat());
    reply.extend([&GATEWAY_MAC, &arp[24..28], &arp[8..18]].concat());
    reply
}

fn is_ipv4(frame: &[u8], protocol: u8) -> bool {
    frame[VNET_HDR_LEN + 12..IP_AT] == [8, 0] && frame[IP_AT + 9] == protocol
}

fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|b| u32::from(b[0]) << 8 | u32::from(b.get(1).map_or(0, |b| *b)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A SYN/ACK to `syn`, its TCP checksum left to the kernel.
fn syn_ack(syn: &[u8]) -> Vec<u8> {
    let mut frame = vec![F_NEEDS_CSUM, 0, 0, 0, 0, 0];
    frame.extend([34_u16.to_ne_bytes(), 16_u16.to_ne_bytes()].concat());
    frame.extend([&syn[16..22], &GATEWAY_MAC, &[8, 0]].concat());
    let mut ip = vec![0x45, 0, 0, 48, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend([&syn[IP_AT + 16..IP_AT + 20], &syn[IP_AT + 12..IP_AT + 16]].concat());
    let sum = internet_checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    frame.extend(ip);
    let tcp = &syn[TCP_AT..];
    frame.extend([&tcp[2..4], &tcp[..2], &[0, 0, 0, 9]].concat());
    let sequence = u32::from_be_bytes(*tcp[4..].first_chunk().unwrap());
    frame.extend(sequence.wrapping_add(1).to_be_bytes());
    // Header of 28 bytes, SYN and ACK, window 65535, MSS 1460, window scale 7.
    frame.extend([
        0x70, 0x12, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4, 1, 3, 3, 7,
    ]);
    frame
}

/// Connects a TCP socket in the namespace to this test and gives the longest frame of a bulk
/// transfer's first window.
fn longest_bulk_frame(tap: &Tap) -> Vec<u8> {
    let queue = &tap.queues[0];
    let client = std::thread::spawn(|| {
        let to: SocketAddr = "10.0.2.2:80".parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        // Nothing is acknowledged, so this fills the socket's buffer and gives up.
        while stream.write_all(&[0; 65536]).is_ok() {}
    });
    let syn = next_frame(queue, |frame| is_ipv4(frame, 6) && frame[TCP_AT + 13] == 2);
    assert_eq!(
        (syn[0], syn[1]),
        (if tap.offloads.csum { F_NEEDS_CSUM } else { 0 }, 0)
    );
    queue.write(&syn_ack(&syn)).unwrap();
    let bulk = next_frame(queue, |frame| is_ipv4(frame, 6) && frame.len() > 1000);
    client.join().unwrap();
    let mut space = vec![0; 70_000];
    let mut longest = bulk;
    while let Ok(length) = queue.read(&mut space) {
        if is_ipv4(&space[..length], 6) && length > longest.len() {
            longest = space[..length].to_vec();
        }
    }
    longest
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn tcp_super_frames_come_out() {
    in_new_namespaces(|| {
        let tap = tap(Limit::default());
        let frame = longest_bulk_frame(&tap);
        // Without acknowledgements the kernel paces, and sends as few as two segments at once.
        assert!(
            frame.len() >= VNET_HDR_LEN + 54 + 2 * 1460,
            "{}",
            frame.len()
        );
        assert_eq!(
            (frame[0] & F_NEEDS_CSUM, frame[1]),
            (F_NEEDS_CSUM, GSO_TCPV4)
        );
        // hdr_len: Ethernet, IPv4, TCP without options; gso_size: the MSS that was offered.
        assert_eq!(u16::from_ne_bytes([frame[2], frame[3]]), 54);
        assert_eq!(u16::from_ne_bytes([frame[4], frame[5]]), 1460);
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn without_tso_the_kernel_segments() {
    in_new_namespaces(|| {
        for limit in [
            Limit {
                no_tso: true,
                ..Limit::default()
            },
            Limit {
                no_csum: true,
                ..Limit::default()
            },
        ] {
            let tap = tap(limit);
            let frame = longest_bulk_frame(&tap);
            assert_eq!(
                (frame.len(), frame[1]),
                (VNET_HDR_LEN + 1514, 0),
                "{limit:?}"
            );
            assert_eq!(
                frame[0] & F_NEEDS_CSUM,
                u8::from(tap.offloads.csum),
                "{limit:?}"
            );
        }
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn udp_super_frames_come_out_where_the_kernel_has_them() {
    in_new_namespaces(|| {
        for no_uso in [false, true] {
            let tap = tap(Limit {
                no_uso,
                ..Limit::default()
            });
            let socket = UdpSocket::bind("10.0.2.100:0").unwrap();
            socket.connect("10.0.2.2:9").unwrap();
            let payload = vec![1; 9500];
            send_datagram(
                &socket,
                None,
                &[IoSlice::new(&payload)],
                Some(1000),
                None,
                None,
            )
            .unwrap();
            let frame = next_frame(&tap.queues[0], |frame| is_ipv4(frame, 17));
            if tap.offloads.uso {
                assert_eq!(
                    (frame.len(), frame[1]),
                    (VNET_HDR_LEN + 42 + 9500, GSO_UDP_L4)
                );
                assert_eq!(u16::from_ne_bytes([frame[4], frame[5]]), 1000);
            } else {
                assert_eq!((frame.len(), frame[1]), (VNET_HDR_LEN + 42 + 1000, 0));
            }
        }
    });
}
