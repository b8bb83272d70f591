//! A Unix stream that carries descriptors beside its bytes (SCM_RIGHTS, unix(7)).
//!
//! What is to be sent goes with the first byte that is written; what is received is collected,
//! whichever read brought it, until [`Received::take`]. At most [`MAX_DESCRIPTORS`] are kept, and
//! the rest is closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use cnet_tap::unix;
use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::UnixStream;

use super::MAX_DESCRIPTORS;

/// Bytes that one read takes at most.
const READ_SIZE: usize = 8192;

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

    fn poll_receive(&self, context: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let read = self.stream.try_io(Interest::READABLE, || {
                receive(self.stream.as_fd(), space, &self.received)
            });
            match read {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
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

impl Read for DescriptorStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut space = [0; READ_SIZE];
        let length = buffer.remaining().min(READ_SIZE);
        let length = ready!(self.poll_receive(context, &mut space[..length]))?;
        buffer.put_slice(&space[..length]);
        Poll::Ready(Ok(()))
    }
}

impl Write for DescriptorStream {
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
    use std::future::poll_fn;
    use std::io::Read;

    use super::*;

    async fn write(stream: &mut DescriptorStream, bytes: &[u8]) {
        let written = poll_fn(|context| Pin::new(&mut *stream).poll_write(context, bytes)).await;
        assert_eq!(written.unwrap(), bytes.len());
    }

    async fn read(stream: &DescriptorStream, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let mut space = [0; 100];
            let left = length - bytes.len();
            let received = poll_fn(|context| stream.poll_receive(context, &mut space[..left]));
            let received = received.await.unwrap();
            bytes.extend_from_slice(&space[..received]);
        }
        bytes
    }

    #[tokio::test]
    async fn descriptors_cross_with_the_first_bytes_and_no_others() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sender = DescriptorStream::new(one, vec![writer.into()]);
        let receiver = DescriptorStream::new(other, vec![]);
        write(&mut sender, b"hello").await;
        write(&mut sender, b" again").await;
        assert_eq!(read(&receiver, 11).await, b"hello again");
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
        let receiver = DescriptorStream::new(other, vec![]);
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for _ in 0..3 {
            send(one.as_fd(), b"x", &[null(), null(), null()]).unwrap();
        }
        read(&receiver, 3).await;
        assert_eq!(receiver.received().take().len(), MAX_DESCRIPTORS);
    }
}
