//! One table of every way: what a container does and what is done with it, over both families and
//! protocols, however it got its network, to and from each place. The test prints the table and fails on a
//! cell that does not work; a cell without a meaning is a dash, and [`means`] says which those are.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;

use crate::api::request;
use crate::lab::container::{self, DNS_V4, Slirp, wait_for_ipv6};
use crate::lab::namespace::Namespace;
use crate::lab::place::{Member, Place};
use crate::lab::run::{self, Held};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::{CONNECT, connect_and_echo, echo_datagram};
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTE_V4, REMOTES, UNREACHABLE_V4, UNREACHABLE_V6, any};

/// Where servers are, on the second host and on the host's loopback, and where none are.
const SERVED: u16 = 7000;
const CLOSED: u16 = 7001;
/// The container's own server.
const INSIDE: u16 = 80;
/// A port of the container that is published and has no server.
const SILENT: u16 = 81;
/// What every name of the outside resolves to.
const ANSWERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 7)),
];
const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Outwards,
    Published,
    Name,
    Refused,
    PublishedRefused,
    Unreachable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Spot {
    Loopback,
    Lan,
    Subnet,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transport {
    Tcp,
    Udp,
}

const KINDS: [Kind; 6] = [
    Kind::Outwards,
    Kind::Published,
    Kind::Name,
    Kind::Refused,
    Kind::PublishedRefused,
    Kind::Unreachable,
];
const SPOTS: [Spot; 3] = [Spot::Loopback, Spot::Lan, Spot::Subnet];
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// A container, and how it got its network.
struct Way {
    name: &'static str,
    container: Namespace,
    gateways: [IpAddr; 2],
    dns: [IpAddr; 2],
    /// Where [`INSIDE`] and [`SILENT`] are published.
    ports: [u16; 2],
    /// Another container of its network.
    neighbour: Option<(Namespace, [IpAddr; 2])>,
}

/// Where the container's default routes lead.
fn gateways(container: &Namespace) -> [IpAddr; 2] {
    wait_for_ipv6(container);
    ["-4", "-6"].map(|family| {
        let routes = container.ip(&format!("{family} route show default"));
        let via = routes.split_whitespace().skip_while(|word| *word != "via");
        via.skip(1)
            .find_map(|word| word.parse().ok())
            .expect("a gateway")
    })
}

/// Where `cnet run` answers DNS: at the address after the gateway's, as slirp4netns does.
fn beside_gateway(gateway: IpAddr) -> IpAddr {
    match gateway {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() + 1).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() + 1).into(),
    }
}

/// Whether a cell has a meaning.
fn means(kind: Kind, spot: Spot, transport: Transport, way: &Way) -> bool {
    let has_neighbour = way.neighbour.is_some();
    match (kind, spot) {
        // A container that is alone on its network has no neighbours, and their names.
        (Kind::Outwards | Kind::Name | Kind::Refused, Spot::Subnet) => has_neighbour,
        // No program hears of a datagram that found no server behind a published port: a socket that
        // receives tells no one that it did not. Nor of a host that cannot be reached: udp(7) has that
        // for sockets with IP_RECVERR alone.
        (Kind::PublishedRefused | Kind::Unreachable, _) if transport == Transport::Udp => false,
        (Kind::PublishedRefused, Spot::Subnet) => false,
        // Only hosts elsewhere can be out of reach.
        (Kind::Unreachable, spot) => spot == Spot::Lan,
        _ => true,
    }
}

fn exchange(from: &Namespace, at: SocketAddr, transport: Transport) -> io::Result<()> {
    match transport {
        Transport::Tcp => connect_and_echo(from, at, b"hello"),
        Transport::Udp => echo_datagram(from, at, 100),
    }
}

/// That the other end refuses, told at once.
fn refusal(from: &Namespace, at: SocketAddr, transport: Transport) -> io::Result<()> {
    let error = match transport {
        Transport::Tcp => from.connect_once(at, CONNECT).err(),
        Transport::Udp => {
            let socket = from.udp(any(at.ip(), 0), Duration::from_secs(1));
            socket.connect(at)?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 16]).err()
        }
    };
    expect_error(error, &[ErrorKind::ConnectionRefused])
}

fn expect_error(error: Option<io::Error>, kinds: &[ErrorKind]) -> io::Result<()> {
    match error {
        Some(error) if kinds.contains(&error.kind()) => Ok(()),
        Some(error) => Err(error),
        None => Err(io::Error::other("no error")),
    }
}

/// A query for the address of `name` (RFC 1035, section 4).
fn query(name: &str, v6: bool) -> Vec<u8> {
    // Recursion desired; one question.
    let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, if v6 { 28 } else { 1 }, 0, 1]);
    message
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The answer of a DNS server for which every name has both addresses.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    // The question is the last of what these tests ask, with no option behind it.
    let kind = query.get(query.len().checked_sub(3)?)?;
    let address = octets(ANSWERS[usize::from(*kind == 28)]);
    let mut message = query.to_vec();
    // A response; recursion desired and available; one answer, by a pointer to the question.
    (message[2], message[3], message[7]) = (0x81, 0x80, 1);
    let length = address.len() as u8;
    message.extend([0xc0, 12, 0, *kind, 0, 1, 0, 0, 0, 60, 0, length]);
    message.extend(address);
    Some(message)
}

/// A DNS server on the second host.
fn upstream(lab: &Lab) -> (TcpServer, UdpServer) {
    let at = SocketAddr::new(REMOTE_V4.into(), 53);
    let tcp = TcpServer::start(&lab.remote, at, |mut stream| {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query)?;
            let answer = answer(&query).unwrap_or_default();
            let length = (answer.len() as u16).to_be_bytes();
            stream.write_all(&[&length[..], &answer].concat())?;
        }
        Ok(())
    });
    (tcp, UdpServer::start(&lab.remote, at, answer))
}

/// The answer to a query for `name` has the address.
fn resolves(
    from: &Namespace,
    server: IpAddr,
    transport: Transport,
    (name, address): (&str, IpAddr),
) -> io::Result<()> {
    let query = query(name, address.is_ipv6());
    let at = SocketAddr::new(server, 53);
    let mut answer = vec![0; 4096];
    let length = match transport {
        Transport::Udp => {
            let socket = from.udp(any(server, 0), Duration::from_secs(2));
            socket.connect(at)?;
            socket.send(&query)?;
            socket.recv(&mut answer)?
        }
        Transport::Tcp => {
            let mut stream = from.connect(at, CONNECT)?;
            let length = (query.len() as u16).to_be_bytes();
            stream.write_all(&[&length[..], &query].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let length = usize::from(u16::from_be_bytes(length));
            stream.read_exact(&mut answer[..length])?;
            length
        }
    };
    let octets = octets(address);
    match answer[..length].windows(octets.len()).any(|w| w == octets) {
        true => Ok(()),
        false => Err(io::Error::other(format!("{name} is not {address}"))),
    }
}

/// Does what a cell says.
fn attempt(
    lab: &Lab,
    way: &Way,
    (kind, spot): (Kind, Spot),
    (v6, transport): (usize, Transport),
) -> io::Result<()> {
    let container = &way.container;
    let gateway = way.gateways[v6];
    let host: IpAddr = [HOST_V4.into(), HOST_V6.into()][v6];
    let loopback: IpAddr = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()][v6];
    let neighbour = way
        .neighbour
        .as_ref()
        .map(|(namespace, at)| (namespace, at[v6]));
    let there = |port| match (spot, neighbour) {
        (Spot::Loopback, _) => SocketAddr::new(gateway, port),
        (Spot::Lan, _) => SocketAddr::new(REMOTES[v6], port),
        (Spot::Subnet, Some((_, at))) => SocketAddr::new(at, port),
        (Spot::Subnet, None) => SocketAddr::new(host, port),
    };
    let (client, at) = match spot {
        Spot::Loopback => (&lab.host, loopback),
        Spot::Lan => (&lab.remote, host),
        // One that is alone on its network reaches itself by the host's address.
        Spot::Subnet => (
            neighbour.map_or(container, |(namespace, _)| namespace),
            host,
        ),
    };
    let name = match (spot, neighbour) {
        (Spot::Loopback, _) => ("host.containers.internal", gateway),
        (Spot::Lan, _) => ("www.example.org", ANSWERS[v6]),
        (Spot::Subnet, at) => ("neighbour", at.map_or(gateway, |(_, at)| at)),
    };
    match kind {
        Kind::Outwards => exchange(container, there(SERVED), transport),
        Kind::Refused => refusal(container, there(CLOSED), transport),
        Kind::Published => exchange(client, SocketAddr::new(at, way.ports[0]), transport),
        Kind::PublishedRefused => refusal(client, SocketAddr::new(at, way.ports[1]), transport),
        Kind::Name => resolves(container, way.dns[v6], transport, name),
        Kind::Unreachable => {
            let nowhere = [UNREACHABLE_V4.into(), UNREACHABLE_V6.into()];
            let at = SocketAddr::new(nowhere[v6], SERVED);
            let kinds = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
            expect_error(container.connect_once(at, CONNECT).err(), &kinds)
        }
    }
}

/// Echo servers of both protocols.
fn servers(namespace: &Namespace, addresses: &[IpAddr], port: u16) -> Vec<(TcpServer, UdpServer)> {
    let at = addresses
        .iter()
        .map(|address| SocketAddr::new(*address, port));
    at.map(|at| {
        (
            TcpServer::echo(namespace, at),
            UdpServer::echo(namespace, at),
        )
    })
    .collect()
}

fn publish_by_api(slirp: &Slirp, guests: [IpAddr; 2], ports: [u16; 2]) {
    let hosts: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    for (host, guest) in hosts.into_iter().zip(guests) {
        for (proto, (port, inside)) in ["tcp", "udp"].into_iter().flat_map(|proto| {
            ports
                .into_iter()
                .zip([INSIDE, SILENT])
                .map(move |p| (proto, p))
        }) {
            let answer = request(
                slirp,
                &json!({"execute": "add_hostfwd", "arguments": {
                    "proto": proto, "host_addr": host, "host_port": port,
                    "guest_addr": guest, "guest_port": inside,
                }}),
            );
            assert!(answer["return"]["id"].is_u64(), "{answer}");
        }
    }
}

fn by_slirp(lab: &Lab, ports: [u16; 2]) -> (Slirp, Way) {
    let conf = lab.file("resolv.conf", &format!("nameserver {REMOTE_V4}\n"));
    let options = container::Options {
        api: true,
        resolv_conf: Some(conf),
        ..container::Options::default()
    };
    let slirp = Slirp::start(lab, &options);
    let inside = wait_for_ipv6(slirp.namespace());
    let guests = [container::CONTAINER_V4.into(), inside.into()];
    publish_by_api(&slirp, guests, ports);
    let way = Way {
        name: "cnet-slirp",
        container: slirp.namespace().clone(),
        gateways: Slirp::gateways(),
        dns: [DNS_V4.into(), DNS_V6.into()],
        ports,
        neighbour: None,
    };
    (slirp, way)
}

fn on_network(name: &'static str, member: &Member, ports: [u16; 2], neighbour: &Member) -> Way {
    let gateways = gateways(&member.namespace);
    let at = [neighbour.v4, neighbour.v6.expect("an IPv6 address")];
    Way {
        name,
        container: member.namespace.clone(),
        gateways,
        dns: gateways,
        ports,
        neighbour: Some((neighbour.namespace.clone(), at)),
    }
}

/// The table as text, and the cells that do not work.
fn fill(lab: &Lab, ways: &[Way]) -> (String, Vec<String>) {
    let (mut table, mut holes) = (String::new(), Vec::new());
    let mut line = |cells: &[&str]| {
        let text: Vec<String> = cells.iter().map(|cell| format!("{cell:<16}")).collect();
        let _ = writeln!(table, "{}", text.join(" ").trim_end());
    };
    let names: Vec<&str> = ways.iter().map(|way| way.name).collect();
    line(&[&["", "", "", ""][..], &names].concat());
    for kind in KINDS {
        for spot in SPOTS {
            for (v6, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
                for transport in TRANSPORTS {
                    let row = [
                        format!("{kind:?}"),
                        format!("{spot:?}"),
                        format!("{transport:?}"),
                    ];
                    let cells: Vec<&str> = (ways.iter())
                        .map(|way| {
                            if !means(kind, spot, transport, way) {
                                return "-";
                            }
                            let cell = (kind, spot);
                            match attempt(lab, way, cell, (v6, transport)) {
                                Ok(()) => "ok",
                                Err(error) => {
                                    let hole = (way.name, kind, spot, family, transport);
                                    holes.push(format!("{hole:?}: {error}"));
                                    "FAILS"
                                }
                            }
                        })
                        .collect();
                    if cells.iter().any(|cell| *cell != "-") {
                        let [kind, spot, transport] = &row;
                        line(&[&[kind.as_str(), spot, family, transport][..], &cells].concat());
                    }
                }
            }
        }
    }
    (table, holes)
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn every_way_works() {
    let lab = Lab::direct();
    let place = Place::ordinary(&lab);
    let _upstream = upstream(&lab);
    let loopbacks = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let _on_host = servers(&lab.host, &loopbacks, SERVED);
    let _on_lan = servers(&lab.remote, &REMOTES, SERVED);
    let options = |ports: [u16; 2]| {
        let publish = |proto| {
            let [served, silent] = ports;
            format!("-p {served}:{INSIDE}/{proto} -p {silent}:{SILENT}/{proto}")
        };
        let access = format!("--host-access={SERVED},{CLOSED} --dns {REMOTE_V4}");
        format!("{} {} {access}", publish("tcp"), publish("udp"))
    };

    let alone = run::Options {
        arguments: options([18080, 18090]),
        ..run::Options::ordinary_user()
    };
    let held = Held::start(&lab, &alone);
    let own = gateways(&held.namespace);
    let run = Way {
        name: "run",
        container: held.namespace.clone(),
        gateways: own,
        dns: own.map(beside_gateway),
        ports: [18080, 18090],
        neighbour: None,
    };
    let neighbour = place.join("cnet", "neighbour", "");
    let ran = place.run("cnet", "ran", &options([18081, 18091]));
    let run_network = on_network("run --network", &ran, [18081, 18091], &neighbour);
    let attached = place.join("cnet", "attached", &options([18082, 18092]));
    let attach = on_network("attach", &attached, [18082, 18092], &neighbour);
    let (_slirp, slirp_way) = by_slirp(&lab, [18083, 18093]);
    let ways = [run, run_network, attach, slirp_way];
    let all = [Ipv6Addr::UNSPECIFIED.into()];
    let _inside: Vec<_> = (ways.iter())
        .map(|way| servers(&way.container, &all, INSIDE))
        .collect();
    let _beside = servers(&neighbour.namespace, &all, SERVED);
    let (table, holes) = fill(&lab, &ways);
    println!("{table}");
    assert!(holes.is_empty(), "{table}\n{}", holes.join("\n"));
}
