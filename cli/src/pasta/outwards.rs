//! Ports of the namespace's loopback that lead to the host's (`-T`, `-U`).
//!
//! # Theory of operation
//!
//! A socket helper in the namespace makes the sockets; this process binds them there and serves them on
//! its event loop. A client of TCP is joined with a connection to the same port of the host's
//! loopback, of its own family first. A client of UDP has a socket of its own on the host, which is
//! closed when nothing was said for [`UDP_TIMEOUT`].
//!
//! # Limits
//!
//! This process has no capability in the namespace: ports below its
//! `net.ipv4.ip_unprivileged_port_start` cannot be opened there.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use cnet_tap::SocketHelper;
use cnet_tap::async_fd::AsyncOwnedFd;
use cnet_tap::helper::socket_helper::Answer;
use cnet_tap::socket::Diagnostics;
use cnet_wire::Protocol;
use rustix::net::sockopt;
use tokio::io::{Interest, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::ports::PortRule;

/// How long the helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(2);
/// Clients of all ports at a time.
const CLIENTS: usize = 1024;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Silence after which a client of UDP is forgotten.
const UDP_TIMEOUT: Duration = Duration::from_secs(180);
/// Wait before accepting again at a limit of descriptors.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(250);
/// The longest datagram (RFC 768), less no header.
const MAX_DATAGRAM: usize = 65535;

/// One socket: where it is bound, and the host's port that it leads to.
type Key = (Protocol, SocketAddr, u16);

/// The open ports.
pub(super) struct Outwards {
    helper: Option<(SocketHelper, AsyncOwnedFd)>,
    open: HashMap<Key, JoinHandle<()>>,
    clients: Arc<Semaphore>,
}

impl Drop for Outwards {
    fn drop(&mut self) {
        self.open.values().for_each(JoinHandle::abort);
    }
}

impl Outwards {
    /// None yet. `helper` makes their sockets; without it there are none. Gives what tells of the
    /// namespace's sockets as well.
    ///
    /// # Errors
    ///
    /// When the helper cannot be heard.
    pub(super) async fn new(
        helper: Option<SocketHelper>,
    ) -> anyhow::Result<(Outwards, Option<Diagnostics>)> {
        let mut outwards = Outwards {
            helper: None,
            open: HashMap::new(),
            clients: Arc::new(Semaphore::new(CLIENTS)),
        };
        let Some(helper) = helper else {
            return Ok((outwards, None));
        };
        let fd = helper.as_fd().try_clone_to_owned();
        let fd = fd.and_then(|fd| AsyncOwnedFd::new(fd, Interest::READABLE));
        let fd = fd.context("cannot hear the socket helper")?;
        outwards.helper = Some((helper, fd));
        // Its first answer, which it gives unasked; without it nothing is found.
        let diagnostics = match timeout(HELPER_TIMEOUT, outwards.hear()).await {
            Ok(Ok(Answer::Diagnostics(diagnostics))) => Some(diagnostics),
            _ => None,
        };
        Ok((outwards, diagnostics))
    }

    /// The next answer of the helper.
    async fn hear(&self) -> io::Result<Answer> {
        let (helper, fd) = self.helper.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        loop {
            let mut ready = fd.ready().await?;
            match helper.take()? {
                Some(answer) => return Ok(answer),
                None => ready.clear_ready(),
            }
        }
    }

    /// A socket of the namespace.
    async fn socket(&self, protocol: Protocol, v6: bool) -> io::Result<OwnedFd> {
        let (helper, _) = self.helper.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        match protocol {
            Protocol::Tcp => helper.ask(v6, 1)?,
            Protocol::Udp => helper.ask_datagram(v6, 1)?,
        }
        let answered = timeout(HELPER_TIMEOUT, self.hear()).await;
        match answered.map_err(|_| io::ErrorKind::TimedOut)?? {
            Answer::Sockets(mut supply) => {
                let socket = supply.sockets.pop();
                socket.ok_or_else(|| io::Error::other("no socket is left in the namespace"))
            }
            Answer::Diagnostics(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The ports that are open in the namespace.
    pub(super) fn ports(&self) -> HashSet<(Protocol, u16)> {
        let open = self.open.keys();
        open.map(|(protocol, at, _)| (*protocol, at.port()))
            .collect()
    }

    /// Has these ports be open, each rule's with those that they lead to; why each rule is not in
    /// force, and whether some port is to be tried again. What stays is not opened again.
    pub(super) async fn set(
        &mut self,
        wanted: &[(&PortRule, Vec<(u16, u16)>)],
    ) -> (Vec<String>, bool) {
        let keys = |rule: &PortRule, pairs: &[(u16, u16)]| -> Vec<Key> {
            let addresses = addresses(rule);
            let each = pairs.iter().flat_map(|&(port, to)| {
                let at = addresses.iter().map(move |at| SocketAddr::new(*at, port));
                at.map(move |at| (rule.protocol, at, to))
            });
            each.collect()
        };
        let all = wanted.iter().flat_map(|(rule, pairs)| keys(rule, pairs));
        let all: HashSet<Key> = all.collect();
        self.open.retain(|key, task| {
            let stays = all.contains(key) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        let (mut texts, mut failed) = (Vec::new(), false);
        for (rule, pairs) in wanted {
            let mut text = String::new();
            for pair in pairs {
                if let Err(error) = self.open_port(&keys(rule, &[*pair])).await {
                    failed |= rule.weak;
                    if !rule.weak {
                        text = format!("port {} of the namespace's loopback: {error}", pair.0);
                        break;
                    }
                    tracing::debug!(%error, port = pair.0, "a port is left out");
                }
            }
            if !text.is_empty() {
                for key in keys(rule, pairs) {
                    self.open.remove(&key).inspect(JoinHandle::abort);
                }
            }
            texts.push(text);
        }
        (texts, failed)
    }

    /// Opens a port at all of its addresses, of which one is enough: a family may be off.
    async fn open_port(&mut self, keys: &[Key]) -> io::Result<()> {
        let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
        for key in keys {
            if self.open.contains_key(key) {
                result = Ok(());
                continue;
            }
            match self.open_at(key).await {
                Ok(task) => {
                    self.open.insert(*key, task);
                    result = Ok(());
                }
                Err(error) if result.is_err() => result = Err(error),
                Err(_) => {}
            }
        }
        result
    }

    async fn open_at(&self, &(protocol, at, to): &Key) -> io::Result<JoinHandle<()>> {
        let socket = self.socket(protocol, at.is_ipv6()).await?;
        if at.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if protocol == Protocol::Tcp {
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        rustix::net::bind(&socket, &at)?;
        let clients = Arc::clone(&self.clients);
        Ok(match protocol {
            Protocol::Tcp => {
                rustix::net::listen(&socket, BACKLOG)?;
                let listener = TcpListener::from_std(socket.into())?;
                tokio::spawn(serve_tcp(listener, to, clients))
            }
            Protocol::Udp => {
                let socket = UdpSocket::from_std(socket.into())?;
                tokio::spawn(serve_udp(Arc::new(socket), to, clients))
            }
        })
    }
}

/// Where the ports of a rule are bound: on the loopback interface alone.
fn addresses(rule: &PortRule) -> Vec<IpAddr> {
    match rule.address.filter(|at| !at.is_unspecified()) {
        Some(address) => vec![address],
        None => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    }
}

/// The host's loopback addresses, that of the client's family first.
fn host_ends(client: IpAddr, port: u16) -> [SocketAddr; 2] {
    let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let ends = match client {
        IpAddr::V4(_) => [v4, v6],
        IpAddr::V6(_) => [v6, v4],
    };
    ends.map(|at| SocketAddr::new(at, port))
}

async fn serve_tcp(listener: TcpListener, to: u16, clients: Arc<Semaphore>) {
    loop {
        let Ok(room) = Arc::clone(&clients).acquire_owned().await else {
            return;
        };
        let Ok((mut client, from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_INTERVAL).await;
            continue;
        };
        tokio::spawn(async move {
            let _room = room;
            let _ = client.set_nodelay(true);
            let mut last = None;
            for end in host_ends(from.ip(), to) {
                match TcpStream::connect(end).await {
                    Ok(mut host) => {
                        let _ = host.set_nodelay(true);
                        // An end of either is the other's, which has seen it by then.
                        let _ = copy_bidirectional(&mut client, &mut host).await;
                        return;
                    }
                    Err(error) => last = Some(error),
                }
            }
            tracing::debug!(?last, port = to, "the host's loopback refuses a client");
            let _ = cnet_tap::socket::reset_on_close(&client);
        });
    }
}

/// The clients of one port, each with its socket on the host.
type UdpClients = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

async fn serve_udp(inside: Arc<UdpSocket>, to: u16, room: Arc<Semaphore>) {
    let clients = UdpClients::default();
    let mut datagram = vec![0; MAX_DATAGRAM];
    loop {
        // An error is one that an earlier answer has caused.
        let Ok((length, from)) = inside.recv_from(&mut datagram).await else {
            continue;
        };
        let known = lock(&clients).get(&from).cloned();
        let host = match known {
            Some(host) => host,
            None => {
                let Ok(room) = Arc::clone(&room).try_acquire_owned() else {
                    continue;
                };
                let Ok(host) = udp_to(from, to).await else {
                    continue;
                };
                let host = Arc::new(host);
                lock(&clients).insert(from, Arc::clone(&host));
                let (inside, clients) = (Arc::clone(&inside), Arc::clone(&clients));
                let answers = Arc::clone(&host);
                tokio::spawn(async move {
                    let _room = room;
                    bring_answers(&answers, &inside, from).await;
                    lock(&clients).remove(&from);
                });
                host
            }
        };
        let _ = host.send(&datagram[..length]).await;
    }
}

fn lock(
    clients: &Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Arc<UdpSocket>>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket that speaks with a port of the host's loopback, of the client's family.
async fn udp_to(client: SocketAddr, port: u16) -> io::Result<UdpSocket> {
    let [end, _] = host_ends(client.ip(), port);
    let socket = UdpSocket::bind(SocketAddr::new(end.ip(), 0)).await?;
    socket.connect(end).await?;
    Ok(socket)
}

/// Brings a client what the host answers, until nothing was said for a while.
async fn bring_answers(host: &UdpSocket, inside: &UdpSocket, client: SocketAddr) {
    let mut datagram = vec![0; MAX_DATAGRAM];
    while let Ok(received) = timeout(UDP_TIMEOUT, host.recv(&mut datagram)).await {
        match received {
            Ok(length) => drop(inside.send_to(&datagram[..length], client).await),
            // Nothing is there, which the client is told by silence.
            Err(_) => return,
        }
    }
}
