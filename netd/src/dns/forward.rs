//! Finding the server that answers.
//!
//! # Theory of operation
//!
//! The servers are asked in the order of `resolv.conf`, round after round. Each has [`HEAD_START`]
//! before the next one is asked as well, and loses what is left of it when its host refuses the
//! query or it says that it failed. No server that was asked is forgotten: a slow server's answer
//! still counts while others are being asked. The first real answer wins, NXDOMAIN included.
//! Failing that, a server's own failure is passed on; failing that, it is SERVFAIL, at the latest
//! after [`DEADLINE`].
//!
//! A server that let its head start pass in silence is asked after the others for [`PASSED_OVER`],
//! so that not every query waits a second for it. Then one query tries it again: if it still is
//! silent, only that query has waited. An answer, be it late, makes it one of the others at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::message::{self, Question, Verdict};
use super::resolv_conf::{MAX_SERVERS, Nameserver, ResolvConf, Servers};
use super::upstream::{self, Asked, Sources};
use super::{Outcome, Transport};

/// How long a server is waited for before the next one is asked as well.
pub const HEAD_START: Duration = Duration::from_secs(1);

/// How long a server that was silent is asked only after the others. Long against the second that
/// one query in it loses, short against the time that a person waits for a server that came back.
pub const PASSED_OVER: Duration = Duration::from_secs(30);

/// How long a query may take in all. Resolvers in the container wait five seconds for us
/// (`RES_TIMEOUT`), so an answer has to leave before that.
pub const DEADLINE: Duration = Duration::from_millis(4500);

/// Forwards queries to the servers in force.
#[derive(Debug)]
pub struct Forwarder {
    servers: Servers,
    sources: Sources,
    turn: AtomicUsize,
    silent: Mutex<Vec<Silent>>,
}

/// A server that was silent, and until when it is passed over.
#[derive(Debug)]
struct Silent {
    server: Nameserver,
    until: Instant,
}

impl Forwarder {
    /// Asks `servers` from the addresses in `sources`.
    pub fn new(servers: Servers, sources: Sources) -> Forwarder {
        Forwarder {
            servers,
            sources,
            turn: AtomicUsize::new(0),
            silent: Mutex::default(),
        }
    }

    /// The answer to `query`, which asks `question`.
    pub async fn resolve(
        &self,
        transport: Transport,
        query: Vec<u8>,
        question: Question,
    ) -> (Outcome, Vec<u8>) {
        let asked = Arc::new(Asked {
            message: query,
            question,
        });
        match self.race(transport, &asked).await {
            Some(answer) => (Outcome::Forwarded, answer),
            None => {
                let answer =
                    message::error(&asked.message, &asked.question, ResponseCode::ServFail);
                (Outcome::Failed, answer)
            }
        }
    }

    async fn race(&self, transport: Transport, asked: &Arc<Asked>) -> Option<Vec<u8>> {
        let mut order = self.order(&self.servers.current()).into_iter();
        let mut next = order.next();
        let started = Instant::now();
        let mut next_at = started;
        let mut tries = JoinSet::new();
        // The server whose head start runs, and since when.
        let mut ahead: Option<(Nameserver, Instant)> = None;
        let mut failure = None;
        while next.is_some() || !tries.is_empty() {
            tokio::select! {
                biased;
                () = sleep_until(started + DEADLINE) => break,
                Some(done) = tries.join_next() => {
                    let (server, done) = match done {
                        Ok(done) => done,
                        Err(error) => {
                            tracing::error!(%error, "a DNS query ended unasked");
                            continue;
                        }
                    };
                    ahead = ahead.filter(|(ahead, _)| *ahead != server);
                    next_at = Instant::now();
                    match done {
                        Ok((verdict, answer)) => {
                            self.heard(&server);
                            if verdict == Verdict::Final {
                                return Some(answer);
                            }
                            failure.get_or_insert(answer);
                        }
                        Err(error) => tracing::debug!(%error, "a DNS server does not answer"),
                    }
                },
                () = sleep_until(next_at), if next.is_some() => {
                    if let Some((silent, _)) =
                        ahead.take().filter(|(_, since)| since.elapsed() >= HEAD_START)
                    {
                        self.unheard(silent);
                    }
                    next_at = Instant::now() + HEAD_START;
                    let Some(server) = next.take() else { continue };
                    match server.socket_addr() {
                        Ok(address) => {
                            let asking =
                                upstream::ask(address, transport, self.sources, asked.clone());
                            ahead = Some((server.clone(), Instant::now()));
                            tries.spawn(async move { (server, asking.await) });
                        }
                        Err(error) => {
                            tracing::debug!(%error, "a DNS server's interface is missing");
                            next_at = Instant::now();
                        }
                    }
                    next = order.next();
                }
            }
        }
        failure
    }

    /// The servers in the order in which this query asks them, all rounds in a row.
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
        let length = round.len() * conf.attempts as usize;
        round.into_iter().cycle().take(length).collect()
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
    use crate::dns::message::{Inspected, inspect};

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

    async fn resolve(servers: &[SocketAddr], transport: Transport, query: Vec<u8>) -> Vec<u8> {
        let list = servers.iter().copied().map(Nameserver::from).collect();
        let forwarder = Forwarder::new(Servers::fixed(list), Sources::default());
        let Inspected::Question(question) = inspect(&query) else {
            panic!("not a query");
        };
        forwarder.resolve(transport, query, question).await.1
    }

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
    async fn a_guesser_is_given_up() {
        let (socket, address) = server().await;
        tokio::spawn(serve(socket, |query| {
            let guess = |n: u8| {
                let mut guess = respond(query.clone(), 0);
                guess[0] ^= n | 0x80;
                guess
            };
            (0..100).map(guess).collect()
        }));
        let started = Instant::now();
        let answer = resolve(&[address], Transport::Udp, query(1, "example.org", 1)).await;
        assert_eq!(rcode(&answer), 2);
        assert!(started.elapsed() < Duration::from_secs(4));
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
        let list = [dead, alive].map(Nameserver::from).to_vec();
        let forwarder = Forwarder::new(Servers::fixed(list), Sources::default());
        let took = async || {
            let query = query(1, "example.org", 1);
            let Inspected::Question(question) = inspect(&query) else {
                panic!("not a query");
            };
            let started = Instant::now();
            let (_, answer) = forwarder.resolve(Transport::Udp, query, question).await;
            assert_eq!(rcode(&answer), 0);
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
    async fn silence_becomes_servfail_in_time() {
        let (_a, first) = server().await;
        let (_b, second) = server().await;
        let started = Instant::now();
        for transport in [Transport::Udp, Transport::Tcp] {
            let answer = resolve(&[first, second], transport, query(3, "example.org", 1)).await;
            assert_eq!((rcode(&answer), &answer[..2]), (2, &[0, 3][..]));
        }
        assert!(started.elapsed() < Duration::from_secs(10));
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
    async fn no_server_is_servfail_at_once() {
        let answer = resolve(&[], Transport::Udp, query(1, "example.org", 1)).await;
        assert_eq!(rcode(&answer), 2);
    }

    #[test]
    fn rounds_and_rotation() {
        let forwarder = Forwarder::new(Servers::fixed(vec![]), Sources::default());
        let mut conf = ResolvConf::parse("nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
        let last_octets = |conf: &ResolvConf| -> Vec<String> {
            let order = forwarder.order(conf);
            let text = |s: &Nameserver| s.address().to_string()[8..].to_owned();
            order.iter().map(text).collect()
        };
        assert_eq!(last_octets(&conf), ["1", "2", "1", "2"]);
        conf.rotate = true;
        conf.attempts = 1;
        assert_eq!(last_octets(&conf), ["1", "2"]);
        assert_eq!(last_octets(&conf), ["2", "1"]);
    }
}
