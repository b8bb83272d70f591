//! Ancillary data of sendmsg(2) and recvmsg(2), built and read as bytes, and the addresses beside
//! it.
//!
//! rustix knows three kinds of control message; the packet path needs several more, on both sides.
//! The layout (cmsg(3)) is a `size_t` length, two `int`s and the data, each part aligned to a
//! `size_t`. Reading and writing it as bytes needs no unsafe code; [`receive`] and [`send`] are the
//! two places that hand it to the kernel.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

const WORD: usize = size_of::<usize>();
const HEADER: usize = (WORD + 8).next_multiple_of(WORD);

/// Bytes of ancillary data in one call: enough for every option that this crate switches on, all
/// at once.
pub(crate) const CONTROL_SPACE: usize = 256;

/// Space for ancillary data, aligned as the kernel's `struct cmsghdr`.
#[repr(align(8))]
pub(crate) struct Control {
    bytes: [u8; CONTROL_SPACE],
    length: usize,
}

impl Control {
    pub(crate) fn new() -> Control {
        Control {
            bytes: [0; CONTROL_SPACE],
            length: 0,
        }
    }

    /// Forgets what is in it.
    pub(crate) fn clear(&mut self) {
        self.length = 0;
    }

    /// Lets a message header read the messages in it.
    pub(crate) fn lend(&self, message: &mut libc::msghdr) {
        if self.length > 0 {
            message.msg_control = self.bytes.as_ptr().cast_mut().cast();
            message.msg_controllen = self.length as _;
        }
    }

    /// Lets a message header write into all of it; [`filled`](Control::filled) follows.
    pub(crate) fn lend_space(&mut self, message: &mut libc::msghdr) {
        self.length = 0;
        message.msg_control = self.bytes.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_SPACE as _;
    }

    /// Takes over how much the kernel wrote.
    pub(crate) fn filled(&mut self, message: &libc::msghdr) {
        self.length = message.msg_controllen as _;
    }

    /// Appends one message. What does not fit is a mistake in this crate, and left out.
    pub(crate) fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let length = HEADER + data.len();
        let end = self.length + length.next_multiple_of(WORD);
        debug_assert!(end <= CONTROL_SPACE);
        let Some(place) = self.bytes.get_mut(self.length..end) else {
            return;
        };
        place.fill(0);
        place[..WORD].copy_from_slice(&length.to_ne_bytes());
        place[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        place[WORD + 4..WORD + 8].copy_from_slice(&kind.to_ne_bytes());
        place[HEADER..length].copy_from_slice(data);
        self.length = end;
    }

    /// The messages in it: level, type, data. Stops at the first that does not add up.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (libc::c_int, libc::c_int, &[u8])> {
        let mut rest = &self.bytes[..self.length.min(CONTROL_SPACE)];
        std::iter::from_fn(move || {
            let length = usize::from_ne_bytes(*rest.first_chunk()?);
            let message = rest.get(..length)?;
            let level = int(message.get(WORD..)?)?;
            let kind = int(message.get(WORD + 4..)?)?;
            let data = message.get(HEADER..)?;
            rest = rest
                .get(length.next_multiple_of(WORD)..)
                .unwrap_or_default();
            Some((level, kind, data))
        })
    }
}

/// An `int` at the front of a control message's data.
pub(crate) fn int(data: &[u8]) -> Option<libc::c_int> {
    data.first_chunk().map(|b| libc::c_int::from_ne_bytes(*b))
}

/// What one recvmsg(2) gave besides the payload.
pub(crate) struct Received {
    /// Bytes of payload in the buffers, or the datagram's whole length under `MSG_TRUNC`.
    pub(crate) length: usize,
    /// The address the kernel named, if it named one.
    pub(crate) address: Option<SocketAddr>,
    /// `MSG_*` bits of the answer.
    pub(crate) flags: libc::c_int,
}

/// recvmsg(2) into `pieces` and `control`.
pub(crate) fn receive(
    fd: BorrowedFd<'_>,
    pieces: &mut [IoSliceMut<'_>],
    control: &mut Control,
    flags: libc::c_int,
) -> io::Result<Received> {
    let mut name = AddressSpace::new();
    let mut message = empty_message();
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<AddressSpace>() as libc::socklen_t;
    // IoSliceMut is guaranteed to have the layout of an iovec.
    message.msg_iov = pieces.as_mut_ptr().cast();
    message.msg_iovlen = pieces.len() as _;
    control.lend_space(&mut message);
    // SAFETY: the descriptor is open; name, pieces and control point to memory that is borrowed
    // exclusively for this call, with their true lengths.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    control.filled(&message);
    Ok(Received {
        length: length as usize,
        address: name.decode(message.msg_namelen as usize),
        flags: message.msg_flags,
    })
}

/// sendmsg(2) of `pieces`, to `to` or to the connected peer.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    to: Option<SocketAddr>,
    pieces: &[IoSlice<'_>],
    control: &Control,
    flags: libc::c_int,
) -> io::Result<usize> {
    let mut name = AddressSpace::new();
    let mut message = empty_message();
    if let Some(to) = to {
        message.msg_namelen = name.encode(to) as libc::socklen_t;
        message.msg_name = (&raw mut name).cast();
    }
    // IoSlice is guaranteed to have the layout of an iovec; sendmsg(2) only reads through it.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len() as _;
    control.lend(&mut message);
    // SAFETY: the descriptor is open; name, pieces and control point to memory that lives through
    // the call, with their true lengths, and the kernel writes to none of it.
    let length = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    if length < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(length as usize)
    }
}

pub(crate) fn empty_message() -> libc::msghdr {
    // SAFETY: msghdr is plain C data: null pointers and zero lengths are values of it.
    unsafe { std::mem::zeroed() }
}

/// Room for a `sockaddr_in` or a `sockaddr_in6`, as bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct AddressSpace {
    bytes: [u8; 32],
}

impl AddressSpace {
    pub(crate) fn new() -> AddressSpace {
        AddressSpace { bytes: [0; 32] }
    }

    /// Writes the address and gives the bytes used.
    pub(crate) fn encode(&mut self, address: SocketAddr) -> usize {
        let b = &mut self.bytes;
        b.fill(0);
        b[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                b[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                b[4..8].copy_from_slice(&v4.ip().octets());
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                b[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                b[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                b[8..24].copy_from_slice(&v6.ip().octets());
                b[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                size_of::<libc::sockaddr_in6>()
            }
        }
    }

    pub(crate) fn decode(&self, length: usize) -> Option<SocketAddr> {
        socket_address(self.bytes.get(..length)?)
    }
}

/// Reads a `sockaddr_in` or `sockaddr_in6`; `None` for any other family or too few bytes.
pub(crate) fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let word = bytes.get(4..)?.first_chunk::<4>()?;
    match i32::from(family) {
        libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::from(*word), port).into()),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(ip, port, u32::from_ne_bytes(*word), scope).into())
        }
        _ => None,
    }
}

/// Whether packets to this address are IPv4's, which an IPv6 socket can send too.
pub(crate) fn is_ipv4(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back() {
        let mut control = Control::new();
        control.push(17, 103, &1448_u16.to_ne_bytes());
        control.push(0, 2, &7_i32.to_ne_bytes());
        control.push(41, 50, &[9; 20]);
        let read: Vec<_> = control.messages().collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], (17, 103, &1448_u16.to_ne_bytes()[..]));
        assert_eq!(read[1], (0, 2, &7_i32.to_ne_bytes()[..]));
        assert_eq!(read[2], (41, 50, &[9_u8; 20][..]));
    }

    #[test]
    fn lying_lengths_end_the_reading() {
        for length in [0_usize, 1, HEADER - 1, 300, usize::MAX, usize::MAX - 7] {
            let mut control = Control::new();
            control.push(1, 2, &[0; 4]);
            control.bytes[..WORD].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(control.messages().count(), 0, "{length}");
        }
    }

    #[test]
    fn addresses_read_back() {
        for text in [
            "10.0.2.3:53",
            "[fd00::3]:53",
            "[fe80::1]:65535",
            "[::ffff:1.2.3.4]:1",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let mut space = AddressSpace::new();
            let length = space.encode(address);
            assert_eq!(space.decode(length), Some(address));
            assert_eq!(space.decode(3), None);
        }
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, 3);
        let mut space = AddressSpace::new();
        let length = space.encode(scoped.into());
        assert_eq!(space.decode(length), Some(scoped.into()));
        assert_eq!(AddressSpace::new().decode(0), None);
        assert_eq!(AddressSpace::new().decode(28), None);
    }
}
