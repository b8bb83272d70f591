//! Frames read from TAPs that wait to be handled together.
//!
//! # Theory of operation
//! A frame is best handled as soon as it was read, from a buffer that stays in the processor's cache.
//! With more flows than that cache holds it is better to read a few first: then the network can look
//! all their flows up side by side ([`Network::handle_frames`]). So frames are read into one buffer,
//! each behind the one before it, and [`Frames::read`] tells when those that wait are to be handled:
//!
//! - at once, if the network does not look ahead;
//! - after a frame of more than [`SMALL_FRAME`] bytes: its copies cost more than its look-up, and the next
//!   one finds the same bytes of the buffer;
//! - when [`PREFETCH_DEPTH`] wait.
//!
//! The next frame is then read to the start of the buffer again, so bulk passes through the same
//! 64 KiB, or nearly so.
//!
//! # Invariants
//! Frames are handled in the order they were read in, whatever their size. No frame may wait while the
//! worker sleeps: [`Frames::hand_on`] ends every batch.

use std::io;
use std::ops::Range;

use cnet_core::Network;
use cnet_nat::flow::PREFETCH_DEPTH;
use cnet_nat::io::{Env, Io};
use cnet_wire::PortId;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::Instant;

use crate::budget::SMALL_FRAME;

/// What a read has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) struct ReadFrame {
    /// Bytes of the frame, virtio-net header included.
    pub len: usize,
    /// The frames that wait are to be handled now: call [`Frames::hand_on`].
    pub hand_on: bool,
}

/// Frames that were read and not handled yet.
#[derive(Debug)]
pub(crate) struct Frames {
    buf: Box<[u8]>,
    waiting: [(PortId, Range<usize>); PREFETCH_DEPTH],
    count: usize,
}

impl Frames {
    pub(crate) fn new() -> Frames {
        // All but the last that waits are small, and for that one a whole frame's room is left.
        let len = (PREFETCH_DEPTH - 1) * SMALL_FRAME + FRAME_BUFFER_LEN;
        Frames {
            buf: vec![0; len].into_boxed_slice(),
            waiting: std::array::from_fn(|_| (PortId(0), 0..0)),
            count: 0,
        }
    }

    /// Reads a frame that came in at `port` by `read`, which fills a buffer and tells the length.
    /// `gather` tells whether small frames are to wait for others.
    ///
    /// # Errors
    ///
    /// Those of `read`; the frames that wait are still there.
    #[inline]
    pub(crate) fn read(
        &mut self,
        port: PortId,
        gather: bool,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<ReadFrame> {
        let start = match self.count {
            0 => 0,
            n => self.waiting[n - 1].1.end,
        };
        let len = read(&mut self.buf[start..start + FRAME_BUFFER_LEN])?;
        self.waiting[self.count] = (port, start..start + len);
        self.count += 1;
        let full = self.count == PREFETCH_DEPTH;
        Ok(ReadFrame {
            len,
            hand_on: full || len > SMALL_FRAME || !gather,
        })
    }

    /// A call of [`Frames::hand_on`] has panicked at the frame of that place: gives it, with its port,
    /// and forgets the others that waited.
    pub(crate) fn give_up(&mut self, place: usize) -> Option<(PortId, &[u8])> {
        let count = std::mem::take(&mut self.count);
        let (port, range) = self.waiting[..count].get(place)?;
        Some((*port, &self.buf[range.clone()]))
    }

    /// Has `network` handle the frames that wait, if there are any.
    pub(crate) fn hand_on<E: Env>(
        &mut self,
        now: Instant,
        network: &mut Network,
        io: &mut Io<'_, E>,
    ) {
        if self.count == 0 {
            return;
        }
        let frames: [(PortId, &[u8]); PREFETCH_DEPTH] = std::array::from_fn(|i| {
            let (port, range) = &self.waiting[i];
            (*port, &self.buf[range.clone()])
        });
        network.handle_frames(now, &frames[..self.count], io);
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a frame of `len` bytes, all of them `byte`.
    fn read(frames: &mut Frames, byte: u8, len: usize, gather: bool) -> bool {
        let fill = |buf: &mut [u8]| {
            buf[..len].fill(byte);
            Ok(len)
        };
        let port = PortId(u32::from(byte));
        let read = frames.read(port, gather, fill).unwrap();
        assert_eq!(read.len, len);
        read.hand_on
    }

    fn waiting(frames: &Frames) -> Vec<(u32, Vec<u8>)> {
        let of =
            |(port, range): &(PortId, Range<usize>)| (port.0, frames.buf[range.clone()].into());
        frames.waiting[..frames.count].iter().map(of).collect()
    }

    #[test]
    fn a_frame_waits_only_where_that_is_of_use() {
        let mut frames = Frames::new();
        assert!(read(&mut frames, 1, 60, false));
        frames.count = 0;
        assert!(!read(&mut frames, 1, SMALL_FRAME, true));
        assert!(read(&mut frames, 2, SMALL_FRAME + 1, true));
        frames.count = 0;
        for n in 1..PREFETCH_DEPTH {
            assert!(!read(&mut frames, n as u8, 60, true));
        }
        assert!(read(&mut frames, 9, 60, true));
    }

    #[test]
    fn the_largest_frame_fits_behind_those_that_wait() {
        let mut frames = Frames::new();
        let mut all = Vec::new();
        for n in 1..=PREFETCH_DEPTH as u8 {
            let len = if usize::from(n) == PREFETCH_DEPTH {
                FRAME_BUFFER_LEN
            } else {
                SMALL_FRAME
            };
            let hand_on = read(&mut frames, n, len, true);
            assert_eq!(hand_on, len == FRAME_BUFFER_LEN);
            all.push((u32::from(n), vec![n; len]));
        }
        assert_eq!(waiting(&frames), all);
    }

    #[test]
    fn an_error_takes_nothing_away() {
        let mut frames = Frames::new();
        assert!(!read(&mut frames, 1, 60, true));
        let none = |_: &mut [u8]| Err(io::ErrorKind::WouldBlock.into());
        let error = frames.read(PortId(1), true, none).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!read(&mut frames, 2, 70, true));
        assert_eq!(waiting(&frames), [(1, vec![1; 60]), (2, vec![2; 70])]);
    }
}
