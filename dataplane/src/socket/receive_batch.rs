//! Many datagrams by one system call.
//!
//! A socket's datagrams are fetched in batches, and those that follow one another from one sender
//! and are of one size are handed on as a single train, which becomes one super-frame on the TAP:
//! two system calls then move up to [`MAX_BATCH`] datagrams where they would cost two each. The
//! copy that joins them is small beside that. A batch that came back short has emptied the socket:
//! readiness is edge triggered, so whatever comes later is an event of its own.

use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

use cnet_nat::host::{HeaderFields, HostError, Received, SocketId};
use cnet_tap::socket::{BatchSpace, Datagram, MAX_BATCH, recv_datagram, recv_datagrams};

use super::errno::from_io;

/// Room for one datagram, or one train of them that the kernel joined.
const SLOT_LEN: usize = 1 << 16;

/// The datagrams last fetched. There is one for all sockets: while it holds datagrams of one, the
/// others are served singly.
#[derive(Debug)]
pub(crate) struct ReceiveBatch {
    /// Pages of it are touched only as far as datagrams reach.
    slots: Box<[u8]>,
    datagrams: Vec<Datagram>,
    next: usize,
    owner: Option<SocketId>,
    space: Box<BatchSpace>,
}

impl ReceiveBatch {
    pub(crate) fn new() -> ReceiveBatch {
        ReceiveBatch {
            slots: vec![0; SLOT_LEN * MAX_BATCH].into_boxed_slice(),
            datagrams: Vec::with_capacity(MAX_BATCH),
            next: 0,
            owner: None,
            space: BatchSpace::new(),
        }
    }

    /// Receives a datagram or a train of them of `socket` into `buf`.
    pub(crate) fn receive(
        &mut self,
        socket: SocketId,
        fd: BorrowedFd<'_>,
        buf: &mut [u8],
    ) -> Result<Received, HostError> {
        match self.owner {
            Some(owner) if owner != socket => {
                let d = recv_datagram(fd, buf).map_err(|e| from_io(&e))?;
                return Ok(received(&d, d.len, d.segment));
            }
            Some(_) if self.next < self.datagrams.len() => {}
            Some(_) if self.datagrams.len() < MAX_BATCH => {
                self.owner = None;
                return Err(HostError::WouldBlock);
            }
            _ => self.fetch(socket, fd)?,
        }
        Ok(self.take_train(buf))
    }

    /// Forgets what waits of a socket that is closed.
    pub(crate) fn forget(&mut self, socket: SocketId) {
        if self.owner == Some(socket) {
            self.owner = None;
        }
    }

    fn fetch(&mut self, socket: SocketId, fd: BorrowedFd<'_>) -> Result<(), HostError> {
        self.owner = None;
        self.datagrams.clear();
        self.next = 0;
        let mut slots = self.slots.chunks_exact_mut(SLOT_LEN);
        let mut pieces: [IoSliceMut<'_>; MAX_BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(slots.next().unwrap_or_default()));
        recv_datagrams(fd, &mut pieces, &mut self.datagrams, &mut self.space)
            .map_err(|e| from_io(&e))?;
        self.owner = Some(socket);
        Ok(())
    }

    /// Joins as many of the waiting datagrams as make a train.
    fn take_train(&mut self, buf: &mut [u8]) -> Received {
        let first = self.datagrams[self.next];
        let mut len = self.copy_next(buf);
        let joinable = |d: &Datagram| {
            d.segment.is_none()
                && !d.truncated
                && d.from == first.from
                && (d.tos, d.ttl) == (first.tos, first.ttl)
                && d.local == first.local
        };
        if !joinable(&first) || first.len == 0 {
            return received(&first, len, first.segment);
        }
        let mut count = 1;
        while let Some(d) = self.datagrams.get(self.next) {
            // The buffer has one byte more than a packet may have.
            if !joinable(d) || d.len > first.len || d.len == 0 || len + d.len >= buf.len() {
                break;
            }
            let last = d.len < first.len;
            len += self.copy_next(&mut buf[len..]);
            count += 1;
            if last {
                break;
            }
        }
        let segment = u16::try_from(first.len).ok().filter(|_| count > 1);
        received(&first, len, segment)
    }

    /// Copies the next datagram to the start of `buf`.
    fn copy_next(&mut self, buf: &mut [u8]) -> usize {
        let slot = self.next * SLOT_LEN;
        let len = self.datagrams[self.next].len.min(buf.len());
        buf[..len].copy_from_slice(&self.slots[slot..slot + len]);
        self.next += 1;
        len
    }
}

/// What its packet said.
pub(super) fn fields(d: &Datagram) -> HeaderFields {
    let usual = HeaderFields::default();
    HeaderFields {
        hop_limit: d.ttl.unwrap_or(usual.hop_limit),
        tos: d.tos.unwrap_or(usual.tos),
    }
}

fn received(d: &Datagram, len: usize, segment: Option<u16>) -> Received {
    Received {
        len,
        from: d.from,
        segment,
        fields: fields(d),
        local: d.local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn datagrams_of_one_size_and_sender_come_as_a_train() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (a, b) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        let at = to.local_addr().unwrap();
        for (from, payload) in [
            (&a, &b"111"[..]),
            (&a, b"222"),
            (&a, b"3"),
            (&a, b"444"),
            (&b, b"555"),
            (&b, b""),
            (&b, b"6666"),
        ] {
            from.send_to(payload, at).unwrap();
        }
        let mut batch = ReceiveBatch::new();
        let mut buf = [0; 2000];
        let mut next = || {
            let r = batch.receive(SocketId(1), to.as_fd(), &mut buf)?;
            Ok((buf[..r.len].to_vec(), r.from, r.segment))
        };
        let (a, b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
        assert_eq!(next(), Ok((b"1112223".to_vec(), a, Some(3))));
        assert_eq!(next(), Ok((b"444".to_vec(), a, None)));
        assert_eq!(next(), Ok((b"555".to_vec(), b, None)));
        assert_eq!(next(), Ok((b"".to_vec(), b, None)));
        assert_eq!(next(), Ok((b"6666".to_vec(), b, None)));
        assert_eq!(next(), Err(HostError::WouldBlock));
    }

    #[test]
    fn a_second_socket_is_served_while_the_first_ones_datagrams_wait() {
        let sockets: Vec<_> = (0..2)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (i, s) in sockets.iter().enumerate() {
            for len in [5, 9] {
                from.send_to(&vec![i as u8; len], s.local_addr().unwrap())
                    .unwrap();
            }
        }
        let mut batch = ReceiveBatch::new();
        let mut buf = [0; 100];
        let mut receive = |i: usize| {
            batch
                .receive(SocketId(i as u32), sockets[i].as_fd(), &mut buf)
                .map(|r| r.len)
        };
        assert_eq!(receive(0), Ok(5));
        assert_eq!((receive(1), receive(1)), (Ok(5), Ok(9)));
        assert_eq!(receive(0), Ok(9));
        assert_eq!(receive(0), Err(HostError::WouldBlock));
    }
}
