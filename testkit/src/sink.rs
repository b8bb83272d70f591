//! The ports of a switch, for tests: where the core's frames go.
//!
//! [`NullSink`] takes everything and keeps nothing, for benchmarks; [`Kept`] keeps what goes to one
//! container, for unit tests.

use std::hint::black_box;

use cnet_wire::{FrameSink, PortFull, PortId};

use crate::independent::LINK;

/// Bytes kept of the last frame: all headers, and a small payload.
const KEPT: usize = 128;

/// Ports without end.
pub struct NullSink {
    /// Frames taken.
    pub frames: u64,
    /// Whether to keep the start of each frame in `last`.
    pub keep: bool,
    /// The start of the last frame.
    pub last: [u8; KEPT],
}

impl Default for NullSink {
    fn default() -> NullSink {
        NullSink {
            frames: 0,
            keep: false,
            last: [0; KEPT],
        }
    }
}

impl FrameSink for NullSink {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        black_box((port, frame));
        self.frames += 1;
        if self.keep {
            let n = frame.len().min(KEPT);
            self.last[..n].copy_from_slice(&frame[..n]);
        }
        Ok(())
    }
}

/// Keeps every frame to the one container ([`crate::independent::LINK`]); takes `room` of them if that
/// is set. A frame to another port panics.
#[derive(Debug, Default)]
pub struct Kept {
    /// The frames, virtio-net header first.
    pub frames: Vec<Vec<u8>>,
    /// How many are taken.
    pub room: Option<usize>,
}

impl FrameSink for Kept {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        assert_eq!(port, LINK.port);
        if self.room.is_some_and(|room| self.frames.len() >= room) {
            return Err(PortFull);
        }
        self.frames.push(frame.to_vec());
        Ok(())
    }
}
