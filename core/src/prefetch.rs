//! Several frames, or several sockets' events, at a time: for networks with more flows than a
//! processor's caches hold.
//!
//! The router reads the flows of a whole batch side by side before the first packet of it is handled
//! ([`cnet_nat::router::Router::prefetch`]). With fewer flows than fill the caches nothing of this is
//! done.

use cnet_nat::flow::PREFETCH_DEPTH;
use cnet_nat::host::Token;
use cnet_wire::{DropReason, Frame, PortId};

use crate::Network;

impl Network {
    /// Whether there are so many flows that to hand over several frames at a time is of use.
    pub fn prefetches(&self) -> bool {
        self.router.prefetches()
    }

    /// Parses `frames`, of which the first [`PREFETCH_DEPTH`] count, and reads their flows.
    #[inline]
    pub(crate) fn prefetch<'a>(
        &self,
        frames: &[(PortId, &'a [u8])],
    ) -> [Result<Frame<'a>, DropReason>; PREFETCH_DEPTH] {
        let mut parsed = [Err(DropReason::FrameTooShort); PREFETCH_DEPTH];
        for (parsed, (_, bytes)) in parsed.iter_mut().zip(frames) {
            *parsed = Frame::parse(bytes, self.mtu);
        }
        let whole = frames.iter().zip(&parsed);
        self.router
            .prefetch(whole.filter_map(|(&(port, _), frame)| Some((port, frame.as_ref().ok()?))));
        parsed
    }

    /// Reads the flows of sockets that are ready, of which the first [`PREFETCH_DEPTH`] count, ahead of
    /// [`Network::handle_socket`] for each.
    pub fn prefetch_sockets(&self, tokens: impl Iterator<Item = Token>) {
        self.router.prefetch_sockets(tokens);
    }
}
