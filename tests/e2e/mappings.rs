//! How many UDP ports, echo identifiers and connections a container may use one after another with few
//! descriptors: those it uses no more give way.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use cnet_tap::socket::ping_socket;

use crate::lab::namespace::connect_here;
use crate::lab::run::{Held, Options};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::{Lab, REMOTES, any};

/// What a distribution's soft limit would be if it were small.
const FEW_DESCRIPTORS: u64 = 4096;
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

fn with_few_descriptors(lab: &Lab) -> Held {
    let options = Options {
        descriptors: Some(FEW_DESCRIPTORS),
        ..Options::default()
    };
    Held::start(lab, &options)
}

/// One question and its answer, from a port of its own.
fn exchange(server: SocketAddr) {
    let socket = UdpSocket::bind(any(server.ip(), 0)).expect("a port");
    socket
        .set_read_timeout(Some(ANSWER_LIMIT))
        .expect("a limit");
    socket.send_to(b"x", server).expect("sent");
    let (length, from) = socket.recv_from(&mut [0; 9]).expect("the answer");
    assert_eq!((length, from), (1, server));
}

/// TCP finds room where UDP took most: the descriptors of exchanges that are over.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn six_thousand_exchanges_are_answered_with_4096_descriptors_and_tcp_finds_room_behind_them() {
    let lab = Lab::direct();
    let held = with_few_descriptors(&lab);
    let servers = REMOTES.map(|remote| UdpServer::echo(&lab.remote, SocketAddr::new(remote, 0)));
    held.namespace.enter(|| {
        for _ in 0..3000 {
            servers.iter().for_each(|server| exchange(server.address));
        }
    });
    std::thread::sleep(Duration::from_millis(2100));
    for remote in REMOTES {
        let holding = TcpServer::hold(&lab.remote, SocketAddr::new(remote, 0));
        held.namespace.enter(|| {
            let open = |_| connect_here(holding.address, ANSWER_LIMIT).expect("connected");
            let connections: Vec<_> = (0..500).map(open).collect();
            assert_eq!(connections.len(), 500);
        });
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn fifteen_hundred_pings_of_different_identifiers_are_answered() {
    let lab = Lab::direct();
    let held = with_few_descriptors(&lab);
    held.namespace
        .sysctl("ipv4/ping_group_range", "0 2147483647");
    held.namespace.enter(|| {
        for n in 0..1500_u16 {
            for remote in REMOTES {
                let kind = if remote.is_ipv4() { 8 } else { 128 };
                let socket = ping_socket(remote.is_ipv6()).expect("a ping socket");
                let mut request = [kind, 0, 0, 0, 0, 0, 0, 0];
                request[6..].copy_from_slice(&n.to_be_bytes());
                sendto(
                    &socket,
                    &request,
                    SendFlags::empty(),
                    &SocketAddr::new(remote, 0),
                )
                .expect("sent");
                let mut fds = [rustix::event::PollFd::new(
                    &socket,
                    rustix::event::PollFlags::IN,
                )];
                let limit = ANSWER_LIMIT.try_into().expect("two seconds");
                let ready = rustix::event::poll(&mut fds, Some(&limit));
                assert_eq!(ready, Ok(1), "request {n} to {remote}");
                let mut reply = [0; 64];
                let (length, ..) =
                    recvfrom(&socket, &mut reply, RecvFlags::empty()).expect("a reply");
                assert_eq!(
                    (length, reply[6..8].to_vec()),
                    (8, n.to_be_bytes().to_vec())
                );
            }
        }
    });
}

/// A stream towards the container renews its mapping, and keeps it while exchanges come and go.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_conversation_outlives_thousands_of_exchanges_beside_it() {
    let lab = Lab::direct();
    let held = with_few_descriptors(&lab);
    let server = UdpServer::echo(&lab.remote, SocketAddr::new(REMOTES[0], 0));
    held.namespace.enter(|| {
        let talking = UdpSocket::bind(any(REMOTES[0], 0)).expect("a port");
        talking
            .set_read_timeout(Some(ANSWER_LIMIT))
            .expect("a limit");
        for _ in 0..3 {
            talking.send_to(b"x", server.address).expect("sent");
            talking.recv(&mut [0; 9]).expect("the answer");
        }
        let before = server.log.sockets()[0];
        (0..3500).for_each(|_| exchange(server.address));
        talking.send_to(b"y", server.address).expect("sent");
        talking.recv(&mut [0; 9]).expect("the answer");
        assert_eq!(server.log.sockets().last(), Some(&before));
    });
}
