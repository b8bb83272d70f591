//! How one round of a worker is bounded: every bound on what is done in one go, and the reason for it.
//!
//! A worker repeats a round: it waits, acts on events, gives spliced connections and ports their
//! turns, and acts on deadlines. No part of a round may starve another, so each
//! part that containers or clients can lengthen is bounded, and what is left over waits its turn.
//!
//! | part of a round | bound | what is left over |
//! |---|---|---|
//! | events of sockets and devices | [`EVENTS`] fetched at once | stays in the kernel's ready list |
//! | receiving from one datagram socket | the core's (`cnet_nat::router`) | waits in the core's backlog |
//! | accepting from one listener | [`ACCEPTS_A_ROUND`] | all listeners go on in the next round |
//! | spliced connections | [`SPLICE_TURNS_A_ROUND`] turns of [`SPLICE_TURN_LEN`] bytes a direction | queue of connections |
//! | ports | [`PORT_TURNS_A_ROUND`] turns of one [`Batch`] | queue of ports |
//! | frames that another worker handed over | one [`Batch`] a worker | the worker wakes itself |
//!
//! A port stands in its queue at most once, and so does a connection: a sender's part of a round
//! does not grow with what it sends.
//!
//! Commands have no bound of their own: all that wait are carried out when the worker is woken. No
//! container sends them. The program waits for the answer to nearly each, and answers of the DNS
//! service are no more than the queries that were asked.
//!
//! # Why a batch is as long as it is
//!
//! The core acknowledges TCP, and sends datagrams it has gathered, at the end of a batch. A longer
//! batch means fewer acknowledgements and fewer system calls; a shorter one means that a sender whose
//! window is full waits less. Small frames cost a system call and a look-up each, so [`BATCH_FRAMES`]
//! of them pass before acknowledging. A super-frame of 64 KiB costs its copies: [`BATCH_LARGE`] of
//! them are half a megabyte, and longer batches were measured to be no faster. A frame that is
//! flooded costs a write to every port: [`BATCH_WRITES`] bounds those, so that a broadcaster's turn is
//! as short as anyone's. Four times as many left neighbours a quarter of their stream and less beside
//! 20,000 broadcasts a second (`tests/hostile/shares.rs`).

/// Events fetched by one epoll_wait(2).
pub(crate) const EVENTS: usize = 128;

/// Frames of a batch.
pub(crate) const BATCH_FRAMES: usize = 64;
/// Of them, frames of more than [`SMALL_FRAME`] bytes.
pub(crate) const BATCH_LARGE: usize = 8;
/// Frames written that end a batch as well: as many as it may have frames, each of which is written
/// once as a rule.
pub(crate) const BATCH_WRITES: u64 = BATCH_FRAMES as u64;
/// A frame of at most so many bytes, virtio-net header included, is small: its look-up costs more
/// than its copies, so it may wait to be looked up beside others.
pub(crate) const SMALL_FRAME: usize = 2048;
/// Turns of ports in a round: with more, events of sockets would wait too long for theirs.
pub(crate) const PORT_TURNS_A_ROUND: usize = 8;

/// Connections accepted from one listener in a round. A flood at one listener holds no other up.
pub(crate) const ACCEPTS_A_ROUND: usize = 64;

/// Turns of spliced connections in a round.
pub(crate) const SPLICE_TURNS_A_ROUND: usize = 8;
/// Bytes that one direction of a spliced connection moves in a turn.
pub(crate) const SPLICE_TURN_LEN: usize = 256 * 1024;

/// What one batch of frames has used of its bounds.
#[derive(Debug)]
pub(crate) struct Batch {
    frames: usize,
    large: usize,
    /// Frames that all ports had been given before.
    emitted_before: u64,
}

impl Batch {
    /// A batch that starts when `emitted` frames were written. That counter wraps.
    pub(crate) fn start(emitted: u64) -> Batch {
        Batch {
            frames: 0,
            large: 0,
            emitted_before: emitted,
        }
    }

    /// Counts a frame of `len` bytes, virtio-net header included.
    pub(crate) fn count(&mut self, len: usize) {
        self.frames += 1;
        self.large += usize::from(len > SMALL_FRAME);
    }

    /// Whether another frame may follow, now that `emitted` frames were written.
    pub(crate) fn has_room(&self, emitted: u64) -> bool {
        self.frames < BATCH_FRAMES
            && self.large < BATCH_LARGE
            && emitted.wrapping_sub(self.emitted_before) < BATCH_WRITES
    }

    /// Whether there was no frame yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_at_each_of_its_bounds() {
        let counted = |frames: usize, len: usize| {
            let mut batch = Batch::start(u64::MAX);
            (0..frames).for_each(|_| batch.count(len));
            batch
        };
        let emitted = |n: u64| u64::MAX.wrapping_add(n);
        assert!(counted(BATCH_FRAMES - 1, SMALL_FRAME).has_room(emitted(0)));
        assert!(!counted(BATCH_FRAMES, SMALL_FRAME).has_room(emitted(0)));
        assert!(counted(BATCH_LARGE - 1, SMALL_FRAME + 1).has_room(emitted(0)));
        assert!(!counted(BATCH_LARGE, SMALL_FRAME + 1).has_room(emitted(0)));
        assert!(counted(1, 60).has_room(emitted(BATCH_WRITES - 1)));
        assert!(!counted(1, 60).has_room(emitted(BATCH_WRITES)));
        assert!(counted(0, 0).is_empty() && !counted(1, 0).is_empty());
    }
}
