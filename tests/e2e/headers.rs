//! What a packet's IP header says passes: TTL, less one, and type of service.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cnet_tap::socket::{
    Datagram, receive_fields, recv_datagram, save_syn, saved_syn, send_datagram,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::{set_ip_tos, set_ip_ttl, set_ipv6_tclass, set_ipv6_unicast_hops};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::lab::container::{Options, Slirp};
use crate::lab::run::{Held, Options as RunOptions};
use crate::lab::{HOST_V4, HOST_V6, Lab, REMOTES, any};

const LIMIT: Duration = Duration::from_secs(5);

fn receive(socket: &UdpSocket) -> Datagram {
    wait(socket, PollFlags::IN);
    recv_datagram(socket, &mut [0; 64]).expect("a datagram")
}

fn wait(fd: impl AsFd, what: PollFlags) {
    let limit = LIMIT.try_into().expect("seconds");
    let mut fds = [PollFd::new(&fd, what)];
    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1));
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ttl_tos_and_ecn_of_udp_pass_both_ways() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        let v6 = remote.is_ipv6();
        let far = lab.remote.udp(SocketAddr::new(remote, 0), LIMIT);
        let near = slirp.namespace().udp(any(remote, 0), LIMIT);
        for socket in [&far, &near] {
            receive_fields(socket, v6).expect("options");
        }
        let to = far.local_addr().expect("bound");
        let piece = [std::io::IoSlice::new(b"x")];
        send_datagram(&near, Some(to), &piece, None, Some(33), Some(0xb9)).expect("sent");
        let got = receive(&far);
        assert_eq!((got.ttl, got.tos), (Some(32), Some(0xb9)), "{remote}");
        send_datagram(&far, Some(got.from), &piece, None, Some(40), Some(0x2a)).expect("sent");
        let got = receive(&near);
        assert_eq!((got.ttl, got.tos), (Some(39), Some(0x2a)), "{remote}");
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    wait(listener, PollFlags::IN);
    listener.accept().expect("a client").0
}

/// A socket whose packets have this TTL and type of service, connecting.
fn connect(to: SocketAddr, ttl: u8, tos: u8) -> OwnedFd {
    let family = if to.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
    if to.is_ipv6() {
        set_ipv6_unicast_hops(&socket, Some(ttl)).expect("an option");
        set_ipv6_tclass(&socket, tos.into()).expect("an option");
    } else {
        set_ip_ttl(&socket, ttl.into()).expect("an option");
        set_ip_tos(&socket, tos).expect("an option");
    }
    let _ = rustix::net::connect(&socket, &to);
    socket
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ttl_and_tos_of_a_containers_syn_reach_the_far_end() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::default());
    for remote in REMOTES {
        let listener = lab.remote.listen(SocketAddr::new(remote, 0));
        save_syn(&listener).expect("an option");
        let to = listener.local_addr().expect("bound");
        let socket = slirp.namespace().enter(|| connect(to, 41, 0x88));
        let accepted = accept(&listener);
        assert_eq!(saved_syn(&accepted), Some((40, 0x88)), "{remote}");
        drop(socket);
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ttl_and_tos_of_a_clients_syn_reach_the_container() {
    let lab = Lab::direct();
    let options = RunOptions::with("-p 8080:8080");
    let held = Held::start(&lab, &options);
    for host in [HOST_V4.into(), HOST_V6.into()] {
        let listener = held.namespace.listen(any(host, 8080));
        save_syn(&listener).expect("an option");
        let to = SocketAddr::new(host, 8080);
        // Tries again until the published port listens as well.
        let first = lab.remote.connect(to, LIMIT).expect("a connection");
        drop((accept(&listener), first));
        let socket = lab.remote.enter(|| connect(to, 41, 0x88));
        let accepted = accept(&listener);
        assert_eq!(saved_syn(&accepted), Some((40, 0x88)), "{host}");
        drop(socket);
    }
}
