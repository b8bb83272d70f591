//! What a program in a container sees of a destination that cannot be had, beside what the same program
//! sees on the host.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use cnet_tap::socket::{enable_recverr, ping_socket, so_error};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, sendto};

use crate::lab::namespace::{Namespace, connect_here};
use crate::lab::run::{Held, Options};
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::{Lab, REMOTE_V4, REMOTE_V6, any};

const LIMIT: Duration = Duration::from_secs(2);

/// What a program is told: nothing within [`LIMIT`], an error, or an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Silence,
    Error(Errno),
    Answer,
}

use Seen::{Answer, Error, Silence};

impl Seen {
    fn of(result: io::Result<()>) -> Seen {
        match result {
            Ok(()) => Answer,
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::AGAIN) | None => Silence,
                Some(errno) => Error(errno),
            },
        }
    }
}

/// TCP, UDP on a connected socket that asks for errors (`IP_RECVERR`), and echo, in this order.
fn seen(from: &Namespace, to: SocketAddr) -> [Seen; 3] {
    let udp = || {
        let socket = UdpSocket::bind(any(to.ip(), 0))?;
        enable_recverr(&socket, to.is_ipv6())?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.connect(to)?;
        socket.send(b"x")?;
        socket.recv(&mut [0; 9]).map(|_| ())
    };
    from.enter(|| {
        let tcp = connect_here(to, LIMIT).map(|_| ());
        [tcp, udp(), echo(to.ip())].map(Seen::of)
    })
}

/// One echo request and its answer.
fn echo(to: IpAddr) -> io::Result<()> {
    let socket = ping_socket(to.is_ipv6())?;
    enable_recverr(&socket, to.is_ipv6())?;
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let request = [kind, 0, 0, 0, 0, 0, 0, 1];
    sendto(
        &socket,
        &request,
        SendFlags::empty(),
        &SocketAddr::new(to, 0),
    )?;
    let limit = LIMIT.try_into().expect("seconds");
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    poll(&mut fds, Some(&limit))?;
    if let Some(errno) = so_error(&socket)? {
        return Err(io::Error::from_raw_os_error(errno));
    }
    recv(&socket, &mut [0; 64], RecvFlags::DONTWAIT)?;
    Ok(())
}

/// A lab whose host has a route of each kind that refuses, and gives up on neighbours soon; and a
/// container of it.
fn lab_of_refusals() -> (Lab, Held) {
    let lab = Lab::direct();
    for (family, prefix, len) in [(4, "203.0.113.", 32), (6, "2001:db8:3::", 128)] {
        for (host, kind) in [(1, "blackhole"), (2, "unreachable"), (3, "prohibit")] {
            let route = format!("-{family} route add {kind} {prefix}{host}/{len}");
            lab.host.ip(&route);
        }
        // An absent neighbour is asked for three times.
        let interval = format!("ipv{family}/neigh/eth0/retrans_time_ms");
        lab.host.sysctl(&interval, "100");
    }
    let held = Held::start(&lab, &Options::default());
    held.namespace
        .sysctl("ipv4/ping_group_range", "0 2147483647");
    (lab, held)
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn errors_are_those_that_the_host_sees() {
    let (lab, held) = lab_of_refusals();
    let all = |errno| [Error(errno); 3];
    let (no_way, absent) = (all(Errno::NETUNREACH), all(Errno::HOSTUNREACH));
    let (invalid, denied) = (all(Errno::INVAL), all(Errno::ACCESS));
    let closed = [Error(Errno::CONNREFUSED), Error(Errno::CONNREFUSED), Answer];
    let cases = [
        // A blackhole is EINVAL on the host. No ICMP error says that.
        ("203.0.113.1:80", invalid, no_way),
        ("[2001:db8:3::1]:80", invalid, no_way),
        ("203.0.113.2:80", absent, absent),
        ("[2001:db8:3::2]:80", absent, absent),
        // ICMP's "administratively prohibited" is EHOSTUNREACH to Linux, ICMPv6's is EACCES.
        ("203.0.113.3:80", denied, absent),
        ("[2001:db8:3::3]:80", denied, denied),
        ("192.0.2.77:80", absent, absent),
        ("[2001:db8:1::77]:80", absent, absent),
        (&format!("{REMOTE_V4}:0"), closed, closed),
        (&format!("[{REMOTE_V6}]:0"), closed, closed),
        (&format!("{REMOTE_V4}:9"), closed, closed),
        (&format!("[{REMOTE_V6}]:9"), closed, closed),
    ];
    for (to, on_host, in_container) in cases {
        let to: SocketAddr = to.parse().expect("an address");
        assert_eq!(seen(&lab.host, to), on_host, "on the host, {to}");
        assert_eq!(seen(&held.namespace, to), in_container, "inside, {to}");
    }
}

/// Without a default route the host says so at once; 240.0.0.0/4 is routed as any other address.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn no_route_is_told_and_class_e_is_reached_where_the_host_reaches_it() {
    let (lab, held) = lab_of_refusals();
    let class_e: IpAddr = [240, 0, 0, 1].into();
    lab.remote.ip("addr add 240.0.0.1/32 dev eth0");
    let tcp = TcpServer::echo(&lab.remote, SocketAddr::new(class_e, 0));
    let _udp = UdpServer::echo(&lab.remote, tcp.address);
    for from in [&lab.host, &held.namespace] {
        assert_eq!(seen(from, tcp.address), [Answer; 3]);
    }
    lab.host.ip("-4 route del default");
    lab.host.ip("-6 route del default");
    for to in [tcp.address, SocketAddr::new(REMOTE_V6.into(), 80)] {
        for from in [&lab.host, &held.namespace] {
            assert_eq!(seen(from, to), [Error(Errno::NETUNREACH); 3], "{to}");
        }
    }
}
