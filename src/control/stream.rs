//! A Unix stream that carries descriptors beside its bytes (SCM_RIGHTS, unix(7)).
//!
//! What is to be sent goes with the first byte that is written; what is received is collected,
//! whichever read brought it, until somebody takes it. At most [`MAX_DESCRIPTORS`] are kept, and the
//! rest is closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use cnet_tap::unix;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use super::MAX_DESCRIPTORS;

/// Descriptors that came in and were not taken yet.
#[derive(Clone, Debug, Default)]
pub struct Received(Arc<Mutex<Vec<OwnedFd>>>);

impl Received {
    /// Takes all there are.
    pub fn take(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, fds: Vec<OwnedFd>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for fd in fds {
            if kept.len() < MAX_DESCRIPTORS {
                kept.push(fd);
            }
        }
    }
}

/// The stream.
#[derive(Debug)]
pub struct DescriptorStream {
    stream: UnixStream,
    outgoing: Vec<OwnedFd>,
    received: Received,
}

impl DescriptorStream {
    /// Around `stream`; `outgoing` goes with the first byte.
    pub fn new(stream: UnixStream, outgoing: Vec<OwnedFd>) -> DescriptorStream {
        DescriptorStream {
            stream,
            outgoing,
            received: Received::default(),
        }
    }

    /// Where received descriptors are collected.
    pub fn received(&self) -> Received {
        self.received.clone()
    }
}

fn receive(fd: BorrowedFd<'_>, bytes: &mut [u8], received: &Received) -> io::Result<usize> {
    let (length, fds) = unix::receive(fd, bytes, MAX_DESCRIPTORS, RecvFlags::empty())?;
    received.add(fds);
    Ok(length)
}

fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    if fds.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one request",
        ));
    }
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    Ok(unix::send(fd, &[bytes], &borrowed, SendFlags::empty())?)
}

impl AsyncRead for DescriptorStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            let read = self.stream.try_io(Interest::READABLE, || {
                receive(self.stream.as_fd(), space, &self.received)
            });
            match read {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for DescriptorStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.outgoing.is_empty() || bytes.is_empty() {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                send(self.stream.as_fd(), bytes, &self.outgoing)
            });
            match sent {
                Ok(length) => {
                    self.outgoing.clear();
                    return Poll::Ready(Ok(length));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn descriptors_cross_with_the_first_bytes_and_no_others() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sender = DescriptorStream::new(one, vec![writer.into()]);
        let mut receiver = DescriptorStream::new(other, vec![]);
        sender.write_all(b"hello").await.unwrap();
        sender.write_all(b" again").await.unwrap();
        let mut bytes = [0; 11];
        receiver.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello again");
        let mut fds = receiver.received().take();
        assert_eq!(fds.len(), 1);
        rustix::io::write(fds.remove(0), b"x").unwrap();
        drop(sender);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "no copy of the pipe's end is left");
        assert!(receiver.received().take().is_empty());
    }

    #[tokio::test]
    async fn a_flood_of_descriptors_is_cut() {
        let (one, other) = UnixStream::pair().unwrap();
        let mut receiver = DescriptorStream::new(other, vec![]);
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for _ in 0..3 {
            send(one.as_fd(), b"x", &[null(), null(), null()]).unwrap();
        }
        let mut bytes = [0; 3];
        receiver.read_exact(&mut bytes).await.unwrap();
        assert_eq!(receiver.received().take().len(), MAX_DESCRIPTORS);
    }
}
