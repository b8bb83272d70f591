//! One question to one server.
//!
//! Each question goes out from a socket of its own, on a port the kernel draws at random, under an
//! id drawn at random (RFC 5452 section 9). The socket is connected, so that only the server's
//! address and port can answer, and an ICMP error of the server's host ends the wait.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rustix::rand::GetRandomFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, UdpSocket};

use super::Transport;
use super::message::{self, Question, Verdict};

/// Messages that answer another question, after which a server is given up: by then they are
/// guesses of an attacker.
const MAX_STRAYS: u32 = 64;

/// The largest DNS message: its length is 16 bits over TCP, and a UDP datagram is shorter.
const MAX_MESSAGE: usize = 65535;

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
    pub(super) question: Question,
}

/// Asks `server` and waits for its answer, for ever if need be. The answer comes back under the id
/// of the client's query.
///
/// # Errors
///
/// What the socket says (`ConnectionRefused`, `NetworkUnreachable` …); `InvalidData` if the server
/// sends what is no answer.
pub(super) async fn ask(
    server: SocketAddr,
    transport: Transport,
    sources: Sources,
    asked: Arc<Asked>,
) -> io::Result<(Verdict, Vec<u8>)> {
    let id = random_id()?;
    let mut query = asked.message.clone();
    message::set_id(&mut query, id);
    let source = sources.towards(server);
    let (verdict, mut answer) = match transport {
        Transport::Udp => over_udp(server, source, &query, id, &asked.question).await?,
        Transport::Tcp => over_tcp(server, source, &query, id, &asked.question).await?,
    };
    message::set_id(&mut answer, message::id_of(&asked.message));
    Ok((verdict, answer))
}

fn random_id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    let length = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    if length != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(u16::from_ne_bytes(bytes))
}

async fn over_udp(
    server: SocketAddr,
    source: SocketAddr,
    query: &[u8],
    id: u16,
    question: &Question,
) -> io::Result<(Verdict, Vec<u8>)> {
    let socket = UdpSocket::bind(source).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    for _ in 0..MAX_STRAYS {
        // An ICMP error raises EPOLLERR alone, which is not "readable".
        socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        // Made only once there is something to read: many questions wait, few answers arrive at a
        // time.
        let mut answer = vec![0; MAX_MESSAGE];
        match socket.try_recv(&mut answer) {
            Ok(length) => answer.truncate(length),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        }
        let verdict = message::judge(&answer, id, question);
        if verdict != Verdict::Stray {
            answer.shrink_to_fit();
            return Ok((verdict, answer));
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn over_tcp(
    server: SocketAddr,
    source: SocketAddr,
    query: &[u8],
    id: u16,
    question: &Question,
) -> io::Result<(Verdict, Vec<u8>)> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if !source.ip().is_unspecified() {
        socket.bind(source)?;
    }
    let mut stream = socket.connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // One segment, because some servers read the length alone and give up (RFC 7766 section 8).
    stream
        .write_all(&[&length.to_be_bytes(), query].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    match message::judge(&answer, id, question) {
        Verdict::Stray => Err(io::ErrorKind::InvalidData.into()),
        verdict => Ok((verdict, answer)),
    }
}
