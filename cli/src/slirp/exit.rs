//! The exit descriptor (`--exit-fd`).
//!
//! As slirp4netns has it, which polls for POLLHUP: a hang-up, an error, or a number that stands for no
//! open descriptor is the end; data that arrives is not, and neither is the other side's end of
//! writing (shutdown(2)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use cnet_tap::async_fd::AsyncOwnedFd;
use cnet_tap::inherited_fd;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::io::Errno;
use tokio::io::Interest;

/// What the caller gave.
#[derive(Debug)]
pub(super) enum ExitFd {
    /// No `--exit-fd`.
    Absent,
    /// One that is not open.
    Closed,
    /// One to watch.
    Open(OwnedFd),
}

impl ExitFd {
    /// Takes over the descriptor `number`, if one was given.
    pub(super) fn take(number: Option<i32>) -> ExitFd {
        match number.map(inherited_fd::take) {
            None => ExitFd::Absent,
            Some(Err(_)) => ExitFd::Closed,
            Some(Ok(fd)) => ExitFd::Open(fd),
        }
    }

    /// Waits until `listener` is readable; `false` if the caller went first.
    ///
    /// # Errors
    ///
    /// What poll(2) says.
    pub(super) fn allows_waiting_for(&self, listener: &impl AsFd) -> io::Result<bool> {
        let mut watched = vec![PollFd::new(listener, PollFlags::IN)];
        match self {
            ExitFd::Absent => {}
            ExitFd::Closed => return Ok(false),
            ExitFd::Open(fd) => watched.push(PollFd::new(fd, PollFlags::empty())),
        }
        loop {
            match poll(&mut watched, None) {
                Ok(_) => return Ok(watched.get(1).is_none_or(|exit| exit.revents().is_empty())),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The end of the caller, waited for.
#[derive(Debug)]
pub(super) struct ExitEvent(Watched);

#[derive(Debug)]
enum Watched {
    Nothing,
    Closed,
    Fd {
        event: AsyncOwnedFd,
        /// What the event is of, kept open.
        _exit: OwnedFd,
    },
}

impl ExitEvent {
    /// # Errors
    ///
    /// When it cannot be watched.
    pub(super) fn new(exit: ExitFd) -> anyhow::Result<ExitEvent> {
        let watched = match exit {
            ExitFd::Absent => Watched::Nothing,
            ExitFd::Closed => Watched::Closed,
            ExitFd::Open(fd) => match hang_up_of(&fd) {
                Ok(epoll) => {
                    let event = AsyncOwnedFd::new(epoll, Interest::READABLE);
                    Watched::Fd {
                        event: event.context("cannot wait for exit-fd")?,
                        _exit: fd,
                    }
                }
                // A file, or /dev/null: nothing ever happens to those.
                Err(Errno::PERM) => Watched::Nothing,
                Err(error) => return Err(error).context("cannot wait for exit-fd"),
            },
        };
        Ok(ExitEvent(watched))
    }

    pub(super) async fn wait(&self) {
        match &self.0 {
            Watched::Nothing => std::future::pending().await,
            Watched::Closed => {}
            // An error is the event loop's own end.
            Watched::Fd { event, .. } => drop(event.ready().await),
        }
    }
}

/// An epoll instance that is readable once `fd` has hung up or failed, which epoll(7) reports whatever
/// is asked for. The event loop itself always asks for readability, of which a shutdown(2) is a case
/// that it never forgets.
fn hang_up_of(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let nothing = epoll::EventFlags::empty();
    epoll::add(&epoll, fd, epoll::EventData::new_u64(0), nothing)?;
    Ok(epoll)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn ends(event: &ExitEvent) -> bool {
        timeout(Duration::from_millis(50), event.wait())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn hang_up_is_the_end_and_data_is_not() {
        let (ours, mut caller) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let event = ExitEvent::new(ExitFd::Open(ours.into())).unwrap();
        assert!(!ends(&event).await);
        caller.write_all(b"data").unwrap();
        assert!(!ends(&event).await);
        caller.shutdown(Shutdown::Write).unwrap();
        assert!(!ends(&event).await);
        drop(caller);
        assert!(ends(&event).await);
    }

    #[tokio::test]
    async fn a_pipe_without_its_other_end_is_the_end() {
        let (reader, writer) = io::pipe().unwrap();
        let [reading, writing] = [OwnedFd::from(reader), OwnedFd::from(writer)];
        let of_reader = ExitEvent::new(ExitFd::Open(reading.try_clone().unwrap())).unwrap();
        assert!(!ends(&of_reader).await);
        drop(writing);
        assert!(ends(&of_reader).await);
        let (reader, writer) = io::pipe().unwrap();
        let of_writer = ExitEvent::new(ExitFd::Open(writer.into())).unwrap();
        assert!(!ends(&of_writer).await);
        drop(reader);
        assert!(ends(&of_writer).await);
    }

    #[tokio::test]
    async fn what_is_not_open_ends_at_once_and_what_is_not_given_never() {
        assert!(matches!(ExitFd::take(Some(1_000_000)), ExitFd::Closed));
        assert!(ends(&ExitEvent::new(ExitFd::Closed).unwrap()).await);
        assert!(!ends(&ExitEvent::new(ExitFd::Absent).unwrap()).await);
    }
}
