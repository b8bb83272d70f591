//! The ports of a switch, for tests: where the core's frames go.

use std::hint::black_box;

use cnet_wire::{FrameSink, PortFull, PortId};

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
