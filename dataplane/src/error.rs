//! Why a network does not start, and why one ends.

use std::io;

use crate::MAX_WORKERS;

/// Why a network does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The number of workers is out of range.
    #[error("a network has 1 to {MAX_WORKERS} workers, not {0}")]
    Workers(u16),
    /// The process may have too few descriptors.
    #[error(
        "the limit of open files is {limit}, and a network needs at least {least}: raise it, with `ulimit -Hn` and `ulimit -n`, or LimitNOFILE= of a systemd service"
    )]
    Descriptors {
        /// How many it may have.
        limit: usize,
        /// How many are needed.
        least: usize,
    },
    /// No randomness for keys.
    #[error("cannot get random bytes from the kernel")]
    Random(#[source] getrandom::Error),
    /// No descriptor for a worker's wake-ups.
    #[error("cannot make an eventfd")]
    EventFd(#[source] io::Error),
    /// No thread.
    #[error("cannot start a worker thread")]
    Thread(#[source] io::Error),
}

/// A worker thread has panicked.
#[derive(Debug, thiserror::Error)]
#[error("a worker thread failed")]
pub struct WorkerPanicked;

/// Why a worker ends although it was not stopped. The text, cause included, is what
/// [`Dataplane::ended`](crate::Dataplane::ended) tells.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    #[error("cannot make an epoll instance: {0}")]
    Epoll(io::Error),
    #[error("cannot watch the command channel: {0}")]
    WatchCommands(io::Error),
    #[error("epoll_wait failed: {0}")]
    Wait(io::Error),
    /// It panicked, and could not go on.
    #[error("a defect of the program could not be contained")]
    Defect,
    /// Another worker has failed, and said why.
    #[error("{0}")]
    OtherWorker(String),
}
