//! The far sides of the TCP engine for its tests, and a bench that holds the engine between the
//! kit's ports and the kit's host. After each step the bench compares the engine's books: unsent
//! bytes, sockets, deadlines.

use std::net::{IpAddr, SocketAddr};

use cnet_wire::frame::protocol;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::{DropReason, Frame, IpHeader, L3, Packet, VnetHeader};

use super::TcpConfig;
use super::flow::{State, TcpFlow};
use super::table::TcpSessions;
use crate::flow::Handle;
use crate::host::{HeaderFields, Readiness, SocketId, Token};
use crate::io::Io;
use crate::policy::Policy;
use cnet_wire::headers::{FRAME_BUFFER_LEN, Link};

pub(super) use cnet_testkit::host::scripted::{Fate, Scripted as FakeHost};
pub(super) use cnet_testkit::independent::LINK;
pub(super) use cnet_testkit::independent::segment::{
    ACK, FIN, Out, PSH, RST, SYN, SYN_OPTIONS, Seg, URG, read_frame, seg,
};
pub(super) use cnet_testkit::sink::Kept as Wire;

pub(super) const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    read_closed: false,
    error: false,
};
pub(super) const WRITABLE: Readiness = Readiness {
    readable: false,
    writable: true,
    ..READABLE
};
/// The far end closed.
pub(super) const CLOSED: Readiness = Readiness {
    read_closed: true,
    ..READABLE
};
/// What epoll tells of a connection that failed.
pub(super) const FAILED: Readiness = Readiness {
    readable: true,
    writable: true,
    read_closed: true,
    error: true,
};

/// An engine between a wire and a host.
pub(super) struct Bench {
    pub(super) engine: TcpSessions,
    pub(super) wire: Wire,
    pub(super) host: FakeHost,
    pub(super) policy: Policy,
    pub(super) now: Instant,
    pub(super) container: IpAddr,
    pub(super) remote: SocketAddr,
    buf: Vec<u8>,
    /// What the container's packets say.
    pub(super) said: HeaderFields,
}

/// One connection as the container sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conn {
    /// The container's port.
    pub(super) port: u16,
    pub(super) socket: SocketId,
    /// Next sequence number of the container.
    pub(super) seq: u32,
    /// Next byte the container expects.
    pub(super) ack: u32,
}

/// First sequence number of the container: the first kilobytes cross the wrap.
pub(super) const CONTAINER_ISN: u32 = u32::MAX - 700;

impl Bench {
    pub(super) fn new() -> Bench {
        Bench::with(TcpConfig::default())
    }

    pub(super) fn with(config: TcpConfig) -> Bench {
        Bench::between(config, "10.0.2.100", "192.0.2.1:80")
    }

    pub(super) fn v6() -> Bench {
        Bench::between(TcpConfig::default(), "fd00::100", "[2001:db8::1]:80")
    }

    fn between(config: TcpConfig, container: &str, remote: &str) -> Bench {
        let now = Instant::from_millis(1_000_000);
        let config = TcpConfig {
            gateway_v4: Some("10.0.2.2".parse().unwrap()),
            gateway_v6: Some("fd00::2".parse().unwrap()),
            ..config
        };
        Bench {
            engine: TcpSessions::new(config, [7; 16], now),
            wire: Wire::default(),
            host: FakeHost::default(),
            policy: Policy::default(),
            now,
            container: container.parse().unwrap(),
            remote: remote.parse().unwrap(),
            buf: vec![0xaa; FRAME_BUFFER_LEN],
            said: HeaderFields::default(),
        }
    }

    /// Runs an operation of the engine, then looks through its books.
    pub(super) fn run<T>(
        &mut self,
        f: impl FnOnce(&mut TcpSessions, Instant, &Policy, &mut Io<'_, (Wire, FakeHost)>) -> T,
    ) -> T {
        let mut io = Io::new(&mut self.wire, &mut self.host, &mut self.buf);
        let result = f(&mut self.engine, self.now, &self.policy, &mut io);
        self.check();
        result
    }

    /// What must hold between any two calls.
    fn check(&self) {
        if self.engine.len() > 100 {
            return;
        }
        let mut unsent = 0;
        let mut with_socket = 0;
        let mut orphans = 0;
        for (handle, _, flow) in self.engine.flows.iter() {
            if flow.state == State::Orphaned {
                orphans += 1;
                assert!(self.engine.orphans.contains(&handle) && flow.link.is_none());
            }
            unsent += flow.unsent.len();
            with_socket += usize::from(flow.socket.is_some());
            if flow.state != State::Closed {
                assert!(
                    flow.wheel_at != super::held::NEVER || flow.dirty,
                    "nothing wakes {flow:?}"
                );
            } else {
                assert!(flow.dirty, "a closed flow stays: {handle:?}");
            }
            if flow.state == State::Established {
                let outstanding = flow.snd_una != flow.snd_max;
                assert!(
                    flow.alarm.is_some() || !outstanding || flow.dirty,
                    "{flow:?}"
                );
                assert!(flow.link.is_some());
                assert!(!flow.snd_max.before(flow.snd_nxt));
                assert!(!flow.snd_nxt.before(flow.snd_una));
                assert!(!flow.snd_una.before(flow.discarded) || flow.dirty);
                assert!(!flow.rcv_adv.before(flow.rcv_nxt));
            }
        }
        assert_eq!(orphans, self.engine.orphans.len());
        assert_eq!(unsent, self.engine.unsent());
        assert_eq!(
            with_socket,
            self.host.sockets.len(),
            "a socket without a flow"
        );
    }

    /// A packet from the container, not yet the end of its batch.
    pub(super) fn packet(&mut self, l4: &[u8]) -> Result<(), DropReason> {
        self.packet_on(&LINK, l4)
    }

    /// A packet with the container's address from the port of `link`.
    pub(super) fn packet_on(&mut self, link: &Link, l4: &[u8]) -> Result<(), DropReason> {
        let ip = IpHeader {
            src: self.container,
            dst: self.remote.ip(),
            protocol: protocol::TCP,
            hop_limit: self.said.hop_limit,
            tos: self.said.tos,
            dont_fragment: true,
            l4: 0,
            end: l4.len(),
            fragment: None,
        };
        let frame = Frame {
            vnet: VnetHeader::default(),
            bytes: l4,
            dst: link.gateway_mac,
            src: link.container_mac,
            l3: L3::Ip(ip),
        };
        self.run(|e, now, policy, io| {
            let packet = Packet {
                now,
                ingress: link.port,
                frame: &frame,
                ip: &ip,
                ports: None,
                verified: true,
            };
            e.handle_packet(&packet, link, policy, io)
        })
    }

    pub(super) fn end_batch(&mut self) {
        self.run(|e, now, _, io| e.end_batch(now, io));
    }

    /// A segment from the container's `port`, and the end of its batch.
    pub(super) fn send_from(&mut self, port: u16, seg: &Seg) -> Result<(), DropReason> {
        let result = self.packet(&seg.bytes(port, self.remote.port()));
        self.end_batch();
        result
    }

    pub(super) fn send(&mut self, conn: &Conn, seg: Seg) -> Result<(), DropReason> {
        self.send_from(conn.port, &seg)
    }

    /// The segments that left since the last call; anything else on the wire is an error.
    pub(super) fn out(&mut self) -> Vec<Out> {
        self.wire
            .frames
            .drain(..)
            .map(|f| read_frame(&f).expect("an ICMP error"))
            .collect()
    }

    /// The one segment that left since the last call.
    pub(super) fn only(&mut self) -> Out {
        let mut out = self.out();
        assert_eq!(out.len(), 1, "{out:?}");
        out.remove(0)
    }

    /// The one ICMP error that left since the last call.
    pub(super) fn icmp(&mut self) -> (u8, u8, Vec<u8>) {
        assert_eq!(self.wire.frames.len(), 1);
        read_frame(&self.wire.frames.remove(0)).expect_err("a segment")
    }

    pub(super) fn silent(&self) -> bool {
        self.wire.frames.is_empty()
    }

    pub(super) fn ready(&mut self, socket: SocketId, ready: Readiness) {
        let token = self.host.socket(socket).token.unwrap();
        self.event(token, ready);
    }

    pub(super) fn event(&mut self, token: Token, ready: Readiness) {
        self.run(|e, now, _, io| e.handle_socket(now, token, ready, io));
    }

    /// The far end sends `data`.
    pub(super) fn remote_sends(&mut self, conn: &Conn, data: &[u8]) {
        self.host.socket(conn.socket).rx.extend(data);
        self.ready(conn.socket, READABLE);
    }

    /// The far end sends its FIN.
    pub(super) fn remote_closes(&mut self, conn: &Conn) {
        self.host.socket(conn.socket).rx_end = true;
        self.ready(conn.socket, CLOSED);
    }

    /// The container's last segment said that it has all bytes up to the connection's `ack`.
    pub(super) fn acknowledge(&mut self, conn: &Conn) {
        self.send(conn, seg(ACK, conn.seq, conn.ack)).unwrap();
    }

    /// Lets `d` pass, the engine waking as it asks to. Returns how often it woke.
    pub(super) fn pass(&mut self, d: Duration) -> usize {
        let end = self.now + d;
        let mut wakes = 0;
        while let Some(at) = self.engine.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.run(|e, now, _, io| e.handle_timeout(now, io));
            wakes += 1;
            assert!(wakes < 100_000, "wakes for ever");
        }
        self.now = end;
        wakes
    }

    /// A SYN of the container.
    pub(super) fn syn(&mut self, port: u16) -> Result<(), DropReason> {
        self.send_from(port, &seg(SYN, CONTAINER_ISN, 0).options(SYN_OPTIONS))
    }

    /// The socket of the newest connect or accept.
    pub(super) fn last_socket(&self) -> SocketId {
        SocketId(*self.host.sockets.keys().next_back().unwrap())
    }

    /// The host's connect succeeds.
    pub(super) fn connected(&mut self, socket: SocketId) {
        self.host.socket(socket).connecting = false;
        self.ready(socket, WRITABLE);
    }

    /// An established connection from the container's `port`, nothing sent yet.
    pub(super) fn open(&mut self, port: u16) -> Conn {
        self.open_with(port, SYN_OPTIONS)
    }

    pub(super) fn open_with(&mut self, port: u16, options: &[u8]) -> Conn {
        let syn = seg(SYN, CONTAINER_ISN, 0).options(options);
        self.send_from(port, &syn).unwrap();
        assert!(self.silent());
        let socket = self.last_socket();
        self.connected(socket);
        let syn_ack = self.only();
        assert!(syn_ack.is(SYN | ACK));
        assert_eq!(syn_ack.ack, CONTAINER_ISN.wrapping_add(1));
        let conn = Conn {
            port,
            socket,
            seq: syn_ack.ack,
            ack: syn_ack.seq.wrapping_add(1),
        };
        self.acknowledge(&conn);
        assert!(self.silent());
        assert_eq!(self.flow(&conn).state, State::Established);
        conn
    }

    fn handle(&self, conn: &Conn) -> Option<Handle> {
        let container = SocketAddr::new(self.container, conn.port);
        let mut all = self.engine.flows.iter();
        all.find(|(_, ends, _)| ends.container() == container)
            .map(|f| f.0)
    }

    pub(super) fn flow(&self, conn: &Conn) -> &TcpFlow {
        let handle = self.handle(conn).expect("the flow is gone");
        self.engine.flows.get(handle).unwrap()
    }

    pub(super) fn is_gone(&self, conn: &Conn) -> bool {
        self.handle(conn).is_none()
    }

    /// How the connection's socket ended.
    pub(super) fn fate(&self, conn: &Conn) -> Option<Fate> {
        let mut gone = self.host.gone.iter();
        gone.find(|(id, _)| *id == conn.socket).map(|g| g.1)
    }

    /// The end of every test: nothing may be left.
    pub(super) fn finish(mut self) {
        self.run(|e, now, _, io| e.shut_down(now, io));
        assert!(self.engine.is_empty() && self.host.sockets.is_empty());
        assert_eq!(self.engine.unsent(), 0);
        assert_eq!(self.engine.timers.next(), None);
    }
}
