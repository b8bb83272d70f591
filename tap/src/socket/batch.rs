//! Many datagrams in one system call: recvmmsg(2) and sendmmsg(2).
//!
//! GRO and GSO (see [`udp`](super::udp)) carry many datagrams of one flow and one size; a batch
//! carries datagrams of any flows and sizes, each of which may be such a train.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use super::ancillary::{AddressSpace, Control, empty_message};
use super::udp::{Datagram, SendOptions, describe, write_options};

/// The most datagrams in one call.
pub const MAX_BATCH: usize = 32;

/// Room for the addresses and options of [`MAX_BATCH`] datagrams, 10 KB, to be kept and used again.
pub struct BatchSpace {
    names: [AddressSpace; MAX_BATCH],
    controls: [Control; MAX_BATCH],
}

impl BatchSpace {
    /// Makes the room.
    pub fn new() -> Box<BatchSpace> {
        Box::new(BatchSpace {
            names: [AddressSpace::new(); MAX_BATCH],
            controls: std::array::from_fn(|_| Control::new()),
        })
    }
}

impl std::fmt::Debug for BatchSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchSpace").finish_non_exhaustive()
    }
}

/// `struct mmsghdr` for a call, all unset.
fn empty_headers() -> [libc::mmsghdr; MAX_BATCH] {
    [libc::mmsghdr {
        msg_hdr: empty_message(),
        msg_len: 0,
    }; MAX_BATCH]
}

/// Receives up to as many datagrams as there are buffers, or [`MAX_BATCH`], one into each, and
/// appends what they are to `out`, in the buffers' order. Gives how many, at least one.
///
/// # Errors
///
/// As [`recv_datagram`](super::recv_datagram). An error that follows datagrams is reported by the
/// next call.
pub fn recv_datagrams(
    fd: impl AsFd,
    buffers: &mut [IoSliceMut<'_>],
    out: &mut Vec<Datagram>,
    space: &mut BatchSpace,
) -> io::Result<usize> {
    let count = buffers.len().min(MAX_BATCH);
    let mut headers = empty_headers();
    let places = space.names.iter_mut().zip(&mut space.controls);
    for ((header, buffer), (name, control)) in headers.iter_mut().zip(buffers).zip(places) {
        let message = &mut header.msg_hdr;
        message.msg_name = std::ptr::from_mut(name).cast();
        message.msg_namelen = size_of::<AddressSpace>() as libc::socklen_t;
        // IoSliceMut is guaranteed to have the layout of an iovec.
        message.msg_iov = std::ptr::from_mut(buffer).cast();
        message.msg_iovlen = 1;
        control.lend_space(message);
    }
    // SAFETY: the descriptor is open. The first `count` headers point to a name, a buffer and a
    // control area each, all borrowed exclusively through this call, with their true lengths. No
    // timeout is given.
    let received = unsafe {
        libc::recvmmsg(
            fd.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    let received = received as usize;
    let places = space.names.iter().zip(&mut space.controls);
    for (header, (name, control)) in headers[..received].iter().zip(places) {
        let message = &header.msg_hdr;
        control.filled(message);
        let from = name
            .decode(message.msg_namelen as usize)
            .ok_or(io::ErrorKind::InvalidData)?;
        out.push(describe(
            header.msg_len as usize,
            from,
            message.msg_flags,
            control,
        ));
    }
    Ok(received)
}

/// One datagram, or train, to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to; `None` on a connected socket.
    pub to: Option<SocketAddr>,
    /// The payload, in pieces.
    pub payload: &'a [IoSlice<'a>],
    /// What differs from the socket's own settings.
    pub options: SendOptions,
}

/// Sends datagrams in order, up to [`MAX_BATCH`], and gives how many were taken: fewer than asked
/// for when the one after them met an error, which sending that one again tells.
///
/// # Errors
///
/// As [`send_datagram_with`](super::send_datagram_with), of the first datagram.
pub fn send_datagrams(
    fd: impl AsFd,
    datagrams: &[Outgoing<'_>],
    space: &mut BatchSpace,
) -> io::Result<usize> {
    let fd = fd.as_fd();
    let count = datagrams.len().min(MAX_BATCH);
    let mut headers = empty_headers();
    let places = space.names.iter_mut().zip(&mut space.controls);
    for ((header, datagram), (name, control)) in headers.iter_mut().zip(datagrams).zip(places) {
        control.clear();
        write_options(control, fd, datagram.to, datagram.options)?;
        let message = &mut header.msg_hdr;
        if let Some(to) = datagram.to {
            message.msg_namelen = name.encode(to) as libc::socklen_t;
            message.msg_name = std::ptr::from_mut(name).cast();
        }
        // IoSlice is guaranteed to have the layout of an iovec; sendmmsg(2) only reads through it.
        message.msg_iov = datagram.payload.as_ptr().cast_mut().cast();
        message.msg_iovlen = datagram.payload.len() as _;
        control.lend(message);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the descriptor is open. The first `count` headers point to a name, pieces of payload
    // and a control area each, which live through the call, with their true lengths; the kernel
    // writes to the headers' `msg_len` alone.
    let sent = unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            flags as _,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(sent as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::socket::{receive_details, set_udp_gro};

    /// Datagrams with hop limits from 1 on, the third of them cut into segments.
    fn numbered<'a>(pieces: &'a [[IoSlice<'a>; 2]], to: SocketAddr) -> Vec<Outgoing<'a>> {
        let numbered = pieces.iter().zip(1..);
        let outgoing = numbered.map(|(payload, i)| Outgoing {
            to: Some(to),
            payload,
            options: SendOptions {
                hop_limit: Some(i),
                segment: (i == 3).then_some(60),
                ..SendOptions::default()
            },
        });
        outgoing.collect()
    }

    #[test]
    fn a_batch_goes_out_and_comes_in() {
        for v6 in [false, true] {
            let bind = || UdpSocket::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
            let (a, b) = (bind(), bind());
            receive_details(&b, v6).unwrap();
            set_udp_gro(&b, true).unwrap();
            let mut space = BatchSpace::new();

            let payloads: Vec<Vec<u8>> =
                (0..40_u8).map(|i| vec![i; 100 + usize::from(i)]).collect();
            let pieces: Vec<[IoSlice<'_>; 2]> = payloads
                .iter()
                .map(|p| [IoSlice::new(&p[..50]), IoSlice::new(&p[50..])])
                .collect();
            let outgoing = numbered(&pieces, b.local_addr().unwrap());
            assert_eq!(
                send_datagrams(&a, &outgoing, &mut space).unwrap(),
                MAX_BATCH
            );
            assert_eq!(
                send_datagrams(&a, &outgoing[MAX_BATCH..], &mut space).unwrap(),
                8
            );

            let mut memory = vec![[0; 2048]; 64];
            let mut got = Vec::new();
            for want in [MAX_BATCH, 8] {
                let from = got.len();
                let mut buffers: Vec<IoSliceMut<'_>> = memory[from..]
                    .iter_mut()
                    .map(|m| IoSliceMut::new(m))
                    .collect();
                let received = recv_datagrams(&b, &mut buffers, &mut got, &mut space).unwrap();
                assert_eq!(received, want);
            }
            assert_eq!(got.len(), 40);
            for (i, datagram) in got.iter().enumerate() {
                assert_eq!(&memory[i][..datagram.len], &payloads[i]);
                assert_eq!(datagram.from, a.local_addr().unwrap());
                assert_eq!(datagram.ttl, Some(i as u8 + 1));
                assert_eq!(datagram.segment, (i == 2).then_some(60));
                assert!(!datagram.truncated);
            }
            let mut buffers = [IoSliceMut::new(&mut memory[0])];
            let error = recv_datagrams(&b, &mut buffers, &mut got, &mut space).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn an_error_stops_a_batch_where_it_occurs() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut space = BatchSpace::new();
        let (good, long) = ([IoSlice::new(b"x")], vec![0; 65_536]);
        let long = [IoSlice::new(&long)];
        let to = Some(b.local_addr().unwrap());
        let one = |payload| Outgoing {
            to,
            payload,
            options: SendOptions::default(),
        };
        let batch = [one(&good), one(&good), one(&long), one(&good)];
        assert_eq!(send_datagrams(&a, &batch, &mut space).unwrap(), 2);
        let error = send_datagrams(&a, &batch[2..], &mut space).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(send_datagrams(&a, &batch[3..], &mut space).unwrap(), 1);
        assert_eq!(send_datagrams(&a, &[], &mut space).unwrap(), 0);
    }
}
