//! One question to one server.
//!
//! # Theory of operation
//!
//! A question over UDP goes out from a socket of its own, on a port that the kernel draws at random,
//! under an id drawn at random (RFC 5452 section 9). The socket is connected, so that only the
//! server's address and port can answer. A message that answers another question is ignored, however
//! many there are: guesses do not end the wait for the true answer. An ICMP error that the host's
//! kernel has taken in for the socket does.
//!
//! When as many sockets are open as there may be ([`Upstream::new`]), a further question goes out
//! from one of those that are open towards the same server, under an id of its own. So the number of
//! questions on their way is not bounded by descriptors.
//!
//! A question over TCP has a connection of its own; beyond [`MAX_CONNECTIONS`] it waits for one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cnet_tap::socket::{enable_recverr, recv_error};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::rand::GetRandomFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;

use super::Transport;
use super::message::{self, HEADER_LEN, Verdict};

/// The largest DNS message: its length is 16 bits over TCP, and a UDP datagram is shorter.
const MAX_MESSAGE: usize = 65535;

/// Sockets that are open at most, where the process may have descriptors enough.
const MAX_SOCKETS: usize = 2048;
/// Sockets that are open at most where it may have few.
const LEAST_SOCKETS: usize = 32;
/// The part of the process's descriptors that sockets may be, and connections. The dataplane leaves
/// a quarter of them to others (`dataplane/src/fd_budget.rs`).
const PART_OF_DESCRIPTORS: usize = 16;
/// Connections that are open at most.
const MAX_CONNECTIONS: usize = 256;

/// How often an id is drawn that is not in use on a socket.
const MAX_DRAWS: usize = 16;

/// The addresses that questions are sent from; `None` lets the kernel choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources {
    /// Towards IPv4 servers.
    pub ipv4: Option<Ipv4Addr>,
    /// Towards IPv6 servers.
    pub ipv6: Option<Ipv6Addr>,
}

impl Sources {
    fn towards(&self, server: SocketAddr) -> SocketAddr {
        // A server on the host's loopback cannot be reached from any other address.
        let chosen = !server.ip().is_loopback();
        let ip = match server {
            SocketAddr::V4(_) => IpAddr::V4(
                self.ipv4
                    .filter(|_| chosen)
                    .unwrap_or(Ipv4Addr::UNSPECIFIED),
            ),
            SocketAddr::V6(_) => IpAddr::V6(
                self.ipv6
                    .filter(|_| chosen)
                    .unwrap_or(Ipv6Addr::UNSPECIFIED),
            ),
        };
        SocketAddr::new(ip, 0)
    }
}

/// A query on its way, with what its answers are compared to.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) message: Vec<u8>,
    /// Where the question ends in the message.
    pub(super) question_end: usize,
}

impl Asked {
    fn question(&self) -> &[u8] {
        let question = self.message.get(HEADER_LEN..self.question_end);
        question.unwrap_or_default()
    }
}

/// A server's answer, under the id of the client's query, and what it is worth.
pub(super) type Answer = (Verdict, Vec<u8>);

/// The sockets towards all servers.
#[derive(Debug)]
pub(super) struct Upstream {
    sources: Sources,
    max_sockets: usize,
    /// The open sockets by server; those that nothing waits at are gone.
    open: Mutex<HashMap<SocketAddr, Vec<Weak<Channel>>>>,
    sockets: Arc<Semaphore>,
    connections: Semaphore,
    /// What datagrams are read into.
    buffer: Mutex<Box<[u8]>>,
}

/// A connected UDP socket, and the questions that wait for their answers at it. It is closed with
/// the last of them.
#[derive(Debug)]
struct Channel {
    socket: Arc<UdpSocket>,
    waiting: Mutex<Vec<Waiting>>,
    reader: OnceLock<AbortHandle>,
    /// Its place among the open sockets; `None` for one beyond the bound.
    _place: Option<tokio::sync::OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Waiting {
    id: u16,
    asked: Arc<Asked>,
    answer: oneshot::Sender<io::Result<Answer>>,
}

/// A question that waits; dropped, it waits no more.
struct Place {
    channel: Arc<Channel>,
    id: u16,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.channel.lock().retain(|waiting| waiting.id != self.id);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.get() {
            reader.abort();
        }
    }
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a question among those that wait, under an id that none of them has.
    fn enter(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
    ) -> io::Result<(Place, oneshot::Receiver<io::Result<Answer>>)> {
        let mut waiting = self.lock();
        for _ in 0..MAX_DRAWS {
            let id = random_id()?;
            if waiting.iter().any(|other| other.id == id) {
                continue;
            }
            let (answer, answered) = oneshot::channel();
            waiting.push(Waiting {
                id,
                asked: Arc::clone(asked),
                answer,
            });
            let channel = Arc::clone(self);
            return Ok((Place { channel, id }, answered));
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Gives a message to the question that it answers.
    fn deliver(&self, message: &[u8]) {
        let mut waiting = self.lock();
        let id = message::id_of(message);
        let Some(at) = waiting.iter().position(|one| one.id == id) else {
            return;
        };
        let verdict = message::judge(message, id, waiting[at].asked.question());
        if verdict == Verdict::Stray {
            return;
        }
        let one = waiting.swap_remove(at);
        let mut answer = message.to_vec();
        message::set_id(&mut answer, message::id_of(&one.asked.message));
        // A question that is not waited for any more needs no answer.
        let _ = one.answer.send(Ok((verdict, answer)));
    }

    /// Tells the question that went out under `id`, or all of them, that the server cannot be
    /// reached.
    fn fail(&self, id: Option<u16>, error: &io::Error) {
        let is_meant = |one: &mut Waiting| id.is_none_or(|id| id == one.id);
        for one in self.lock().extract_if(.., is_meant) {
            let copy = match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => error.kind().into(),
            };
            let _ = one.answer.send(Err(copy));
        }
    }
}

impl Upstream {
    /// Asks from the addresses in `sources`.
    pub(super) fn new(sources: Sources) -> Upstream {
        // The soft limit is raised to this one by the dataplane.
        let descriptors = getrlimit(Resource::Nofile).maximum;
        let descriptors =
            descriptors.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let part = descriptors / PART_OF_DESCRIPTORS;
        Upstream::with(
            sources,
            part.clamp(LEAST_SOCKETS, MAX_SOCKETS),
            part.clamp(LEAST_SOCKETS, MAX_CONNECTIONS),
        )
    }

    fn with(sources: Sources, sockets: usize, connections: usize) -> Upstream {
        Upstream {
            sources,
            max_sockets: sockets,
            open: Mutex::default(),
            sockets: Arc::new(Semaphore::new(sockets)),
            connections: Semaphore::new(connections),
            buffer: Mutex::new(vec![0; MAX_MESSAGE].into()),
        }
    }

    /// Asks `server` and waits for its answer, for ever if need be.
    ///
    /// # Errors
    ///
    /// What the socket says (`ConnectionRefused`, `NetworkUnreachable` …); `UnexpectedEof` if the
    /// server closes the connection instead of answering.
    pub(super) async fn ask(
        self: &Arc<Self>,
        server: SocketAddr,
        transport: Transport,
        asked: Arc<Asked>,
    ) -> io::Result<Answer> {
        match transport {
            Transport::Udp => self.over_udp(server, asked).await,
            Transport::Tcp => self.over_tcp(server, &asked).await,
        }
    }

    async fn over_udp(
        self: &Arc<Self>,
        server: SocketAddr,
        asked: Arc<Asked>,
    ) -> io::Result<Answer> {
        let channel = self.channel(server).await?;
        let (place, answered) = channel.enter(&asked)?;
        drop(channel);
        let mut query = asked.message.clone();
        message::set_id(&mut query, place.id);
        let socket = &place.channel.socket;
        if socket.send(&query).await.is_err() {
            // The error may be about another question, whose reader is told of it as well.
            socket.send(&query).await?;
        }
        drop(query);
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// A socket of its own, or one that others wait at.
    async fn channel(self: &Arc<Self>, server: SocketAddr) -> io::Result<Arc<Channel>> {
        let place = Arc::clone(&self.sockets).try_acquire_owned().ok();
        if place.is_none()
            && let Some(shared) = self.shared(server)?
        {
            return Ok(shared);
        }
        match self.open(server, place).await {
            // The process has no more descriptors.
            Err(error) => self.shared(server)?.ok_or(error),
            opened => opened,
        }
    }

    async fn open(
        self: &Arc<Self>,
        server: SocketAddr,
        place: Option<tokio::sync::OwnedSemaphorePermit>,
    ) -> io::Result<Arc<Channel>> {
        let socket = UdpSocket::bind(self.sources.towards(server)).await?;
        // Without it only some of the ICMP errors are told (ip(7)).
        enable_recverr(&socket, server.is_ipv6())?;
        socket.connect(server).await?;
        let socket = Arc::new(socket);
        let channel = Arc::new(Channel {
            socket: Arc::clone(&socket),
            waiting: Mutex::default(),
            reader: OnceLock::new(),
            _place: place,
        });
        let reader = read(Arc::clone(self), socket, Arc::downgrade(&channel));
        let _ = channel.reader.set(tokio::spawn(reader).abort_handle());
        let mut open = self.lock();
        let channels = open.entry(server).or_default();
        if channels.len() >= self.max_sockets {
            channels.retain(|channel| channel.strong_count() > 0);
        }
        channels.push(Arc::downgrade(&channel));
        Ok(channel)
    }

    /// One of the open sockets towards `server`, at random.
    fn shared(&self, server: SocketAddr) -> io::Result<Option<Arc<Channel>>> {
        let draw = usize::from(random_id()?);
        let mut open = self.lock();
        // Those of servers that are asked no more go, too.
        open.retain(|_, channels| {
            channels.retain(|channel| channel.strong_count() > 0);
            !channels.is_empty()
        });
        let channels = open.get(&server);
        Ok(channels.and_then(|channels| channels[draw % channels.len()].upgrade()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<Weak<Channel>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the datagrams that are there.
    fn drain(&self, channel: &Channel) -> io::Result<()> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match channel.socket.try_recv(&mut buffer) {
                Ok(length) => channel.deliver(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn over_tcp(&self, server: SocketAddr, asked: &Asked) -> io::Result<Answer> {
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let _place = self.connections.acquire().await.map_err(closed)?;
        let socket = match server {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        let source = self.sources.towards(server);
        if !source.ip().is_unspecified() {
            socket.bind(source)?;
        }
        let mut stream = socket.connect(server).await?;
        let id = random_id()?;
        let length = u16::try_from(asked.message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // One segment, because some servers read the length alone and give up (RFC 7766 section 8).
        let mut query = [&length.to_be_bytes(), &asked.message[..]].concat();
        message::set_id(&mut query[2..], id);
        stream.write_all(&query).await?;
        loop {
            let mut answer = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut answer).await?;
            match message::judge(&answer, id, asked.question()) {
                Verdict::Stray => {}
                verdict => {
                    message::set_id(&mut answer, message::id_of(&asked.message));
                    return Ok((verdict, answer));
                }
            }
        }
    }
}

/// Reads what comes to a socket. The end of the channel, when nothing waits there any more, ends it.
async fn read(upstream: Arc<Upstream>, socket: Arc<UdpSocket>, channel: Weak<Channel>) {
    // An ICMP error raises EPOLLERR alone, which is not "readable".
    let interest = Interest::READABLE | Interest::ERROR;
    while socket.ready(interest).await.is_ok() {
        let Some(channel) = channel.upgrade() else {
            return;
        };
        let failed = socket.try_io(Interest::ERROR, || take_errors(&socket, &channel));
        let failed = failed.and(upstream.drain(&channel));
        if let Err(error) = failed
            && error.kind() != io::ErrorKind::WouldBlock
        {
            channel.fail(None, &error);
        }
    }
}

/// Takes all errors that are there. Each ends the question that it is about.
fn take_errors(socket: &UdpSocket, channel: &Channel) -> io::Result<()> {
    let mut quote = [0; HEADER_LEN];
    while let Some(report) = recv_error(socket, &mut quote)? {
        // A path's MTU is no error of the server's.
        if report.errno == Errno::MSGSIZE.raw_os_error() {
            continue;
        }
        let id = (report.quote_len >= 2).then(|| message::id_of(&quote));
        channel.fail(id, &io::Error::from_raw_os_error(report.errno));
    }
    // The queue has told what there was to tell.
    let _ = socket.take_error()?;
    Err(io::ErrorKind::WouldBlock.into())
}

fn random_id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    let length = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    if length != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::dns::message::tests::{query, rcode};

    fn asked(id: u16) -> Arc<Asked> {
        let message = query(id, "example.org", 1);
        Arc::new(Asked {
            question_end: message.len(),
            message,
        })
    }

    #[tokio::test]
    async fn questions_beyond_the_number_of_sockets_share_them() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = server.local_addr().unwrap();
        let upstream = Arc::new(Upstream::with(Sources::default(), 4, 1));
        let mut asking = tokio::task::JoinSet::new();
        for n in 0..500 {
            let upstream = Arc::clone(&upstream);
            asking.spawn(async move {
                let (verdict, answer) = upstream
                    .ask(address, Transport::Udp, asked(n))
                    .await
                    .unwrap();
                assert_eq!((verdict, message::id_of(&answer)), (Verdict::Final, n));
                assert_eq!(rcode(&answer), 0);
            });
        }
        let (mut all, mut ports, mut buf) = (Vec::new(), HashSet::new(), [0; 512]);
        while all.len() < 500 {
            let (length, from) = server.recv_from(&mut buf).await.unwrap();
            ports.insert(from.port());
            all.push((buf[..length].to_vec(), from));
        }
        assert!(ports.len() <= 4, "{} sockets", ports.len());
        for (mut message, from) in all.into_iter().rev() {
            message[2] |= 0x80;
            server.send_to(&message, from).await.unwrap();
        }
        while let Some(done) = asking.join_next().await {
            done.unwrap();
        }
        // All sockets are closed, and their places given back.
        tokio::task::yield_now().await;
        assert_eq!(upstream.sockets.available_permits(), 4);
        assert!(upstream.shared(address).unwrap().is_none());
    }

    /// Only the address and port that were asked may answer.
    #[tokio::test]
    async fn an_answer_from_elsewhere_is_ignored() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = server.local_addr().unwrap();
        let forger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let upstream = Arc::new(Upstream::with(Sources::default(), 4, 1));
        let answer = async {
            let mut buf = [0; 512];
            let (length, from) = server.recv_from(&mut buf).await.unwrap();
            buf[2] |= 0x80;
            let mut forged = buf;
            forged[3] |= 3;
            forger.send_to(&forged[..length], from).await.unwrap();
            server.send_to(&buf[..length], from).await.unwrap();
        };
        let ask = upstream.ask(address, Transport::Udp, asked(7));
        let (answer, ()) = tokio::join!(ask, answer);
        assert_eq!(rcode(&answer.unwrap().1), 0);
    }

    #[tokio::test]
    async fn an_icmp_error_ends_all_questions_at_a_socket() {
        let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let upstream = Arc::new(Upstream::with(Sources::default(), 1, 1));
        let ask = |n| upstream.ask(address, Transport::Udp, asked(n));
        let (one, other) = tokio::join!(ask(1), ask(2));
        for result in [one, other] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}
