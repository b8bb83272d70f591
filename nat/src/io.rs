//! The effects of the core, in one bundle, and the one calling convention of this crate: whatever
//! may send a frame or touch a socket takes `io: &mut Io<'_, E>`.

use cnet_wire::FrameSink;

use crate::host::HostSockets;

/// What surrounds the core, as types: the shell, the simulation and the tests each have one.
///
/// A pair of a [`FrameSink`] and [`HostSockets`] is an environment, so callers need not name a type for
/// it.
pub trait Env {
    /// Takes frames to ports.
    type Sink: FrameSink;
    /// The host's sockets.
    type Hosts: HostSockets;
}

impl<S: FrameSink, H: HostSockets> Env for (S, H) {
    type Sink = S;
    type Hosts = H;
}

/// Where frames go, the host's sockets, and a buffer of at least
/// [`FRAME_BUFFER_LEN`](cnet_wire::headers::FRAME_BUFFER_LEN) bytes in which outgoing frames are built.
pub struct Io<'a, E: Env> {
    /// Frames to ports.
    pub sink: &'a mut E::Sink,
    /// Socket operations.
    pub hosts: &'a mut E::Hosts,
    /// Scratch space for one frame; its contents mean nothing between calls.
    pub buf: &'a mut [u8],
}

impl<'a, S: FrameSink, H: HostSockets> Io<'a, (S, H)> {
    /// The bundle of `sink`, `hosts` and the frame buffer `buf`.
    #[inline]
    pub fn new(sink: &'a mut S, hosts: &'a mut H, buf: &'a mut [u8]) -> Self {
        Io { sink, hosts, buf }
    }
}
