//! Finding the server that answers.
//!
//! # Theory of operation
//!
//! The servers are asked in the order of `resolv.conf`, round after round, each round a `timeout`
//! after the one before, as often as `attempts` says. Within a round each server has a head start
//! ([`Patience::head_start`]) before the next one is asked as well, and loses what is left of it when
//! its host refuses the query or it says that it failed. Such a server is not asked again, and when
//! all of them are such, the query is over at once. No server that was asked is forgotten: a slow
//! server's answer still counts while others are being asked. The first real answer wins, NXDOMAIN
//! included. Failing that, a server's own failure is passed on; failing that, it is SERVFAIL, at the
//! latest after [`Patience::deadline`].
//!
//! A server that let its head start pass in silence is asked after the others for [`PASSED_OVER`],
//! so that not every query waits a second for it. Then one query tries it again: if it still is
//! silent, only that query has waited. An answer, be it late, makes it one of the others at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Transport;
use super::message::Verdict;
use super::resolv_conf::{MAX_SERVERS, Nameserver, Patience, ResolvConf, Servers};
use super::upstream::{Answer, Asked, Upstream};

/// How long a server that was silent is asked only after the others. Long against the second that
/// one query in it loses, short against the time that a person waits for a server that came back.
pub const PASSED_OVER: Duration = Duration::from_secs(30);

/// Forwards queries to the servers in force.
#[derive(Debug)]
pub struct Forwarder {
    servers: Servers,
    upstream: Arc<Upstream>,
    turn: AtomicUsize,
    silent: Mutex<Vec<Silent>>,
}

/// A server that was silent, and until when it is passed over.
#[derive(Debug)]
struct Silent {
    server: Nameserver,
    until: Instant,
}

/// What came of a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resolved {
    /// A server's answer.
    Answer(Vec<u8>),
    /// A server that could not or would not answer, with what it said, or no server at all.
    Failure(Option<Vec<u8>>),
}

/// One query while its servers are asked.
struct Race {
    patience: Patience,
    /// The servers of a round, in order.
    round: Vec<Nameserver>,
    /// Those that will not answer.
    failed: Vec<bool>,
    started: Instant,
    /// How many were asked, counted over all rounds, the failed ones included.
    asked: u32,
    next_at: Instant,
    /// The server whose head start runs, and since when.
    ahead: Option<(usize, Instant)>,
}

impl Race {
    fn new(patience: Patience, round: Vec<Nameserver>) -> Race {
        let started = Instant::now();
        Race {
            patience,
            failed: vec![false; round.len()],
            round,
            started,
            asked: 0,
            next_at: started,
            ahead: None,
        }
    }

    fn is_over(&self) -> bool {
        self.failed.iter().all(|failed| *failed)
    }

    /// The next server to ask, at `next_at`; `None` if there is none.
    fn next(&self) -> Option<usize> {
        let all = self.patience.attempts() * self.round.len() as u32;
        let server = self.asked as usize % self.round.len().max(1);
        (self.asked < all).then_some(server)
    }

    /// Whether the server that is next is the first of a round.
    fn starts_round(&self) -> bool {
        (self.asked as usize).is_multiple_of(self.round.len())
    }

    /// Counts the server that was next as asked, or passed over. The one after it follows when its
    /// head start is over; the first of a round, when the round before is.
    fn step(&mut self, asked: bool) {
        let now = Instant::now();
        let server = self.asked as usize % self.round.len();
        self.asked += 1;
        self.ahead = self.ahead.filter(|_| !asked);
        if asked {
            self.ahead = Some((server, now));
            self.next_at = now + self.patience.head_start();
        }
        if self.starts_round() {
            self.next_at = (self.started + self.patience.turn(self.asked)).max(now);
        }
    }

    /// A server will not answer: the next one of the round need not wait.
    fn failed(&mut self, server: usize) {
        self.failed[server] = true;
        if !self.starts_round() && self.ahead.is_none_or(|(ahead, _)| ahead == server) {
            self.next_at = Instant::now();
        }
        self.ahead = self.ahead.filter(|(ahead, _)| *ahead != server);
    }
}

impl Forwarder {
    /// Asks `servers` by way of `upstream`.
    pub(super) fn new(servers: Servers, upstream: Arc<Upstream>) -> Forwarder {
        Forwarder {
            servers,
            upstream,
            turn: AtomicUsize::new(0),
            silent: Mutex::default(),
        }
    }

    /// The servers in force. They are looked up for each query.
    pub(super) fn servers(&self) -> Arc<ResolvConf> {
        self.servers.current()
    }

    /// The answer to a query of servers that [`Forwarder::servers`] gave.
    pub(super) async fn resolve(
        &self,
        servers: &ResolvConf,
        transport: Transport,
        asked: Arc<Asked>,
    ) -> Resolved {
        let mut race = Race::new(servers.patience(), self.order(servers));
        let mut tries = JoinSet::new();
        let mut failure = None;
        let deadline = race.started + race.patience.deadline();
        while !race.is_over() {
            let next = race.next();
            tokio::select! {
                biased;
                () = sleep_until(deadline) => break,
                Some(done) = tries.join_next(), if !tries.is_empty() => {
                    let (server, done) = match done {
                        Ok(done) => done,
                        Err(error) => {
                            tracing::error!(%error, "a DNS query ended unasked");
                            continue;
                        }
                    };
                    match self.judge(&race.round[server], done) {
                        Some((Verdict::Final, answer)) => return Resolved::Answer(answer),
                        Some((_, answer)) => {
                            failure.get_or_insert(answer);
                        }
                        None => {}
                    }
                    race.failed(server);
                },
                () = sleep_until(race.next_at), if next.is_some() => {
                    self.note_silence(&mut race);
                    if let Some(server) = next {
                        self.ask(&mut race, server, (transport, &asked), &mut tries);
                    }
                }
            }
        }
        Resolved::Failure(failure)
    }

    /// Notes that the server whose head start is over has not answered.
    fn note_silence(&self, race: &mut Race) {
        if let Some((silent, since)) = race.ahead.take()
            && since.elapsed() >= race.patience.head_start()
        {
            self.unheard(race.round[silent].clone());
        }
    }

    /// Asks the server that is next, unless it will not answer.
    fn ask(
        &self,
        race: &mut Race,
        server: usize,
        (transport, asked): (Transport, &Arc<Asked>),
        tries: &mut JoinSet<(usize, std::io::Result<Answer>)>,
    ) {
        if race.failed[server] {
            return race.step(false);
        }
        match race.round[server].socket_addr() {
            Ok(address) => {
                let (upstream, asked) = (Arc::clone(&self.upstream), Arc::clone(asked));
                tries.spawn(async move { (server, upstream.ask(address, transport, asked).await) });
                race.step(true);
            }
            Err(error) => {
                tracing::debug!(%error, "a DNS server's interface is missing");
                race.step(true);
                race.failed(server);
            }
        }
    }

    /// Notes what came of a try.
    fn judge(&self, server: &Nameserver, done: std::io::Result<Answer>) -> Option<Answer> {
        match done {
            Ok(answer) => {
                self.heard(server);
                Some(answer)
            }
            Err(error) => {
                tracing::debug!(%error, "a DNS server does not answer");
                None
            }
        }
    }

    /// The servers in the order in which this query asks them in each round.
    fn order(&self, conf: &ResolvConf) -> Vec<Nameserver> {
        let servers = &conf.nameservers;
        if servers.is_empty() {
            return Vec::new();
        }
        let first = match conf.rotate {
            true => self.turn.fetch_add(1, Ordering::Relaxed) % servers.len(),
            false => 0,
        };
        let (before, after) = servers.split_at(first);
        let mut round = [after, before].concat();
        // Stable: those that are alike keep their order.
        let passed_over = self.passed_over();
        round.sort_by_key(|server| passed_over.contains(server));
        round
    }

    fn silent(&self) -> MutexGuard<'_, Vec<Silent>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The servers that this query asks only after the others. One whose time is over is tried by
    /// this query, and by it alone.
    fn passed_over(&self) -> Vec<Nameserver> {
        let now = Instant::now();
        let mut passed_over = Vec::new();
        for silent in self.silent().iter_mut() {
            match silent.until > now {
                true => passed_over.push(silent.server.clone()),
                false => silent.until = now + PASSED_OVER,
            }
        }
        passed_over
    }

    fn unheard(&self, server: Nameserver) {
        tracing::debug!(?server, "a DNS server is silent");
        let until = Instant::now() + PASSED_OVER;
        let mut silent = self.silent();
        // Of servers that are used no more, only the latest few are kept.
        silent.retain(|other| other.server != server);
        if silent.len() >= 2 * MAX_SERVERS {
            silent.remove(0);
        }
        silent.push(Silent { server, until });
    }

    fn heard(&self, server: &Nameserver) {
        self.silent().retain(|silent| silent.server != *server);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::dns::message::tests::{query, rcode};
    use crate::dns::upstream::Sources;

    async fn server() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    /// Answers each query with what `reply` makes of it; nothing at all for an empty list.
    async fn serve(socket: UdpSocket, reply: impl Fn(Vec<u8>) -> Vec<Vec<u8>>) {
        let mut buf = [0; 1024];
        loop {
            let (length, from) = socket.recv_from(&mut buf).await.unwrap();
            for answer in reply(buf[..length].to_vec()) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    }

    fn respond(mut query: Vec<u8>, code: u8) -> Vec<u8> {
        query[2] |= 0x80;
        query[3] |= code;
        query
    }

    fn forwarder(servers: &[SocketAddr]) -> Forwarder {
        let list = servers.iter().copied().map(Nameserver::from).collect();
        let upstream = Arc::new(Upstream::new(Sources::default()));
        Forwarder::new(Servers::fixed(list), upstream)
    }

    async fn ask(forwarder: &Forwarder, transport: Transport, query: Vec<u8>) -> Resolved {
        let asked = Arc::new(Asked {
            question_end: query.len(),
            message: query,
        });
        let servers = forwarder.servers();
        forwarder.resolve(&servers, transport, asked).await
    }

    /// An answer, be it a failure.
    async fn resolve(servers: &[SocketAddr], transport: Transport, query: Vec<u8>) -> Vec<u8> {
        match ask(&forwarder(servers), transport, query).await {
            Resolved::Answer(answer) | Resolved::Failure(Some(answer)) => answer,
            Resolved::Failure(None) => panic!("no answer"),
        }
    }

    /// The time that it takes to know that there is no answer.
    async fn fails(servers: &[SocketAddr], transport: Transport) -> Duration {
        let started = Instant::now();
        let resolved = ask(&forwarder(servers), transport, query(3, "example.org", 1)).await;
        assert_eq!(resolved, Resolved::Failure(None));
        started.elapsed()
    }

    const HEAD_START: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn an_answer_passes_unchanged_apart_from_the_id() {
        let (socket, address) = server().await;
        let records = b"\xc0\x0c\xff\x01 records nobody knows";
        tokio::spawn(serve(socket, move |query| {
            assert_eq!(query[2..4], [0x01, 0x30], "all but the id");
            vec![[respond(query, 0), records.to_vec()].concat()]
        }));
        let mut query = query(0x1234, "example.org", 65000);
        query[3] |= 0x30; // AD and CD
        // One id in 65536 happens to be the client's own.
        let answer = resolve(&[address], Transport::Udp, query.clone()).await;
        assert_eq!(answer, [respond(query, 0), records.to_vec()].concat());
    }

    #[tokio::test]
    async fn nxdomain_and_truncation_are_answers() {
        let (socket, address) = server().await;
        tokio::spawn(serve(socket, |query| {
            let mut answer = respond(query, 3);
            answer[2] |= 0x02;
            vec![answer]
        }));
        let answer = resolve(&[address], Transport::Udp, query(1, "gone.example", 1)).await;
        assert_eq!((rcode(&answer), answer[2] & 0x02), (3, 0x02));
    }

    #[tokio::test]
    async fn strays_are_ignored() {
        let (socket, address) = server().await;
        tokio::spawn(serve(socket, |query| {
            let mut wrong_id = respond(query.clone(), 3);
            wrong_id[0] ^= 1;
            let mut wrong_name = respond(query.clone(), 3);
            wrong_name[13] ^= 1;
            let echo = query.clone();
            let junk = vec![0xff; 5];
            vec![wrong_id, wrong_name, echo, junk, respond(query, 0)]
        }));
        let answer = resolve(&[address], Transport::Udp, query(1, "example.org", 1)).await;
        assert_eq!(rcode(&answer), 0);
    }

    #[tokio::test]
    async fn guesses_do_not_end_the_wait_for_the_true_answer() {
        let (socket, address) = server().await;
        tokio::spawn(serve(socket, |query| {
            let guess = |n: u16| {
                let mut guess = respond(query.clone(), 3);
                guess[0] ^= 1 + (n >> 8) as u8;
                guess[1] ^= n as u8;
                guess
            };
            (0..200)
                .map(guess)
                .chain([respond(query.clone(), 0)])
                .collect()
        }));
        let answer = resolve(&[address], Transport::Udp, query(1, "example.org", 1)).await;
        assert_eq!(rcode(&answer), 0);
    }

    #[tokio::test]
    async fn a_dead_server_costs_one_second() {
        let (_silent, dead) = server().await;
        let (socket, alive) = server().await;
        tokio::spawn(serve(socket, |query| vec![respond(query, 0)]));
        let started = Instant::now();
        let answer = resolve(&[dead, alive], Transport::Udp, query(1, "example.org", 1)).await;
        assert_eq!(rcode(&answer), 0);
        let took = started.elapsed();
        assert!(took >= HEAD_START && took < HEAD_START + Duration::from_millis(500));
    }

    #[tokio::test]
    async fn only_one_query_waits_for_a_dead_server() {
        let (silent, dead) = server().await;
        let (socket, alive) = server().await;
        tokio::spawn(serve(socket, |query| vec![respond(query, 0)]));
        let forwarder = forwarder(&[dead, alive]);
        let took = async || {
            let started = Instant::now();
            let query = query(1, "example.org", 1);
            let resolved = ask(&forwarder, Transport::Udp, query).await;
            assert!(matches!(resolved, Resolved::Answer(_)));
            started.elapsed()
        };
        assert!(took().await >= HEAD_START);
        for _ in 0..3 {
            assert!(took().await < HEAD_START / 2);
        }
        let over = || forwarder.silent()[0].until = Instant::now();
        over();
        assert!(took().await >= HEAD_START, "tried again");
        assert!(took().await < HEAD_START / 2);
        over();
        let ((), took) = tokio::join!(
            async {
                let mut buf = [0; 512];
                // Two queries were left unanswered.
                for _ in 0..2 {
                    silent.recv_from(&mut buf).await.unwrap();
                }
                let (length, from) = silent.recv_from(&mut buf).await.unwrap();
                let answer = respond(buf[..length].to_vec(), 0);
                silent.send_to(&answer, from).await.unwrap();
            },
            took()
        );
        assert!(took < HEAD_START / 2);
        assert!(forwarder.silent().is_empty(), "it has answered");
    }

    #[tokio::test]
    async fn a_refusing_host_or_a_failing_server_costs_nothing() {
        let (socket, gone) = server().await;
        drop(socket);
        let (socket, failing) = server().await;
        tokio::spawn(serve(socket, |query| vec![respond(query, 2)]));
        let (socket, alive) = server().await;
        tokio::spawn(serve(socket, |query| vec![respond(query, 0)]));
        let started = Instant::now();
        let servers = [gone, failing, alive];
        let answer = resolve(&servers, Transport::Udp, query(1, "example.org", 1)).await;
        assert_eq!(rcode(&answer), 0);
        assert!(started.elapsed() < Duration::from_millis(500));
    }

    #[tokio::test]
    async fn a_failure_is_passed_on_when_nobody_does_better() {
        let (socket, failing) = server().await;
        tokio::spawn(serve(socket, |query| vec![respond(query, 5)]));
        let answer = resolve(&[failing], Transport::Udp, query(1, "example.org", 1)).await;
        assert_eq!(rcode(&answer), 5);
    }

    #[tokio::test]
    async fn a_slow_answer_still_counts() {
        let (socket, slow) = server().await;
        tokio::spawn(async move {
            let mut buf = [0; 512];
            let (length, from) = socket.recv_from(&mut buf).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1300)).await;
            let answer = respond(buf[..length].to_vec(), 0);
            socket.send_to(&answer, from).await.unwrap();
        });
        let answer = resolve(&[slow], Transport::Udp, query(1, "example.org", 1)).await;
        assert_eq!(rcode(&answer), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_after_timeout_times_attempts() {
        let (_a, first) = server().await;
        let (_b, second) = server().await;
        let took = fails(&[first, second], Transport::Udp).await;
        assert_eq!(took.as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_after_six_seconds_arrives_and_the_question_was_repeated_once() {
        let (socket, slow) = server().await;
        let serve = async {
            let mut buf = [0; 512];
            let (length, from) = socket.recv_from(&mut buf).await.unwrap();
            let first = buf[..length].to_vec();
            tokio::time::sleep(Duration::from_secs(6)).await;
            socket
                .send_to(&respond(first.clone(), 0), from)
                .await
                .unwrap();
            let (length, _) = socket.recv_from(&mut buf).await.unwrap();
            assert_eq!(buf[2..length], first[2..]);
            assert!(socket.try_recv_from(&mut buf).is_err());
        };
        let servers = [slow];
        let asking = resolve(&servers, Transport::Udp, query(1, "example.org", 1));
        let (answer, ()) = tokio::join!(asking, serve);
        assert_eq!(rcode(&answer), 0);
    }

    #[tokio::test]
    async fn refusals_of_all_hosts_are_known_at_once() {
        let mut gone = Vec::new();
        for _ in 0..3 {
            gone.push(server().await.1);
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            assert!(fails(&gone, transport).await < Duration::from_millis(500));
        }
    }

    #[tokio::test]
    async fn over_tcp() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let answer = [respond(query, 0), vec![7; 40_000]].concat();
            stream.write_u16(answer.len() as u16).await.unwrap();
            for piece in answer.chunks(7_000) {
                stream.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let query = query(9, "example.org", 16);
        let answer = resolve(&[address], Transport::Tcp, query.clone()).await;
        assert_eq!(answer, [respond(query, 0), vec![7; 40_000]].concat());
    }

    #[tokio::test]
    async fn without_servers_there_is_no_answer() {
        assert!(fails(&[], Transport::Udp).await < HEAD_START);
    }

    #[tokio::test]
    async fn rotation() {
        let forwarder = forwarder(&[]);
        let mut conf = ResolvConf::parse("nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
        let last_octets = |conf: &ResolvConf| -> Vec<String> {
            let order = forwarder.order(conf);
            let text = |s: &Nameserver| s.address().to_string()[8..].to_owned();
            order.iter().map(text).collect()
        };
        assert_eq!(last_octets(&conf), ["1", "2"]);
        conf.rotate = true;
        assert_eq!(last_octets(&conf), ["1", "2"]);
        assert_eq!(last_octets(&conf), ["2", "1"]);
    }
}
