//! The effects of the core, in one bundle.

use cnet_wire::FrameSink;

use crate::host::HostSockets;

/// Where frames go, the host's sockets, and a buffer of at least
/// [`FRAME_BUFFER_LEN`](cnet_wire::headers::FRAME_BUFFER_LEN) bytes in which outgoing frames are built.
pub struct Io<'a, S, H> {
    /// Frames to ports.
    pub sink: &'a mut S,
    /// Socket operations.
    pub hosts: &'a mut H,
    /// Scratch space for one frame; its contents mean nothing between calls.
    pub buf: &'a mut [u8],
}

impl<S: FrameSink, H: HostSockets> Io<'_, S, H> {
    /// A shorter borrow of the same bundle, to hand down.
    pub fn reborrow(&mut self) -> Io<'_, S, H> {
        Io {
            sink: self.sink,
            hosts: self.hosts,
            buf: self.buf,
        }
    }
}
