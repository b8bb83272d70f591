//! Reading a TCP receive queue without emptying it.
//!
//! # Theory of operation
//!
//! The receive queue of the host's socket is the buffer from which lost segments are sent again:
//! data is peeked at, sent to the container, and discarded once the container acknowledged it.
//! With `SO_PEEK_OFF` (socket(7); TCP over IPv4 since Linux 6.9, over IPv6 a little later) the
//! kernel keeps the offset of the next peek: a peek moves it on, a discard moves it back by what
//! was discarded, and setting it rewinds. Without it, [`peek_skipping`] reads the part already sent
//! into a scratch area again, at the price of copying it.
//!
//! # Caveats
//!
//! Peeked data stays in the queue, so the socket stays readable for a level-triggered poll.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::options::{get_bytes, set_int};

// include/uapi/asm-generic/socket.h; the libc crate has it for every target of ours.
const SO_PEEK_OFF: libc::c_int = libc::SO_PEEK_OFF;

/// The most pieces one recvmsg(2) takes (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Sets where the next peek starts, in bytes from the front of the receive queue; -1 switches the
/// offset off.
///
/// # Errors
///
/// `EOPNOTSUPP` where the kernel has no such thing for this socket's family.
pub fn set_peek_off(fd: impl AsFd, offset: i32) -> io::Result<()> {
    set_int(fd.as_fd(), libc::SOL_SOCKET, SO_PEEK_OFF, offset)
}

/// Whether TCP sockets of this family have `SO_PEEK_OFF`. Asks the kernel, by a socket that is
/// closed again; false also where the family does not exist.
pub fn supports_peek_off_tcp(v6: bool) -> bool {
    let family = if v6 {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .is_ok_and(|socket| set_peek_off(&socket, 0).is_ok())
}

/// Peeks at the receive queue, from the offset set by [`set_peek_off`], if any. 0 is the end of
/// the stream, provided `buf` is not empty.
///
/// # Errors
///
/// `WouldBlock` when there is nothing beyond the offset; else the connection's own error.
#[inline]
pub fn recv_peek(fd: impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    Ok(rustix::net::recv(fd, buf, flags).map(|(length, _)| length)?)
}

/// Throws away up to `n` bytes from the front of the receive queue, without copying them
/// (`MSG_TRUNC`, tcp(7)), and gives how many there were. The peek offset moves back by as many.
///
/// # Errors
///
/// `WouldBlock` when the queue is empty; else the connection's own error.
#[inline]
pub fn recv_discard(fd: impl AsFd, n: usize) -> io::Result<usize> {
    if n == 0 {
        return Ok(0);
    }
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: the descriptor is open. With MSG_TRUNC a TCP socket writes nothing, so the null
    // pointer is never followed; a socket of another kind that does answers EFAULT.
    let discarded = unsafe { libc::recv(fd.as_fd().as_raw_fd(), std::ptr::null_mut(), n, flags) };
    if discarded < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(discarded as usize)
    }
}

/// Peeks at what follows the first `skip` bytes of the receive queue, for kernels without
/// [`set_peek_off`]. The skipped bytes are copied into `scratch`, again and again if it is short.
/// 0 is the end of the stream, provided `buf` is not empty.
///
/// # Errors
///
/// `WouldBlock` when there is nothing beyond `skip`. `InvalidInput` when `scratch` is too short:
/// `skip` may be up to 1023 times as long. Else the connection's own error.
pub fn peek_skipping(
    fd: impl AsFd,
    skip: usize,
    scratch: &mut [u8],
    buf: &mut [u8],
) -> io::Result<usize> {
    let fd = fd.as_fd();
    if skip == 0 {
        return recv_peek(fd, buf);
    }
    // The end of the stream looks like an empty rest: both give `skip` bytes. Once the FIN is in,
    // nothing can follow it, so a peek *after* that was seen tells the two apart.
    for ended in [false, true] {
        let found = peek_pieces(fd, skip, scratch, buf)?;
        if found > skip {
            return Ok(found - skip);
        }
        if ended {
            return Ok(0);
        }
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut fds, Some(&now))? == 0 {
            break;
        }
    }
    Err(Errno::WOULDBLOCK.into())
}

/// One peek into `scratch`, repeated to `skip` bytes, and then `buf`; gives the bytes found.
fn peek_pieces(
    fd: std::os::fd::BorrowedFd<'_>,
    skip: usize,
    scratch: &mut [u8],
    buf: &mut [u8],
) -> io::Result<usize> {
    let whole = skip
        .checked_div(scratch.len())
        .ok_or(io::ErrorKind::InvalidInput)?;
    let part = skip % scratch.len();
    if whole + 2 > MAX_PIECES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut pieces = Vec::with_capacity(whole + 2);
    let scratch_start = scratch.as_mut_ptr().cast::<libc::c_void>();
    for _ in 0..whole {
        pieces.push(libc::iovec {
            iov_base: scratch_start,
            iov_len: scratch.len(),
        });
    }
    pieces.push(libc::iovec {
        iov_base: scratch_start,
        iov_len: part,
    });
    pieces.push(libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    });
    let mut message = super::ancillary::empty_message();
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len() as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the descriptor is open. Every piece lies within `scratch` or `buf`, both borrowed
    // exclusively for this call; that pieces of `scratch` overlap only means that later bytes
    // overwrite earlier ones.
    let found = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    if found < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(found as usize)
    }
}

// include/uapi/linux/tcp.h
const TCP_SAVE_SYN: libc::c_int = 27;
const TCP_SAVED_SYN: libc::c_int = 28;

/// Has a listening socket keep what the SYN of each connection said, for [`saved_syn`]
/// (`TCP_SAVE_SYN`, Linux 4.2).
///
/// # Errors
///
/// As setsockopt(2).
pub fn save_syn(fd: impl AsFd) -> io::Result<()> {
    set_int(fd.as_fd(), libc::IPPROTO_TCP, TCP_SAVE_SYN, 1)
}

/// TTL or hop limit, and type of service or traffic class, of the SYN of an accepted connection. The
/// kernel tells it once. `None` where it has not kept it.
pub fn saved_syn(fd: impl AsFd) -> Option<(u8, u8)> {
    // The IP header, and TCP's behind it.
    let mut bytes = [0; 256];
    let length = get_bytes(fd.as_fd(), libc::IPPROTO_TCP, TCP_SAVED_SYN, &mut bytes).ok()?;
    let header = bytes.get(..length)?;
    match header.first()? >> 4 {
        4 => Some((*header.get(8)?, *header.get(1)?)),
        6 => Some((*header.get(7)?, header[0] << 4 | *header.get(1)? >> 4)),
        _ => None,
    }
}

/// Asks the far end now whether it is still there, if it was silent for a second, and from then on as
/// long as the connection is idle (keepalive, tcp(7)). The kernel does not end the connection for want
/// of answers, or nearly so.
///
/// # Errors
///
/// As setsockopt(2).
pub fn probe_far_end(fd: impl AsFd) -> io::Result<()> {
    // The most that the kernel takes (MAX_TCP_KEEPCNT).
    const PROBES: libc::c_int = 127;
    let fd = fd.as_fd();
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES)?;
    // Setting it restarts the timer, which goes off at once when the time is over already
    // (tcp_sock_set_keepidle_locked in net/ipv4/tcp.c).
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 1)
}

/// What the kernel knows about a TCP connection (`struct tcp_info` in `include/uapi/linux/tcp.h`).
/// A field that the running kernel does not have is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpInfo {
    /// `TCP_ESTABLISHED` (1) and so on, as in `include/net/tcp_states.h`.
    pub state: u8,
    /// The time since the far end last acknowledged anything, in milliseconds.
    pub last_ack_recv_ms: u32,
    /// The segment size used for sending, in bytes.
    pub snd_mss: u32,
    /// The smoothed round trip time, in microseconds.
    pub rtt_us: u32,
    /// Its variance, in microseconds.
    pub rtt_var_us: u32,
    /// The lowest round trip time of late, in microseconds; `u32::MAX` when not measured yet.
    pub min_rtt_us: u32,
    /// The receiver's estimate of the round trip time, in microseconds.
    pub rcv_rtt_us: u32,
    /// The receive window that automatic tuning aims at, in bytes.
    pub rcv_space: u32,
    /// The congestion window, in segments.
    pub snd_cwnd: u32,
    /// The window the far end advertised, in bytes; Linux 5.4.
    pub snd_wnd: u32,
    /// Segments sent again over the connection's life.
    pub total_retrans: u32,
    /// Sequence numbers the far end has acknowledged. The SYN counts as one on the side that
    /// called connect(2), and does not on the side that called accept(2).
    pub bytes_acked: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Bytes written and not sent yet.
    pub notsent_bytes: u32,
}

/// Bytes of `struct tcp_info` up to `tcpi_rcv_wnd`, past which nothing is read.
const TCP_INFO_LEN: usize = 236;

/// Reads [`TcpInfo`].
///
/// # Errors
///
/// `EOPNOTSUPP` or `ENOPROTOOPT` for a socket that is not TCP's.
pub fn tcp_info(fd: impl AsFd) -> io::Result<TcpInfo> {
    let mut bytes = [0; TCP_INFO_LEN];
    let length = get_bytes(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes)?;
    Ok(decode_tcp_info(bytes.get(..length).unwrap_or(&bytes)))
}

/// Picks fields by their offsets; one beyond the end is 0.
fn decode_tcp_info(bytes: &[u8]) -> TcpInfo {
    let word = |at: usize| {
        bytes
            .get(at..)
            .and_then(|b| b.first_chunk())
            .map_or(0, |b| u32::from_ne_bytes(*b))
    };
    let long = |at: usize| {
        bytes
            .get(at..)
            .and_then(|b| b.first_chunk())
            .map_or(0, |b| u64::from_ne_bytes(*b))
    };
    TcpInfo {
        state: bytes.first().copied().unwrap_or(0),
        last_ack_recv_ms: word(56),
        snd_mss: word(16),
        rtt_us: word(68),
        rtt_var_us: word(72),
        snd_cwnd: word(80),
        rcv_rtt_us: word(92),
        rcv_space: word(96),
        total_retrans: word(100),
        bytes_acked: long(120),
        bytes_received: long(128),
        notsent_bytes: word(144),
        min_rtt_us: word(148),
        snd_wnd: word(228),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// A connected pair: the client's end and the server's.
    fn pair(v6: bool) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_nodelay(true).unwrap();
        (client, server)
    }

    /// Waits until `n` bytes are in the receive queue.
    fn arrived(stream: &TcpStream, n: u64) {
        for _ in 0..2000 {
            if rustix::io::ioctl_fionread(stream).unwrap() >= n {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{n} bytes did not arrive");
    }

    fn would_block<T: std::fmt::Debug>(result: io::Result<T>) {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// Waits until the far end's FIN is in.
    fn fin_arrived(stream: &TcpStream) {
        let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
        let limit = Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1));
    }

    #[test]
    fn peeks_by_offset_discards_and_rewinds() {
        for v6 in [false, true] {
            if !supports_peek_off_tcp(v6) {
                eprintln!("no SO_PEEK_OFF for TCP here (IPv6: {v6})");
                continue;
            }
            let (mut client, server) = pair(v6);
            client.write_all(b"0123456789").unwrap();
            arrived(&server, 10);
            set_peek_off(&server, 0).unwrap();
            let mut buf = [0; 4];
            assert_eq!(recv_peek(&server, &mut buf).unwrap(), 4);
            assert_eq!(&buf, b"0123");
            assert_eq!(recv_peek(&server, &mut buf).unwrap(), 4);
            assert_eq!(&buf, b"4567");
            // The discard moves the offset back with the queue's front: the next peek goes on.
            assert_eq!(recv_discard(&server, 3).unwrap(), 3);
            assert_eq!(recv_peek(&server, &mut buf).unwrap(), 2);
            assert_eq!(&buf[..2], b"89");
            would_block(recv_peek(&server, &mut buf));
            // Rewound to what is not discarded yet.
            set_peek_off(&server, 0).unwrap();
            assert_eq!(recv_peek(&server, &mut buf).unwrap(), 4);
            assert_eq!(&buf, b"3456");
            client.shutdown(Shutdown::Write).unwrap();
            fin_arrived(&server);
            assert_eq!(recv_peek(&server, &mut buf).unwrap(), 3);
            assert_eq!(recv_peek(&server, &mut buf).unwrap(), 0);
            assert_eq!(recv_discard(&server, 100).unwrap(), 7);
            assert_eq!(recv_discard(&server, 100).unwrap(), 0);
            assert_eq!(recv_discard(&server, 0).unwrap(), 0);
        }
    }

    #[test]
    fn peeks_by_skipping() {
        for v6 in [false, true] {
            let (mut client, server) = pair(v6);
            let data: Vec<u8> = (0..1000_u32).map(|i| (i * 7) as u8).collect();
            client.write_all(&data).unwrap();
            arrived(&server, 1000);
            let mut buf = [0; 100];
            for skip in [0, 1, 99, 100, 101, 333, 900] {
                for scratch in [1, 7, 100, 1000] {
                    if skip / scratch + 2 > MAX_PIECES {
                        continue;
                    }
                    let mut scratch = vec![0; scratch];
                    assert_eq!(
                        peek_skipping(&server, skip, &mut scratch, &mut buf).unwrap(),
                        100
                    );
                    assert_eq!(&buf, &data[skip..skip + 100], "skip {skip}");
                }
            }
            let mut scratch = [0; 64];
            assert_eq!(
                peek_skipping(&server, 990, &mut scratch, &mut buf).unwrap(),
                10
            );
            would_block(peek_skipping(&server, 1000, &mut scratch, &mut buf));
            would_block(peek_skipping(&server, 1500, &mut scratch, &mut buf));
            for mut short in [vec![], vec![0]] {
                let error = peek_skipping(&server, 2000, &mut short, &mut buf).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            }
            client.shutdown(Shutdown::Write).unwrap();
            fin_arrived(&server);
            assert_eq!(
                peek_skipping(&server, 990, &mut scratch, &mut buf).unwrap(),
                10
            );
            assert_eq!(
                peek_skipping(&server, 1000, &mut scratch, &mut buf).unwrap(),
                0
            );
        }
    }

    #[test]
    fn an_empty_queue_would_block() {
        let (_client, server) = pair(false);
        would_block(recv_peek(&server, &mut [0; 4]));
        would_block(recv_discard(&server, 4));
        would_block(peek_skipping(&server, 0, &mut [0; 4], &mut [0; 4]));
    }

    #[test]
    fn tcp_info_counts_what_was_acknowledged() {
        for v6 in [false, true] {
            let (mut client, mut server) = pair(v6);
            let start = (tcp_info(&client).unwrap(), tcp_info(&server).unwrap());
            assert_eq!((start.0.state, start.1.state), (1, 1));
            assert_eq!((start.0.bytes_acked, start.1.bytes_acked), (1, 0));
            client.write_all(&[0; 5000]).unwrap();
            server.write_all(&[0; 3000]).unwrap();
            arrived(&server, 5000);
            arrived(&client, 3000);
            let info = tcp_info(&client).unwrap();
            assert_eq!((info.bytes_acked, info.bytes_received), (5001, 3000));
            assert!(info.rtt_us > 0 && info.rtt_us < 10_000_000, "{info:?}");
            assert!(
                info.snd_mss >= 500 && info.snd_cwnd > 0 && info.snd_wnd > 0,
                "{info:?}"
            );
            // The acknowledgement of the reply may still be on its delay.
            assert!(tcp_info(&server).unwrap().bytes_acked <= 3000);
        }
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(tcp_info(&udp).is_err());
    }

    #[test]
    fn a_short_tcp_info_is_zero_where_it_ends() {
        let mut bytes = [0; TCP_INFO_LEN];
        bytes[0] = 1;
        bytes[68..72].copy_from_slice(&250_u32.to_ne_bytes());
        bytes[120..128].copy_from_slice(&77_u64.to_ne_bytes());
        let whole = decode_tcp_info(&bytes);
        assert_eq!((whole.state, whole.rtt_us, whole.bytes_acked), (1, 250, 77));
        let cut = decode_tcp_info(&bytes[..104]);
        assert_eq!((cut.state, cut.rtt_us, cut.bytes_acked), (1, 250, 0));
        assert_eq!(decode_tcp_info(&[]), TcpInfo::default());
    }
}
