//! Asking the kernel which programs of a network namespace have which ports (`NETLINK_SOCK_DIAG`,
//! sock_diag(7)), and being told when a listener ends.
//!
//! # Theory of operation
//!
//! Such a socket speaks of the network namespace that it was made in, whichever process holds it. So
//! a helper inside makes it and sends it out. It needs no capability.
//!
//! Questions are answered within the call: the kernel writes the first part of an answer while it
//! takes the question, and the next part when one was read. So nothing here waits.
//!
//! The kernel tells of the end of TCP sockets (`SKNLGRP_INET_TCP_DESTROY` and its like
//! for IPv6), of every connection's too. A filter on the second socket lets those pass alone that had no far end, which listeners
//! are: connections wake no reader. It tells nothing of new listeners.
//!
//! A process with CAP_NET_ADMIN there may end connections (`SOCK_DESTROY`): the program that has one is told
//! ECONNABORTED at once.
//!
//! # Limits
//!
//! A listener that is shut down and not closed ends unheard.
//!
//! Source: `include/uapi/linux/{sock_diag,inet_diag}.h`, `net/ipv4/{inet,udp}_diag.c`,
//! `net/core/sock_diag.c`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::options::set_int;

const SOL_NETLINK: libc::c_int = 270;
const NETLINK_ADD_MEMBERSHIP: libc::c_int = 1;
const SKNLGRP_INET_TCP_DESTROY: libc::c_int = 1;
const SKNLGRP_INET6_TCP_DESTROY: libc::c_int = 3;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// Bytes of `struct inet_diag_msg`; attributes follow.
const MESSAGE: usize = 72;
/// `INET_DIAG_SKV6ONLY`.
const ATTRIBUTE_V6ONLY: u16 = 11;

/// Bits of states (`include/net/tcp_states.h`). Unconnected UDP sockets are in the state of closed
/// ones.
const LISTENING: u32 = 1 << 10;
const CLOSED: u32 = 1 << 7;
/// Bound, neither listening nor connected; told since Linux 6.8.
const BOUND_INACTIVE: u32 = 1 << 13;

/// Established, and closed by one side or both: what has had a far end's data, and waits for more of it.
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// `struct inet_diag_sockid`, in a message and in a request.
const ID_OF_MESSAGE: std::ops::Range<usize> = 4..52;
const ID_OF_REQUEST: std::ops::Range<usize> = HEADER + 8..HEADER + 56;

/// One part of an answer, which the kernel keeps below this.
const ANSWER_SPACE: usize = 32 * 1024;

/// A socket that a program has bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BoundSocket {
    /// Where it is bound.
    pub at: SocketAddr,
    /// Whether it leaves IPv4 to others, if it is bound to the unspecified IPv6 address.
    pub v6_only: bool,
    /// The user that has made it.
    pub uid: u32,
    /// The inode that its descriptors show in `/proc/PID/fd`.
    pub inode: u32,
}

impl BoundSocket {
    /// Whether what is sent to `address` comes to it, as far as its address says.
    pub fn takes(&self, address: IpAddr) -> bool {
        let bound = self.at.ip();
        match (bound.to_canonical(), address) {
            (IpAddr::V6(v6), IpAddr::V4(_)) => v6.is_unspecified() && !self.v6_only,
            (bound, address) if bound.is_ipv4() == address.is_ipv4() => {
                bound.is_unspecified() || bound == address
            }
            _ => false,
        }
    }
}

/// What tells of the sockets of one network namespace.
#[derive(Debug)]
pub struct Diagnostics {
    questions: OwnedFd,
    ends: OwnedFd,
}

impl Diagnostics {
    /// For the network namespace that this thread is in.
    ///
    /// # Errors
    ///
    /// As socket(2) and setsockopt(2): the kernel may be without `CONFIG_INET_DIAG`.
    pub fn open() -> io::Result<Diagnostics> {
        let ends = open()?;
        // A socket that is not bound is in no group.
        rustix::net::bind(&ends, &netlink::SocketAddrNetlink::new(0, 0))?;
        only_those_without_a_far_end(ends.as_fd())?;
        for group in [SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY] {
            set_int(ends.as_fd(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)?;
        }
        let questions = open()?;
        Ok(Diagnostics { questions, ends })
    }

    /// Puts together what [`Diagnostics::into_fds`] took apart; `None` for another number of them.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Option<Diagnostics> {
        let [questions, ends] = <[OwnedFd; 2]>::try_from(fds).ok()?;
        Some(Diagnostics { questions, ends })
    }

    /// Its descriptors, for another process.
    pub fn into_fds(self) -> Vec<OwnedFd> {
        vec![self.questions, self.ends]
    }

    /// The numbers of its descriptors.
    pub fn raw_fds(&self) -> [RawFd; 2] {
        [self.questions.as_raw_fd(), self.ends.as_raw_fd()]
    }

    /// All TCP sockets that listen.
    ///
    /// # Errors
    ///
    /// As sendmsg(2) and recvmsg(2), and what the kernel answers.
    pub fn listeners(&self) -> io::Result<Vec<BoundSocket>> {
        self.bound(libc::IPPROTO_TCP as u8, LISTENING)
    }

    /// The TCP sockets that listen or are bound and do nothing.
    ///
    /// # Errors
    ///
    /// As [`Diagnostics::listeners`].
    pub fn tcp_holders(&self) -> io::Result<Vec<BoundSocket>> {
        self.bound(libc::IPPROTO_TCP as u8, LISTENING | BOUND_INACTIVE)
    }

    /// The UDP sockets that anyone may send to.
    ///
    /// # Errors
    ///
    /// As [`Diagnostics::listeners`].
    pub fn udp_holders(&self) -> io::Result<Vec<BoundSocket>> {
        self.bound(libc::IPPROTO_UDP as u8, CLOSED)
    }

    fn bound(&self, protocol: u8, states: u32) -> io::Result<Vec<BoundSocket>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let asked = self.ask(family as u8, protocol, states, None, |message| {
                found.extend(read_socket(message));
            });
            match asked {
                // A kernel without IPv6 knows no such sockets.
                Err(error) if family == libc::AF_INET6 && is_absent(&error) => {}
                other => other?,
            }
        }
        Ok(found)
    }

    /// Whether a datagram to `at`, from a peer of no matter which address, would come to a program.
    ///
    /// # Errors
    ///
    /// As [`Diagnostics::listeners`].
    pub fn udp_is_bound(&self, at: SocketAddr) -> io::Result<bool> {
        let family = if at.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let mut is_bound = false;
        let protocol = libc::IPPROTO_UDP as u8;
        let asked = self.ask(family as u8, protocol, u32::MAX, Some(at), |_| {
            is_bound = true
        });
        match asked {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(false),
            other => other.map(|()| is_bound),
        }
    }

    /// Ends the TCP connections that `is_cut` says, by their local and remote ends, and gives how many.
    /// Their programs are told at once.
    ///
    /// # Errors
    ///
    /// As [`Diagnostics::listeners`]; `EPERM` without CAP_NET_ADMIN in the namespace, `EOPNOTSUPP` without
    /// `CONFIG_INET_DIAG_DESTROY`.
    pub fn end_connections(
        &self,
        is_cut: impl Fn(SocketAddr, SocketAddr) -> bool,
    ) -> io::Result<usize> {
        let protocol = libc::IPPROTO_TCP as u8;
        let mut cut = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let asked = self.ask(family, protocol, CONNECTED, None, |message| {
                let ends = (end_of(message, 4, 8), end_of(message, 6, 24));
                if let (Some(local), Some(remote)) = ends
                    && is_cut(local, remote)
                {
                    cut.extend(message.get(ID_OF_MESSAGE).map(|id| (family, id.to_vec())));
                }
            });
            match asked {
                Err(error) if family == libc::AF_INET6 as u8 && is_absent(&error) => {}
                other => other?,
            }
        }
        let mut ended = 0;
        for (family, id) in cut {
            let mut request = question(family, protocol, u32::MAX, None);
            request[4..6].copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
            request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
            request[ID_OF_REQUEST].copy_from_slice(&id);
            match self.exchange(&request, |_| true) {
                Ok(()) => ended += 1,
                // It has ended meanwhile.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }

    /// Takes what the kernel has told of ends; whether a listener may have ended.
    pub fn take_ends(&self) -> bool {
        let mut space = [0; 256];
        let mut told = false;
        loop {
            match rustix::net::recv(&self.ends, &mut space, RecvFlags::DONTWAIT) {
                Ok(_) => told = true,
                // More than the socket holds: some were lost.
                Err(Errno::NOBUFS) => told = true,
                Err(Errno::INTR) => {}
                Err(_) => return told,
            }
        }
    }

    /// Asks for all sockets in `states`, or for the one that datagrams to an address come to.
    fn ask(
        &self,
        family: u8,
        protocol: u8,
        states: u32,
        at: Option<SocketAddr>,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let question = question(family, protocol, states, at);
        self.exchange(&question, |message| {
            each(message);
            at.is_none()
        })
    }

    /// Sends a request, and takes its answers, until `each` wants no more.
    fn exchange(&self, request: &[u8], mut each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        // What an interrupted question has left is not this one's answer.
        let mut space = vec![0; ANSWER_SPACE];
        while rustix::net::recv(&self.questions, &mut space, RecvFlags::DONTWAIT).is_ok() {}
        rustix::net::send(&self.questions, request, SendFlags::DONTWAIT)?;
        loop {
            let received = rustix::net::recv(&self.questions, &mut space, RecvFlags::DONTWAIT);
            let (_, length) = match received {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let mut rest = space.get(..length).unwrap_or_default();
            while let Some((kind, body, next)) = next_message(rest) {
                rest = next;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return error_of(body),
                    SOCK_DIAG_BY_FAMILY if !each(body) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

impl AsFd for Diagnostics {
    /// The descriptor that polls readable when a listener may have ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = AddressFamily::NETLINK;
    let protocol = Some(netlink::SOCK_DIAG);
    Ok(rustix::net::socket_with(
        family,
        SocketType::DGRAM,
        flags,
        protocol,
    )?)
}

fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::NOENT, Errno::AFNOSUPPORT, Errno::OPNOTSUPP];
    Errno::from_io_error(error).is_some_and(|errno| absent.contains(&errno))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn question(
    family: u8,
    protocol: u8,
    states: u32,
    at: Option<SocketAddr>,
) -> [u8; HEADER + REQUEST] {
    let mut bytes = [0; HEADER + REQUEST];
    let flags = match at {
        Some(_) => NLM_F_REQUEST,
        None => NLM_F_REQUEST | NLM_F_DUMP,
    };
    bytes[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    let request = &mut bytes[HEADER..];
    request[0] = family;
    request[1] = protocol;
    request[4..8].copy_from_slice(&states.to_ne_bytes());
    // struct inet_diag_sockid: two ports, two addresses of 16 bytes, the interface, a cookie.
    let id = &mut request[8..];
    if let Some(at) = at {
        // For UDP the kernel takes source and destination as the packet's ("swapped for historical
        // reasons", udp_dump_one).
        id[2..4].copy_from_slice(&at.port().to_be_bytes());
        match at.ip() {
            IpAddr::V4(v4) => id[20..24].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => id[20..36].copy_from_slice(&v6.octets()),
        }
    }
    // INET_DIAG_NOCOOKIE
    id[40..48].fill(0xff);
    bytes
}

/// The first message of `bytes`: its type, its body, and what follows.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    // NLMSG_ALIGN
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}

/// `struct nlmsgerr`: 0 is an acknowledgement.
fn error_of(body: &[u8]) -> io::Result<()> {
    let errno = body.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

/// An end of a socket, whose port and address are at these places of a `struct inet_diag_msg`.
fn end_of(message: &[u8], port: usize, address: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*message.get(port..)?.first_chunk()?);
    let octets = message.get(address..)?;
    let ip: IpAddr = match libc::c_int::from(*message.first()?) {
        libc::AF_INET => Ipv4Addr::from(*octets.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*octets.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// `struct inet_diag_msg`.
fn read_socket(message: &[u8]) -> Option<BoundSocket> {
    let (fixed, mut attributes) = message.split_at_checked(MESSAGE)?;
    let at = end_of(fixed, 4, 8)?;
    let uid = u32::from_ne_bytes(*fixed.get(64..)?.first_chunk()?);
    let inode = u32::from_ne_bytes(*fixed.get(68..)?.first_chunk()?);
    let mut v6_only = false;
    while let Some(length) = attributes.first_chunk().map(|b| u16::from_ne_bytes(*b)) {
        let length = usize::from(length);
        let (Some(kind), Some(value)) = (attributes.get(2..4), attributes.get(4..length)) else {
            break;
        };
        if kind == ATTRIBUTE_V6ONLY.to_ne_bytes() {
            v6_only = value.first() == Some(&1);
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some(BoundSocket {
        at,
        v6_only,
        uid,
        inode,
    })
}

/// Has the socket receive messages about sockets without a far end alone.
fn only_those_without_a_far_end(fd: BorrowedFd<'_>) -> io::Result<()> {
    /// Where `idiag_dport` is in a message.
    const REMOTE_PORT: u32 = (HEADER + 6) as u32;
    let instruction = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // linux/filter.h: load a half word, return all if it is 0, else nothing.
    let mut program = [
        instruction(
            libc::BPF_LD | libc::BPF_H | libc::BPF_ABS,
            REMOTE_PORT,
            0,
            0,
        ),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 0, 1),
        instruction(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the descriptor is open; the kernel copies the program of `len` instructions during the
    // call, and both structures live through it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::time::{Duration, Instant};

    use super::*;

    fn found(sockets: &[BoundSocket], at: SocketAddr) -> Option<BoundSocket> {
        sockets.iter().find(|socket| socket.at == at).copied()
    }

    #[test]
    fn listeners_are_found_and_their_ends_told() {
        let diagnostics = Diagnostics::open().unwrap();
        for at in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let at = listener.local_addr().unwrap();
            let socket = found(&diagnostics.listeners().unwrap(), at).unwrap();
            assert!(socket.takes([127, 0, 0, 1].into()) && !socket.v6_only);
            assert!(found(&diagnostics.tcp_holders().unwrap(), at).is_some());
            diagnostics.take_ends();
            drop(listener);
            let started = Instant::now();
            while !diagnostics.take_ends() {
                assert!(started.elapsed() < Duration::from_secs(5), "not told");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(found(&diagnostics.listeners().unwrap(), at), None);
        }
    }

    #[test]
    fn it_is_told_where_datagrams_come_to_a_program() {
        let diagnostics = Diagnostics::open().unwrap();
        for (bound, v4, v6) in [
            ("0.0.0.0:0", true, false),
            ("127.0.0.1:0", true, false),
            ("[::]:0", true, true),
            ("[::1]:0", false, true),
        ] {
            let socket = UdpSocket::bind(bound).unwrap();
            let at = socket.local_addr().unwrap();
            let port = at.port();
            for (address, expected) in [("127.0.0.1", v4), ("::1", v6)] {
                let to = SocketAddr::new(address.parse().unwrap(), port);
                let is_bound = diagnostics.udp_is_bound(to).unwrap();
                assert_eq!(is_bound, expected, "{bound} for {address}");
            }
            assert!(found(&diagnostics.udp_holders().unwrap(), at).is_some());
        }
    }

    #[test]
    fn what_comes_to_a_socket_depends_on_its_address() {
        let takes = |at: &str, v6_only, address: &str| {
            let at = SocketAddr::new(at.parse().unwrap(), 80);
            let socket = BoundSocket {
                at,
                v6_only,
                uid: 0,
                inode: 0,
            };
            socket.takes(address.parse().unwrap())
        };
        assert!(takes("0.0.0.0", false, "10.0.2.100") && !takes("0.0.0.0", false, "fd00::100"));
        assert!(takes("::", false, "10.0.2.100") && takes("::", true, "fd00::100"));
        assert!(!takes("::", true, "10.0.2.100") && !takes("127.0.0.1", false, "10.0.2.100"));
        assert!(takes("::ffff:10.0.2.100", false, "10.0.2.100"));
        assert!(!takes("::1", false, "fd00::100") && takes("fd00::100", true, "fd00::100"));
    }

    #[test]
    fn the_connections_that_are_cut_are_found() {
        let diagnostics = Diagnostics::open().unwrap();
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let at = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(at).unwrap();
            let own = client.local_addr().unwrap();
            let seen = std::cell::RefCell::new(Vec::new());
            let ended = diagnostics.end_connections(|local, remote| {
                seen.borrow_mut().push((local, remote));
                false
            });
            assert_eq!(ended.unwrap(), 0);
            assert!(seen.borrow().contains(&(own, at)));
            // Root may end them, where the kernel can.
            let ended = diagnostics.end_connections(|local, _| local == own);
            if ended.is_ok_and(|ended| ended > 0) {
                let told = client.take_error().unwrap().map(|error| error.kind());
                assert_eq!(told, Some(io::ErrorKind::ConnectionAborted));
            }
        }
    }

    #[test]
    fn its_descriptors_are_two() {
        let diagnostics = Diagnostics::open().unwrap();
        let mut fds = diagnostics.into_fds();
        assert!(Diagnostics::from_fds(vec![fds.remove(1)]).is_none());
    }
}
