//! Targets whose input is one message to a service of the gateway, in a frame that is right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cnet_testkit::addresses::{GATEWAY_V6, IPV4, IPV6, MAC};
use cnet_testkit::{frames, offload};
use cnet_wire::MacAddr;
use cnet_wire::vnet::VNET_HDR_LEN;

use super::network::{DHCP_RANGE, NEIGHBOUR, Network, PORT, Settings};
use crate::feedback;

/// The MAC address of the container without a lease.
const OTHER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
/// The longest message that goes into one frame.
const MAX_MESSAGE: usize = 1400;
/// The network of these targets: it takes its time, and is brought to its end.
const SETTINGS: Settings = Settings(0);

fn cut(input: &[u8]) -> &[u8] {
    &input[..input.len().min(MAX_MESSAGE)]
}

/// The payloads of the datagrams that the gateway sent from `port`.
fn datagrams(sent: &[Vec<u8>], port: u16) -> Vec<&[u8]> {
    let payload = |frame: &'_ Vec<u8>| match offload::ip_at(frame) {
        Ok(Some(at)) if at.protocol == 17 && !at.fragment => {
            let from = u16::from_be_bytes([frame[at.l4], frame[at.l4 + 1]]);
            (from == port).then_some(at.payload..at.end)
        }
        _ => None,
    };
    let found = sent
        .iter()
        .filter_map(|f| payload(f).map(|range| &f[range]));
    found.collect()
}

/// A DHCPv4 message, broadcast by the container with a lease and by the one without.
pub fn dhcp(input: &[u8]) {
    let message = cut(input);
    let mut network = Network::new(SETTINGS);
    let client = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 68);
    let server = SocketAddr::new(Ipv4Addr::BROADCAST.into(), 67);
    for (port, mac) in [(PORT, MAC), (NEIGHBOUR, OTHER_MAC)] {
        let mut frame = frames::udp(client, server, message);
        frame[VNET_HDR_LEN..VNET_HDR_LEN + 6].fill(0xff);
        frame[VNET_HDR_LEN + 6..VNET_HDR_LEN + 12].copy_from_slice(&mac.0);
        network.frame(port, &frame);
        let sent = network.sent(port);
        let replies = datagrams(&sent, 67);
        assert!(replies.len() <= 1, "{} replies", replies.len());
        for reply in replies {
            feedback::note(40);
            check_dhcp_reply(message, reply);
        }
    }
    network.finish(SETTINGS);
}

/// RFC 2131, table 3: op, xid, chaddr and the address.
fn check_dhcp_reply(message: &[u8], reply: &[u8]) {
    assert!(reply.len() >= 240, "a reply of {} bytes", reply.len());
    assert_eq!(reply[0], 2, "no reply");
    assert_eq!(reply[4..8], message[4..8], "another transaction");
    assert_eq!(reply[28..44], message[28..44], "another client");
    assert_eq!(reply[236..240], [99, 130, 83, 99]);
    let yours = Ipv4Addr::new(reply[16], reply[17], reply[18], reply[19]);
    let [a, b, c, last] = yours.octets();
    let in_range = [a, b, c] == [10, 0, 2] && (DHCP_RANGE.0..=DHCP_RANGE.1).contains(&last);
    assert!(
        yours.is_unspecified() || yours == IPV4 || in_range,
        "an address that is not to be had: {yours}"
    );
}

/// A DHCPv6 message to all servers.
pub fn dhcpv6(input: &[u8]) {
    let message = cut(input);
    let mut network = Network::new(SETTINGS);
    let all_servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    let frame = frames::udp((IPV6, 546).into(), (all_servers, 547).into(), message);
    network.frame(PORT, &frame);
    let sent = network.sent(PORT);
    for reply in datagrams(&sent, 547) {
        feedback::note(40);
        // ADVERTISE or REPLY (RFC 8415, section 7.3), of the same transaction.
        assert!(matches!(reply[0], 2 | 7), "message type {}", reply[0]);
        assert_eq!(reply[1..4], message[1..4], "another transaction");
    }
    network.finish(SETTINGS);
}

/// An ICMPv6 message with hop limit 255. The first byte says from and to whom.
pub fn neighbour_discovery(input: &[u8]) {
    let Some((&ends, message)) = input.split_first() else {
        return;
    };
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);
    let source = match ends & 3 {
        0 | 1 => IPV6,
        2 => link_local,
        _ => Ipv6Addr::UNSPECIFIED,
    };
    let destination = match ends >> 2 & 3 {
        0 => GATEWAY_V6,
        1 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
        2 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2),
        _ => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    };
    let mut network = Network::new(SETTINGS);
    let ends: (IpAddr, IpAddr) = (source.into(), destination.into());
    let frame = frames::icmp(ends.0, ends.1, 255, cut(message));
    network.frame(PORT, &frame);
    for frame in network.sent(PORT) {
        let Ok(Some(at)) = offload::ip_at(&frame) else {
            continue;
        };
        // Neighbour discovery is believed only with hop limit 255 (RFC 4861, section 7.1).
        if at.protocol == 58 && (133..=137).contains(&frame[at.l4]) {
            assert_eq!(frame[21], 255, "hop limit");
            assert!(matches!(frame[at.l4], 134..=136), "type {}", frame[at.l4]);
        }
    }
    network.finish(SETTINGS);
}
