//! The pipes that spliced bytes pass through.
//!
//! splice(2) moves pages between a socket and a pipe without looking into them. A pipe is needed
//! only while there is something in it: a connection takes one from the pool when it has bytes to
//! move and gives it back empty, so that idle connections hold none and a busy one runs through
//! pipes whose rings are warm in the cache.

use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Bytes a pipe is asked to hold. It bounds what is on its way at once; a quarter of it is slower
/// (`benches/README.md`). The kernel gives less to a user who has many (`pipe-user-pages-soft`,
/// pipe(7)), down to a page.
const PIPE_LEN: usize = 1024 * 1024;

/// Empty pipes kept for the next connections that need one.
const SPARE: usize = 8;

/// A pipe, both ends non-blocking.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) reader: OwnedFd,
    pub(super) writer: OwnedFd,
    /// Bytes it holds at most.
    pub(super) len: usize,
    /// Pieces it holds at most: each fills a slot, of which there is one a page.
    pub(super) slots: usize,
}

/// Pipes that are empty.
#[derive(Debug, Default)]
pub(super) struct Pipes(Vec<Pipe>);

impl Pipes {
    /// An empty pipe.
    ///
    /// # Errors
    ///
    /// `EMFILE` and `ENFILE` at a limit of descriptors.
    pub(super) fn take(&mut self) -> rustix::io::Result<Pipe> {
        if let Some(pipe) = self.0.pop() {
            return Ok(pipe);
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused to who has too many; it works with what it has then.
        let _ = fcntl_setpipe_size(&writer, PIPE_LEN);
        let len = fcntl_getpipe_size(&writer)?;
        Ok(Pipe {
            reader,
            writer,
            len,
            slots: len / rustix::param::page_size(),
        })
    }

    /// Takes back a pipe, which must be empty.
    pub(super) fn give(&mut self, pipe: Pipe) {
        if self.0.len() < SPARE {
            self.0.push(pipe);
        }
    }
}
