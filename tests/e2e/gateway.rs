//! What the gateway tells a container that asks: addresses by DHCP, resolvers by DHCPv6, neighbours.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use rustix::net::sockopt::set_socket_broadcast;

use crate::lab::Lab;
use crate::lab::container::{DNS_V4, GATEWAY_V4, Options, Slirp};
use crate::lab::wait_until;

/// Option numbers and message types of RFC 2132.
const ROUTER: u8 = 3;
const RESOLVER: u8 = 6;
const REQUESTED: u8 = 50;
const TYPE: u8 = 53;
const SERVER: u8 = 54;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// The transaction id of every message here.
const XID: [u8; 4] = [7, 7, 7, 7];

/// A DHCP message of a client's (RFC 2131, section 2), with options.
fn dhcp(mac: [u8; 6], options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; 236];
    // A request over Ethernet; answers are to be broadcast.
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&XID);
    message[10] = 0x80;
    message[28..34].copy_from_slice(&mac);
    message.extend([99, 130, 83, 99]);
    for (number, value) in options {
        message.push(*number);
        message.push(u8::try_from(value.len()).expect("a short option"));
        message.extend(*value);
    }
    message.push(255);
    message
}

/// The address that an answer gives, and its options.
struct Lease {
    address: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Lease {
    fn read(message: &[u8]) -> Self {
        assert!(message.len() > 240 && message[0] == 2, "{message:?}");
        assert_eq!(message[4..8], XID);
        let address: [u8; 4] = message[16..20].try_into().expect("four bytes");
        let mut options = Vec::new();
        let mut rest = &message[240..];
        while let [number, length, tail @ ..] = rest {
            match number {
                0 => rest = &rest[1..],
                255 => break,
                _ => {
                    let (value, after) = tail.split_at(usize::from(*length));
                    options.push((*number, value.to_vec()));
                    rest = after;
                }
            }
        }
        Self {
            address: address.into(),
            options,
        }
    }

    fn option(&self, number: u8) -> &[u8] {
        let found = self.options.iter().find(|(found, _)| *found == number);
        found.map_or(&[], |(_, value)| value)
    }
}

/// The TAP's own hardware address.
fn mac_of_tap(slirp: &Slirp) -> [u8; 6] {
    let link = slirp.namespace().ip("-o link show tap0");
    let mut words = link
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    let mac = words.nth(1).expect("a hardware address");
    let mut bytes = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"));
    std::array::from_fn(|_| bytes.next().expect("six bytes"))
}

/// Sends until an answer comes.
fn ask(socket: &UdpSocket, message: &[u8], to: SocketAddr) -> Vec<u8> {
    wait_until("an answer", Duration::from_secs(5), || {
        let sent = socket.send_to(message, to);
        sent.map_err(|error| error.to_string())?;
        let mut buffer = [0; 2048];
        let length = socket
            .recv(&mut buffer)
            .map_err(|error| error.to_string())?;
        Ok(buffer[..length].to_vec())
    })
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn dhcp_leases_an_address_with_router_and_resolver() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    let mac = mac_of_tap(&slirp);
    let limit = Duration::from_millis(500);
    let client = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68));
    let socket = slirp.namespace().udp(client, limit);
    set_socket_broadcast(&socket, true).expect("allowed to every socket");
    let everybody = SocketAddr::from((Ipv4Addr::BROADCAST, 67));
    slirp
        .namespace()
        .ip("route add 255.255.255.255/32 dev tap0");

    let discover = dhcp(mac, &[(TYPE, &[DISCOVER])]);
    let offer = Lease::read(&ask(&socket, &discover, everybody));
    assert_eq!(offer.option(TYPE), [OFFER]);
    assert_eq!(offer.option(SERVER), GATEWAY_V4.octets());

    let wanted = offer.address.octets();
    let server = GATEWAY_V4.octets();
    let request = [
        (TYPE, &[REQUEST][..]),
        (REQUESTED, &wanted),
        (SERVER, &server),
    ];
    let lease = Lease::read(&ask(&socket, &dhcp(mac, &request), everybody));
    assert_eq!(lease.option(TYPE), [ACK]);
    assert_eq!(lease.address, offer.address);
    assert_eq!(lease.option(ROUTER), GATEWAY_V4.octets());
    assert_eq!(lease.option(RESOLVER), DNS_V4.octets());
    // As slirp4netns: the first of the range, whatever address --configure gave the interface, and
    // any free one of the range to a client that asks for it.
    assert_eq!(lease.address, Ipv4Addr::new(10, 0, 2, 15));
    for (wanted, granted) in [([10, 0, 2, 22], true), ([10, 0, 2, 100], false)] {
        let request = [(TYPE, &[REQUEST][..]), (REQUESTED, &wanted)];
        let answer = Lease::read(&ask(&socket, &dhcp(mac, &request), everybody));
        let expected = if granted { ACK } else { NAK };
        assert_eq!(answer.option(TYPE), [expected], "{wanted:?}");
        if granted {
            assert_eq!(answer.address, Ipv4Addr::from(wanted));
        }
    }
}

/// A stateless client asks for resolvers alone (RFC 8415, section 18.2.6).
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn dhcpv6_names_the_resolver() {
    const INFORMATION_REQUEST: u8 = 11;
    const REPLY: u8 = 7;
    const CLIENT_ID: u8 = 1;
    const REQUESTED_OPTIONS: u8 = 6;
    const RESOLVERS: u8 = 23;
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    let index = slirp.namespace().ip("-o link show tap0");
    let index = index.split(':').next().expect("a number comes first");
    let index = index.parse().expect("a number");
    let limit = Duration::from_millis(500);
    let client = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 546));
    let socket = slirp.namespace().udp(client, limit);
    let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    let servers = SocketAddrV6::new(servers, 547, 0, index).into();

    let mut message = vec![INFORMATION_REQUEST, 7, 7, 7];
    // A DUID of the link-layer address (type 3, Ethernet).
    let duid = [&[0, 3, 0, 1], &mac_of_tap(&slirp)[..]].concat();
    message.extend([0, CLIENT_ID, 0, 10]);
    message.extend(duid);
    message.extend([0, REQUESTED_OPTIONS, 0, 2, 0, RESOLVERS]);
    let answer = ask(&socket, &message, servers);

    assert_eq!(answer[..4], [REPLY, 7, 7, 7], "{answer:?}");
    let resolver = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
    let option = [&[0, RESOLVERS, 0, 16], &resolver.octets()[..]].concat();
    let named = answer.windows(option.len()).any(|part| part == option);
    assert!(named, "{answer:?}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn router_advertisements_carry_prefix_and_route() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::with("-m 9000"));
    let addresses = slirp
        .namespace()
        .ip("-6 -o addr show dev tap0 scope global");
    assert!(addresses.contains(" fd00::"), "{addresses}");
    assert!(addresses.contains("/64"), "{addresses}");
    let routes = slirp.namespace().ip("-6 route show default");
    assert!(routes.contains("dev tap0"), "{routes}");
    let neighbours = slirp.namespace().ip("-6 neigh show dev tap0");
    assert!(!neighbours.contains("FAILED"), "{neighbours}");
}
