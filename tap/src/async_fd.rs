//! Descriptors that the event loop waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A descriptor, registered with the current tokio runtime for as long as this lives.
#[derive(Debug)]
pub struct AsyncOwnedFd {
    fd: AsyncFd<OwnedFd>,
    interest: Interest,
}

impl AsyncOwnedFd {
    /// Registers `fd` for the events in `interest`.
    ///
    /// # Errors
    ///
    /// What epoll_ctl(2) says; `PermissionDenied` for files that have no events.
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<AsyncOwnedFd> {
        // SAFETY: the descriptor is open and stays so, because it is owned by what registers it,
        // which is private to this type and never exchanged; and it is always the same number.
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        let fd = registered.map_err(io::Error::from)?;
        Ok(AsyncOwnedFd { fd, interest })
    }

    /// Waits for an event.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    pub async fn ready(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.fd.ready(self.interest).await
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        self.fd.get_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_of_file_is_an_event() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let watched = AsyncOwnedFd::new(reader, Interest::READABLE).unwrap();
        drop(writer);
        watched.ready().await.unwrap().clear_ready();
        let mut byte = [0];
        assert_eq!(rustix::io::read(watched.fd(), &mut byte), Ok(0));
    }

    #[tokio::test]
    async fn a_file_without_events_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = AsyncOwnedFd::new(null.into(), Interest::READABLE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
