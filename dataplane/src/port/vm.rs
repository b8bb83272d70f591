//! Devices of plain Ethernet frames, without virtio-net headers: the socket of a virtual machine, or a
//! TAP that another program has opened so.
//!
//! # On the wire
//!
//! A Unix stream socket carries each frame behind its length, four bytes in network order (QEMU's
//! `-netdev stream`); a Unix datagram socket one frame a datagram (`-netdev dgram`), and a Unix socket
//! of sequenced packets one a packet (`transport=bess` of User Mode Linux). A TAP gives and takes one a
//! read(2) and write(2).
//!
//! # Into the network
//!
//! A frame gets a virtio-net header of zeros: nothing to be cut, and checksums that the
//! receiver of the frame verifies. Of a stream whatever waits is fetched at once, and frames are taken
//! out of that one by one, so a frame may come in any number of pieces. A frame shorter than an Ethernet
//! header is dropped and counted by the switch as any bad frame is, and so is a datagram that is too
//! long. A length in a stream that is longer than any frame ends the port: reading on would take
//! gigabytes for a frame's rest, and what it is followed by cannot be told.
//!
//! # Out of it
//!
//! Super-frames are cut and checksums filled in ([`Segments`]) on the way into the outbox, which is
//! bounded by [`OUTBOX`] and goes to the socket at once. What the socket does not take stays there,
//! in order, until there is room again. A frame that does not fit in whole is lost whole, at this
//! port: so a machine that does not read takes nothing from others, and no frame is torn.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cnet_wire::Segments;
use cnet_wire::vnet::VNET_HDR_LEN;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send, sockopt};

/// Bytes of the length before a frame.
const LENGTH: usize = 4;
/// The longest frame: an Ethernet header and the longest IPv4 packet, and one more, as
/// [`FRAME_BUFFER_LEN`](cnet_wire::headers::FRAME_BUFFER_LEN) has it.
const MAX_FRAME: usize = 65_550;
/// Room for what a stream brings: more than one frame of the longest.
const INBOX: usize = 128 << 10;
/// Bytes that wait for the machine to read, lengths included: some super-frames.
const OUTBOX: usize = 256 << 10;

/// How frames are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Stream,
    Datagram,
    Packets,
    Tap,
}

/// A virtual machine's end of the network.
#[derive(Debug)]
pub struct VmSocket {
    fd: OwnedFd,
    kind: Kind,
    /// Of a stream alone.
    inbox: Option<Inbox>,
    outbox: Outbox,
    /// Why nothing can be written any more. Told by the next read.
    failed: Option<io::Error>,
}

/// Frames and bytes, as they were after segmentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl VmSocket {
    /// A connected stream socket.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn stream(fd: OwnedFd) -> io::Result<VmSocket> {
        let inbox = Inbox {
            buffer: vec![0; INBOX].into_boxed_slice(),
            start: 0,
            end: 0,
        };
        VmSocket::new(fd, (Kind::Stream, SocketType::STREAM), Some(inbox))
    }

    /// A connected datagram socket.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn datagram(fd: OwnedFd) -> io::Result<VmSocket> {
        VmSocket::new(fd, (Kind::Datagram, SocketType::DGRAM), None)
    }

    /// A connected socket of sequenced packets.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn packets(fd: OwnedFd) -> io::Result<VmSocket> {
        VmSocket::new(fd, (Kind::Packets, SocketType::SEQPACKET), None)
    }

    /// A TAP without virtio-net headers, non-blocking ([`cnet_tap::device::adopt`]).
    pub fn tap(fd: OwnedFd) -> VmSocket {
        VmSocket {
            fd,
            kind: Kind::Tap,
            inbox: None,
            outbox: Outbox::default(),
            failed: None,
        }
    }

    fn new(
        fd: OwnedFd,
        (kind, socket_type): (Kind, SocketType),
        inbox: Option<Inbox>,
    ) -> io::Result<VmSocket> {
        if sockopt::socket_type(&fd)? != socket_type {
            return Err(io::Error::other("a socket of another type"));
        }
        Ok(VmSocket {
            fd,
            kind,
            inbox,
            outbox: Outbox::default(),
            failed: None,
        })
    }

    /// What a failed device was.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Tap => "the TAP",
            Kind::Stream | Kind::Datagram | Kind::Packets => "the virtual machine",
        }
    }

    /// Reads one frame into `buf`, a virtio-net header of zeros first. Never blocks, and asks the
    /// socket at most once. `buf` has room for [`MAX_FRAME`] and that header.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when no whole frame is there; any other means that the machine is gone.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let (header, frame) = buf
            .split_first_chunk_mut::<VNET_HDR_LEN>()
            .ok_or(io::ErrorKind::InvalidInput)?;
        *header = [0; VNET_HDR_LEN];
        let length = match &mut self.inbox {
            Some(inbox) => inbox.next(&self.fd, frame)?,
            None if self.kind == Kind::Tap => rustix::io::read(&self.fd, frame)?,
            // One that is too long comes cut, and is too long still.
            None => match recv(&self.fd, frame, RecvFlags::DONTWAIT)?.0 {
                0 if self.kind == Kind::Packets => return Err(closed()),
                length => length,
            },
        };
        Ok(VNET_HDR_LEN + length)
    }

    /// Sends `frame`, which starts with a virtio-net header, cut to `mtu`. `None` if it is lost.
    pub fn write(&mut self, frame: &[u8], mtu: usize) -> Option<Taken> {
        let segments = Segments::parse(frame, mtu).ok()?;
        let needed = segments.bytes() + LENGTH * segments.count();
        if self.failed.is_some() || !self.outbox.make_room(needed) {
            return None;
        }
        let at_once = self.outbox.is_empty();
        segments.for_each(|headers, payload| self.outbox.push(headers, payload));
        if at_once {
            self.flush();
        }
        Some(Taken {
            frames: segments.count() as u64,
            bytes: segments.bytes() as u64,
        })
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) {
        while !self.outbox.is_empty() && self.failed.is_none() {
            let sent = match self.inbox {
                Some(_) => self.send(self.outbox.waiting()),
                None => {
                    let sent = self.send(self.outbox.first());
                    sent.map(|_| LENGTH + self.outbox.first().len())
                }
            };
            match sent {
                Ok(length) => self.outbox.advance(length),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return,
                // One datagram over what the socket's buffer was set to; a TAP that is down (EIO), or
                // whose MTU is smaller (EINVAL).
                Err(Errno::MSGSIZE | Errno::IO | Errno::INVAL) if self.inbox.is_none() => {
                    self.outbox.advance(LENGTH + self.outbox.first().len());
                }
                Err(error) => self.failed = Some(error.into()),
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self.kind {
            Kind::Tap => rustix::io::write(&self.fd, bytes),
            _ => send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        }
    }

    /// Whether frames wait until the socket has room.
    pub fn is_stuck(&self) -> bool {
        !self.outbox.is_empty() && self.failed.is_none()
    }

    /// Whether the next read tells that the machine is gone.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }
}

impl AsFd for VmSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "it closed its end of the socket",
    )
}

/// What a stream has brought and no whole frame was made of yet.
#[derive(Debug)]
struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// Copies the next frame to the start of `frame`, reading from `fd` once if it is not here.
    fn next(&mut self, fd: &OwnedFd, frame: &mut [u8]) -> io::Result<usize> {
        if let Some(length) = self.take(frame)? {
            return Ok(length);
        }
        // A frame that is not whole is shorter than the half of the buffer.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        match recv(fd, &mut self.buffer[self.end..], RecvFlags::DONTWAIT)?.0 {
            0 => return Err(closed()),
            read => self.end += read,
        }
        self.take(frame)?.ok_or(io::ErrorKind::WouldBlock.into())
    }

    /// Copies the next frame, if it is here whole.
    fn take(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        let waiting = &self.buffer[self.start..self.end];
        let Some((&length, behind)) = waiting.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            let lie =
                format!("it announced a frame of {length} bytes, where {MAX_FRAME} are possible");
            return Err(io::Error::new(io::ErrorKind::InvalidData, lie));
        }
        let Some(whole) = behind.get(..length) else {
            return Ok(None);
        };
        frame[..length].copy_from_slice(whole);
        self.start += LENGTH + length;
        Ok(Some(length))
    }
}

/// Frames that wait for room, each behind its length: as a stream has them.
#[derive(Debug, Default)]
struct Outbox {
    /// At most twice [`OUTBOX`], so that a byte is moved to the front at most once.
    bytes: Vec<u8>,
    /// What was sent of them.
    head: usize,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    fn waiting(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// The first frame, where none was sent in part.
    fn first(&self) -> &[u8] {
        match self.waiting().split_first_chunk::<LENGTH>() {
            Some((&length, behind)) => {
                let length = u32::from_be_bytes(length) as usize;
                &behind[..length.min(behind.len())]
            }
            None => &[],
        }
    }

    /// Whether `needed` more bytes fit.
    fn make_room(&mut self, needed: usize) -> bool {
        if self.waiting().len() + needed > OUTBOX {
            return false;
        }
        if self.bytes.len() + needed > 2 * OUTBOX {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
        true
    }

    fn push(&mut self, headers: &[u8], payload: &[u8]) {
        // A segment is at most 64 KiB and some headers.
        let length = (headers.len() + payload.len()) as u32;
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(headers);
        self.bytes.extend_from_slice(payload);
    }

    fn advance(&mut self, sent: usize) {
        self.head += sent;
        if self.waiting().is_empty() {
            self.bytes.clear();
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests;
