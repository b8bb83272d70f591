//! How long mappings live, and which one gives way at a limit.

use super::*;
use crate::flow::FlowBudget;

/// A bench whose containers may have two mappings each.
fn two_each() -> Bench {
    Bench::new(|c| c.limits.udp_mappings = 2)
}

fn port(n: u32) -> String {
    V4.container.replace("5000", &n.to_string())
}

impl Bench {
    /// Sends a datagram from the container's port `n`.
    fn ask(&mut self, n: u32) -> Result<(), DropReason> {
        self.send(&port(n), V4.other, b"x")
    }

    /// The socket of the container's port `n` hears from the world.
    fn hear(&mut self, socket: SocketId) {
        self.host.deliver(socket, V4.other, None, b"x");
        self.ready(socket, READABLE);
    }

    /// Exchanges two questions and answers from the container's port `n`; its socket.
    fn talk(&mut self, n: u32) -> SocketId {
        self.ask(n).unwrap();
        let socket = self.host.newest_socket();
        self.hear(socket);
        self.ask(n).unwrap();
        self.hear(socket);
        socket
    }
}

#[test]
fn a_mapping_lives_from_the_last_packet_in_either_direction() {
    let mut b = Bench::new(|c| c.udp_timeout = Duration::ZERO);
    b.ask(1).unwrap();
    let socket = b.host.only_socket();
    b.advance(MIN_UDP_TIMEOUT - Duration::from_secs(1));
    assert_eq!(b.udp.len(), 1);
    b.hear(socket);
    for _ in 0..10 {
        b.advance(MIN_UDP_TIMEOUT - Duration::from_secs(1));
        assert_eq!(b.udp.len(), 1);
        b.hear(socket);
    }
    // An error neither renews nor ends it.
    b.host.fail(socket, V4.other, None, (3, 3, 0), b"x");
    b.ready(socket, ERROR);
    let at = b.udp.poll_timeout().unwrap();
    assert!(at - b.now <= MIN_UDP_TIMEOUT);
    b.advance(at - b.now);
    b.advance(MIN_UDP_TIMEOUT);
    assert_eq!((b.udp.len(), b.host.sockets.len()), (0, 0));
    assert_eq!(b.udp.poll_timeout(), None);
}

#[test]
fn a_mapping_that_asks_dns_servers_alone_lives_for_ten_seconds() {
    let mut b = Bench::new(|_| ());
    b.send(&port(1), V4.remote, b"x").unwrap();
    b.send(&port(2), V4.remote, b"x").unwrap();
    b.send(&port(2), V4.other, b"x").unwrap();
    b.advance(Duration::from_millis(9_900));
    assert_eq!(b.udp.len(), 2);
    b.advance(Duration::from_millis(100));
    assert_eq!(b.udp.len(), 1);
    b.advance(MIN_UDP_TIMEOUT - Duration::from_secs(11));
    assert_eq!(b.udp.len(), 1);
}

#[test]
fn at_its_limit_a_container_loses_its_own_longest_idle_exchange() {
    let mut b = two_each();
    let elsewhere = Link {
        port: PortId(4),
        ..LINK
    };
    let l4 = udp_datagram(addr(V4.container), addr(V4.other), b"4");
    let ips = (addr(V4.container).ip(), addr(V4.other).ip());
    let frame = frame_from(VnetHeader::default(), ips, IP, 17, &l4);
    b.handle_frame(&elsewhere, &frame).unwrap();
    b.flush();
    let neighbours = b.host.newest_socket();
    for n in 1..100 {
        b.advance(Duration::from_millis(1));
        b.ask(n).unwrap();
        let socket = b.host.newest_socket();
        b.hear(socket);
        assert!(b.udp.len() <= 3);
        assert!(b.host.sockets.contains_key(&neighbours.0));
    }
    // The newest two are left.
    for n in [98, 99] {
        let before = b.host.gone.len();
        b.ask(n).unwrap();
        assert_eq!(b.host.gone.len(), before);
    }
}

#[test]
fn what_lasts_gives_way_after_half_a_minute_and_before_that_the_newcomer_is_refused() {
    for (after, taken) in [(29, false), (30, true)] {
        let mut b = two_each();
        let first = b.talk(1);
        b.advance(Duration::from_secs(1));
        let second = b.talk(2);
        b.advance(Duration::from_secs(after - 1));
        b.wire.frames.clear();
        let result = b.ask(3);
        assert_eq!(result.is_ok(), taken, "{after}");
        assert_eq!(!b.host.sockets.contains_key(&first.0), taken);
        assert!(b.host.sockets.contains_key(&second.0));
        if !taken {
            assert_eq!(result, Err(DropReason::Quota));
            assert_eq!(b.got().error().0, (3, 13, 0));
        }
    }
}

#[test]
fn a_stream_of_one_direction_lasts_too() {
    let mut b = two_each();
    b.ask(1).unwrap();
    let socket = b.host.only_socket();
    (0..20).for_each(|_| b.hear(socket));
    b.advance(Duration::from_secs(1));
    b.ask(2).unwrap();
    b.advance(Duration::from_secs(1));
    // The exchange of port 2 is shorter idle, but it is one exchange.
    b.ask(3).unwrap();
    assert!(b.host.sockets.contains_key(&socket.0));
}

#[test]
fn a_host_that_has_no_more_sockets_gives_one_of_the_containers_own_again() {
    let mut b = Bench::new(|_| ());
    b.ask(1).unwrap();
    b.host.room = Some(1);
    b.ask(2).unwrap();
    assert_eq!((b.udp.len(), b.host.sockets.len()), (1, 1));
}

#[test]
fn other_protocols_flows_leave_less() {
    let budget = FlowBudget::new(18);
    let mut b = Bench::new(|c| c.budget = budget.clone());
    (0..9).for_each(|_| budget.take());
    for n in 1..100 {
        b.ask(n).unwrap();
        assert_eq!(budget.used(), 9 + b.udp.len());
    }
    // Eight times as many as are free, which is one.
    assert_eq!(b.udp.len(), 8);
    let mut io = Bench::io((&mut b.wire, &mut b.host, &mut b.buf));
    b.udp.remove_port(LINK.port, &mut io);
    assert_eq!(budget.used(), 9);
}

#[test]
fn a_port_that_is_to_be_published_is_given_back_by_the_mapping_that_took_it() {
    for a in [V4, V6] {
        let mut b = Bench::new(|_| ());
        // The first has the container's port on the host, the second another one.
        b.host.keeps_ports = true;
        b.send(a.container, a.remote, b"x").unwrap();
        let first = b.host.only_socket();
        let port = addr(a.container).port();
        b.host.keeps_ports = false;
        // The same address at another port of the switch.
        let other = Link {
            port: PortId(LINK.port.0 + 1),
            ..LINK
        };
        let l4 = udp_datagram(addr(a.container), addr(a.remote), b"x");
        let ends = (addr(a.container).ip(), addr(a.remote).ip());
        let frame = frame_from(VnetHeader::default(), ends, IP, 17, &l4);
        b.handle_frame(&other, &frame).unwrap();
        b.flush();
        b.udp.release_port(port + 1, &mut b.host);
        assert_eq!(b.udp.len(), 2);
        b.udp.release_port(port, &mut b.host);
        assert_eq!(b.udp.len(), 1);
        assert!(!b.host.sockets.contains_key(&first.0));
        b.send(a.container, a.remote, b"x").unwrap();
        assert_eq!(b.udp.len(), 2);
    }
}
