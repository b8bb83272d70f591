//! The container: smoltcp's TCP sockets on an interface over memory, an independent stack to talk
//! to, with the applications of the plan on top.
//!
//! What smoltcp leaves out of a kernel is added here: an ICMP error ends a connection that is still
//! being opened (RFC 1122, section 4.2.3.9), a connect gives up after a while, and every connection
//! has keepalives, so that an end whose RST the wire lost is noticed in bounded time.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use cnet_wire::MacAddr;
use cnet_wire::time::{Duration, Instant};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration as SmolDuration, Instant as SmolInstant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv6Cidr};

use crate::app::{App, End, Pipe, Read};
use crate::offload;
use crate::watch::Watch;

/// How long a connect waits for an answer; Linux's six SYNs take 127 s (tcp(7), tcp_syn_retries).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);

/// Buffers and habits of a TCP socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketPlan {
    /// Bytes of the receive buffer.
    pub rx_buffer: usize,
    /// Bytes of the send buffer.
    pub tx_buffer: usize,
    /// Whether Nagle's algorithm is on (RFC 896).
    pub nagle: bool,
    /// How long an ACK may wait for data to go with; `None` sends each at once.
    pub ack_delay: Option<Duration>,
}

/// An in-memory Ethernet card.
struct Card {
    mtu: usize,
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
}

struct RxToken(Vec<u8>);
struct TxToken<'a>(&'a mut Vec<Vec<u8>>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let r = f(&mut frame);
        self.0.push(frame);
        r
    }
}

impl Device for Card {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(RxToken, TxToken<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((RxToken(frame), TxToken(&mut self.tx)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<TxToken<'_>> {
        Some(TxToken(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 14 + self.mtu;
        caps
    }
}

/// One connection and the application that has it.
pub struct Endpoint {
    /// The far end, for a connection the container opens.
    remote: Option<SocketAddr>,
    local_port: u16,
    socket: SocketPlan,
    start: Instant,
    handle: Option<SocketHandle>,
    connected: bool,
    /// What was received before the peer's FIN, and not read yet. smoltcp forgets both when
    /// TIME-WAIT is over, which an application that reads late outlives.
    last_bytes: Option<VecDeque<u8>>,
    /// An ICMP error came for it before it was connected.
    unreachable: bool,
    watch: Watch,
    /// The stack hangs by its own fault, and was told to give up.
    pub stuck: bool,
    /// The application that has it.
    pub app: App,
}

impl Endpoint {
    /// An application that connects to `remote` at `start`.
    pub fn connecting(
        remote: SocketAddr,
        port: u16,
        start: Instant,
        socket: SocketPlan,
        app: App,
    ) -> Self {
        Endpoint {
            remote: Some(remote),
            ..Endpoint::listening(port, start, socket, app)
        }
    }

    /// An application that accepts one connection on `port`.
    pub fn listening(port: u16, start: Instant, socket: SocketPlan, app: App) -> Self {
        Endpoint {
            remote: None,
            local_port: port,
            socket,
            start,
            handle: None,
            connected: false,
            last_bytes: None,
            unreachable: false,
            watch: Watch::default(),
            stuck: false,
            app,
        }
    }

    /// Whether the handshake was ever completed.
    pub fn was_connected(&self) -> bool {
        self.connected
    }
}

/// The container.
pub struct Container {
    v6: bool,
    iface: Interface,
    sockets: SocketSet<'static>,
    card: Card,
    /// The last frame by which each neighbour told its MAC address, and when it was last believed.
    introductions: Vec<(Vec<u8>, Instant)>,
    /// What runs on it.
    pub endpoints: Vec<Endpoint>,
}

/// smoltcp forgets a neighbour after 60 s and drops the answers to segments that find it forgotten,
/// where a kernel would go on with the stale entry and ask again in parallel.
const STALE: Duration = Duration::from_secs(30);

/// Where the sender's MAC address stands in a frame.
const SENDER: std::ops::Range<usize> = 6..12;

/// Whether `frame` is an ARP reply or a neighbour advertisement.
fn introduces(frame: &[u8]) -> bool {
    let arp_reply = frame.get(12..14) == Some(&[8, 6]) && frame.get(21) == Some(&2);
    let advertisement = matches!(offload::ip_at(frame), Ok(Some(at)) if at.protocol == 58)
        && frame.get(54) == Some(&136);
    arp_reply || advertisement
}

fn smol(t: Instant) -> SmolInstant {
    SmolInstant::from_micros((t.as_nanos() / 1000) as i64)
}

impl Container {
    /// A container with one address of one family and a default route to `gateway`.
    pub fn new(
        v6: bool,
        mtu: usize,
        seed: u64,
        address: IpAddr,
        gateway: IpAddr,
        mac: MacAddr,
    ) -> Self {
        let mut card = Card {
            mtu,
            rx: VecDeque::new(),
            tx: Vec::new(),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut card, SmolInstant::ZERO);
        iface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(address.into(), if v6 { 64 } else { 24 }));
            if v6 {
                let id = mac.eui64();
                let mut octets = [0; 16];
                octets[..2].copy_from_slice(&[0xfe, 0x80]);
                octets[8..].copy_from_slice(&id);
                let _ = addresses.push(IpCidr::Ipv6(Ipv6Cidr::new(octets.into(), 64)));
            }
        });
        let routes = iface.routes_mut();
        let _ = match gateway {
            IpAddr::V4(a) => routes.add_default_ipv4_route(a),
            IpAddr::V6(a) => routes.add_default_ipv6_route(a),
        };
        Container {
            v6,
            iface,
            sockets: SocketSet::new(Vec::new()),
            card,
            introductions: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// A frame from the wire.
    pub fn deliver(&mut self, now: Instant, frame: Vec<u8>) {
        if let Ok(Some(at)) = offload::ip_at(&frame) {
            if at.protocol == 6
                && let Some(e) = self.endpoint(&frame[at.l4 + 2..])
            {
                // A vanished peer does not answer, not even with a RST.
                if e.app.end == Some(End::Vanished) {
                    return;
                }
                e.watch.received(now, &frame, &at);
            }
            self.note_icmp_error(&frame[at.l4..at.end], at.protocol);
        }
        let mut known = self.introductions.iter_mut();
        let known = known.find(|(introduction, _)| introduction[SENDER] == frame[SENDER]);
        match (introduces(&frame), known) {
            (true, Some(known)) => *known = (frame.clone(), now),
            (true, None) => self.introductions.push((frame.clone(), now)),
            (false, Some((again, last))) if now >= *last + STALE => {
                *last = now;
                self.card.rx.push_back(again.clone());
            }
            (false, _) => {}
        }
        self.card.rx.push_back(frame);
    }

    /// The endpoint with the port number that `port` starts with.
    fn endpoint(&mut self, port: &[u8]) -> Option<&mut Endpoint> {
        let port = u16::from_be_bytes([port[0], port[1]]);
        self.endpoints.iter_mut().find(|e| e.local_port == port)
    }

    /// A destination-unreachable message concerns the connection it quotes.
    fn note_icmp_error(&mut self, icmp: &[u8], protocol: u8) {
        let unreachable = match protocol {
            1 => 3,
            58 => 1,
            _ => return,
        };
        let l4 = 8 + if self.v6 { 40 } else { 20 };
        if icmp.len() < l4 + 4 || icmp[0] != unreachable {
            return;
        }
        let source = u16::from_be_bytes([icmp[l4], icmp[l4 + 1]]);
        let destination = u16::from_be_bytes([icmp[l4 + 2], icmp[l4 + 3]]);
        for e in &mut self.endpoints {
            let remote = e.remote.map(|r| r.port());
            if e.local_port == source && remote == Some(destination) && !e.connected {
                e.unreachable = true;
            }
        }
    }

    /// Runs stack and applications until both rest; the frames they sent are added to `out`.
    pub fn poll(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) -> Result<(), String> {
        loop {
            self.iface
                .poll(smol(now), &mut self.card, &mut self.sockets);
            let mut moved = false;
            for e in &mut self.endpoints {
                moved |= e.run(now, &mut self.iface, &mut self.sockets)?;
            }
            if !moved {
                break;
            }
        }
        for frame in &self.card.tx {
            if let Ok(at) = offload::tcp_at(frame) {
                let port = u16::from_be_bytes([frame[at.l4], frame[at.l4 + 1]]);
                let mut sender = self.endpoints.iter_mut();
                if let Some(e) = sender.find(|e| e.local_port == port) {
                    e.watch.sent(now, frame, &at);
                }
            }
        }
        for e in &mut self.endpoints {
            let keepalive = e.look_after(now, &mut self.sockets);
            self.card.tx.extend(keepalive);
        }
        out.append(&mut self.card.tx);
        Ok(())
    }

    /// Whether all that endpoint `n` has sent was acknowledged, and it may send more.
    pub fn has_all_acknowledged(&self, n: usize) -> bool {
        let e = &self.endpoints[n];
        // The socket of an application that has ended may be gone.
        let Some(handle) = e.handle.filter(|_| e.app.end.is_none()) else {
            return false;
        };
        let socket = self.sockets.get::<tcp::Socket>(handle);
        let open = [tcp::State::Established, tcp::State::CloseWait];
        open.contains(&socket.state()) && socket.send_queue() == 0
    }

    /// For messages: where the socket of endpoint `n` stands.
    pub fn state(&self, n: usize) -> String {
        let handle = self.endpoints[n].handle;
        handle.map_or("none".into(), |h| {
            let socket = self.sockets.get::<tcp::Socket>(h);
            format!("{}, {} to send", socket.state(), socket.send_queue())
        })
    }

    /// When the container wants to be polled.
    pub fn next(&mut self, now: Instant) -> Option<Instant> {
        let stack = self
            .iface
            .poll_at(smol(now), &self.sockets)
            .map(|t| Instant::from_nanos(t.total_micros().max(0) as u64 * 1000));
        let sockets = &self.sockets;
        let keepalives = self
            .endpoints
            .iter()
            .filter(|e| e.is_connection(sockets))
            .filter_map(|e| e.watch.next());
        let apps = self.endpoints.iter().filter_map(|e| e.next(now));
        apps.chain(keepalives).chain(stack).min()
    }
}

impl Endpoint {
    /// There is a connection that a kernel would keep alive.
    fn is_connection(&self, sockets: &SocketSet) -> bool {
        self.connected
            && self.app.end != Some(End::Vanished)
            && self.handle.is_some_and(|h| {
                let state = sockets.get::<tcp::Socket>(h).state();
                !matches!(state, State::Closed | State::Listen | State::TimeWait)
            })
    }

    /// Gives a stuck connection up, or sends a keepalive if it is time for one.
    fn look_after(&mut self, now: Instant, sockets: &mut SocketSet) -> Option<Vec<u8>> {
        let handle = self.handle.filter(|_| self.is_connection(sockets))?;
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        if self.watch.is_stuck(now, socket.send_queue() > 0) {
            self.stuck = true;
            socket.abort();
        }
        self.watch.keepalive(now)
    }

    fn next(&self, now: Instant) -> Option<Instant> {
        match (self.app.end, self.handle) {
            (Some(_), _) => None,
            (None, None) => Some(self.start),
            (None, Some(_)) if self.connected => self.app.wake(now),
            (None, Some(_)) => self.remote.map(|_| self.start + CONNECT_TIMEOUT),
        }
    }

    fn run(
        &mut self,
        now: Instant,
        iface: &mut Interface,
        sockets: &mut SocketSet,
    ) -> Result<bool, String> {
        if self.app.end.is_some() || now < self.start {
            return Ok(false);
        }
        let Some(handle) = self.handle else {
            return self.open(iface, sockets).map(|()| true);
        };
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        if !self.connected {
            self.connected = !matches!(
                socket.state(),
                State::Closed | State::Listen | State::SynSent | State::SynReceived
            );
        }
        if !self.connected {
            let end = self.failure(now, socket.state());
            if end.is_some() {
                socket.abort();
            }
            self.app.end = end;
            return Ok(end.is_some());
        }
        let fin_received = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if fin_received && self.last_bytes.is_none() {
            let mut rest = vec![0; socket.recv_queue()];
            let n = socket.recv_slice(&mut rest).unwrap_or(0);
            rest.truncate(n);
            self.last_bytes = Some(rest.into());
        }
        let mut pipe = SocketPipe {
            socket,
            last_bytes: self.last_bytes.as_mut(),
            vanish: false,
        };
        let moved = self.app.run(now, &mut pipe)?;
        if pipe.vanish {
            sockets.remove(handle);
        }
        Ok(moved)
    }

    /// Why the connection will not come about.
    fn failure(&self, now: Instant, state: State) -> Option<End> {
        self.remote?;
        if self.unreachable {
            Some(End::Unreachable)
        } else if state == State::Closed {
            Some(End::Refused)
        } else if now >= self.start + CONNECT_TIMEOUT {
            Some(End::TimedOut)
        } else {
            None
        }
    }

    fn open(&mut self, iface: &mut Interface, sockets: &mut SocketSet) -> Result<(), String> {
        let buffer = |n: usize| tcp::SocketBuffer::new(vec![0; n]);
        let plan = self.socket;
        let mut socket = tcp::Socket::new(buffer(plan.rx_buffer), buffer(plan.tx_buffer));
        socket.set_nagle_enabled(plan.nagle);
        socket.set_ack_delay(
            plan.ack_delay
                .map(|d| SmolDuration::from_micros(d.as_micros() as u64)),
        );
        let opened = match self.remote {
            Some(remote) => socket
                .connect(iface.context(), remote, self.local_port)
                .map_err(|e| e.to_string()),
            None => socket.listen(self.local_port).map_err(|e| e.to_string()),
        };
        opened.map_err(|e| format!("the container's stack: {e}"))?;
        self.handle = Some(sockets.add(socket));
        Ok(())
    }
}

/// A smoltcp socket as an application has it.
struct SocketPipe<'a, 'b> {
    socket: &'a mut tcp::Socket<'b>,
    last_bytes: Option<&'a mut VecDeque<u8>>,
    vanish: bool,
}

impl Pipe for SocketPipe<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> Read {
        if let Some(rest) = &mut self.last_bytes {
            let n = buf.len().min(rest.len());
            for (to, from) in buf.iter_mut().zip(rest.drain(..n)) {
                *to = from;
            }
            return if n > 0 { Read::Data(n) } else { Read::Eof };
        }
        match self.socket.recv_slice(buf) {
            Ok(0) => Read::Empty,
            Ok(n) => Read::Data(n),
            Err(tcp::RecvError::Finished) => Read::Eof,
            Err(tcp::RecvError::InvalidState) => Read::Reset,
        }
    }

    fn write(&mut self, data: &[u8]) -> Option<usize> {
        self.socket.send_slice(data).ok()
    }

    fn shutdown(&mut self) {
        self.socket.close();
    }

    fn reset(&mut self) {
        self.socket.abort();
    }

    fn vanish(&mut self) {
        self.vanish = true;
    }
}
