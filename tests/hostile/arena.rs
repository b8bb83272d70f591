//! One attacker and its neighbours on a network, and what each attack has to leave as it was.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cnet_wire::DropReason;

use crate::frames::End;
use crate::lab::dataplane::{Member, Network};
use crate::lab::raw::Wire;
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::station::Station;
use crate::lab::traffic::{CONNECT, connect_and_echo, echo, echo_datagram};
use crate::lab::{Lab, REMOTE_V4, REMOTE_V6, any, wait_until};

/// How long an attack may take to show in the counters.
const COUNTED: Duration = Duration::from_secs(10);

/// The longest that a round trip between the neighbours may take. A machine that does much else
/// may be slow itself, so this only tells a stall.
const STALL: Duration = Duration::from_secs(1);

/// A network of an attacker and two that talk with each other all the while.
pub struct Arena {
    /// Where all is.
    pub lab: Lab,
    /// The network, in the test's process.
    pub network: Network,
    /// It sends what it likes.
    pub attacker: Member,
    /// It is attacked.
    pub victim: Member,
    /// It talks with the victim.
    pub peer: Member,
    /// The attacker's interface.
    pub wire: Wire,
    /// The attacker's addresses.
    pub own: Station,
    /// The gateway's.
    pub gateway: Station,
    /// The victim's.
    pub of_victim: Station,
    talk: Talk,
}

impl Arena {
    /// One with spoof protection.
    pub fn start() -> Self {
        Self::with(true)
    }

    /// One whose attacker may send from any addresses if not `spoof_protection`.
    pub fn with(spoof_protection: bool) -> Self {
        let lab = Lab::direct();
        let network = Network::start(&lab, 1500);
        let attacker = network.join_with(5, spoof_protection);
        let [victim, peer] = [6, 7].map(|number| network.join(number));
        reaches(&victim, peer.v4);
        // Longer frames than the network's, and no packets of the kernel's own in between.
        attacker.namespace.ip("link set eth0 mtu 9000");
        let talk = Talk::start(&victim, &peer);
        Self {
            wire: Wire::open(&attacker.namespace, "eth0"),
            own: attacker.station(),
            gateway: network.gateway(),
            of_victim: victim.station(),
            lab,
            network,
            attacker,
            victim,
            peer,
            talk,
        }
    }

    /// The attacker's end, IPv4.
    pub fn v4(&self) -> End {
        (self.own.mac, self.own.v4)
    }

    /// The attacker's end, IPv6.
    pub fn v6(&self) -> End {
        (self.own.mac, self.own.v6)
    }

    /// The second host by way of the gateway, IPv4.
    pub fn world_v4(&self) -> End {
        (self.gateway.mac, REMOTE_V4.into())
    }

    /// The second host by way of the gateway, IPv6.
    pub fn world_v6(&self) -> End {
        (self.gateway.mac, REMOTE_V6.into())
    }

    /// How many of the attacker's frames were dropped for `reason` so far.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.network.of_port(self.attacker.port).drops.get(reason)
    }

    /// Sends `frames` twice; each is dropped for `reason`.
    pub fn assert_dropped(&self, what: &str, reason: DropReason, frames: &[Vec<u8>]) {
        let before = self.network.of_port(self.attacker.port).drops;
        for _ in 0..2 {
            self.send(frames);
        }
        let sent = 2 * frames.len() as u64;
        wait_until(what, COUNTED, || {
            let after = self.network.of_port(self.attacker.port).drops;
            let dropped = after.get(reason) - before.get(reason);
            let others: Vec<String> = after
                .iter()
                .filter(|(other, count)| *count > before.get(*other))
                .map(|(other, count)| format!("{}: {}", other.name(), count - before.get(other)))
                .collect();
            let report = format!("{sent} sent, dropped as {others:?}");
            (dropped >= sent).then_some(()).ok_or(report)
        });
    }

    /// Sends `frames`, with a pause now and then, so that none is lost in the attacker's own queue.
    pub fn send(&self, frames: &[Vec<u8>]) {
        for (number, frame) in frames.iter().enumerate() {
            self.wire.send(frame);
            if number % 200 == 199 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// The end of every test: the neighbours have talked on, all three reach the world and each
    /// other, the attacker too.
    pub fn assert_undisturbed(self) {
        self.assert_undisturbed_within(STALL);
    }

    /// As [`Arena::assert_undisturbed`], and no round trip of theirs took as long as `stall`.
    pub fn assert_undisturbed_within(self, stall: Duration) {
        let longest = self.talk.stop();
        println!("longest round trip of the neighbours: {longest:?}");
        assert!(longest < stall, "{longest:?}");
        let tcp = TcpServer::echo(&self.lab.remote, any(REMOTE_V4.into(), 0));
        let udp = UdpServer::echo(&self.lab.remote, any(REMOTE_V4.into(), 0));
        for member in [&self.victim, &self.attacker] {
            let at = |port| SocketAddr::new(IpAddr::V4(REMOTE_V4), port);
            connect_and_echo(&member.namespace, at(tcp.address.port()), b"out").expect("TCP");
            echo_datagram(&member.namespace, at(udp.address.port()), 1000).expect("UDP");
        }
        for address in [self.peer.v4, self.peer.v6] {
            reaches(&self.attacker, address);
        }
    }
}

/// Whether `to` answers `from`. The first request may go while addresses are being resolved.
pub fn reaches(from: &Member, to: IpAddr) {
    let ping = from.namespace.command("ping");
    let arguments = format!("-n -q -c 1 -i 0.2 -w 5 {to}");
    let done = ping.args(arguments.split(' ')).run(Duration::from_secs(10));
    assert!(done.success(), "{done}");
}

/// Round trips between two containers.
struct Talk {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Talk {
    fn start(from: &Member, to: &Member) -> Self {
        let server = TcpServer::echo(&to.namespace, SocketAddr::new(to.v4, 0));
        let stream = from.namespace.connect(server.address, CONNECT);
        let mut stream = stream.expect("a connect between neighbours");
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let _server = server;
            let mut longest = Duration::ZERO;
            while !until.load(Ordering::Relaxed) {
                let started = Instant::now();
                echo(&mut stream, b"undisturbed").expect("an echo");
                longest = longest.max(started.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            longest
        });
        Self { over, thread }
    }

    fn stop(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("neighbours that talk on")
    }
}
