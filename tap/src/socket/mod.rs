//! Socket calls that the standard library and rustix lack, as safe functions on descriptors.
//!
//! - [`tcp`]: peeking at a receive queue from an offset, discarding from its front, `TCP_INFO`.
//! - [`udp`]: datagrams with GRO and GSO, hop limit, type of service and local address.
//! - [`batch`]: many datagrams, of any flows, in one call.
//! - [`error_queue`]: what ICMP and the kernel said about what was sent.
//! - [`tunnel`]: the sockets of a tunnel's end.
//! - [`options`]: the socket options of both.
//! - `ancillary`: the control messages that datagrams and the error queue need.
//!
//! Nothing here waits: every call that could is made with `MSG_DONTWAIT`, whatever the socket's
//! own mode. `EINTR` cannot occur for such calls. Errors are the kernel's, unchanged.

pub(crate) mod ancillary;
pub mod batch;
pub mod diagnostics;
pub mod error_queue;
pub mod options;
pub mod tcp;
pub mod tunnel;
pub mod udp;

pub use batch::{BatchSpace, MAX_BATCH, Outgoing, recv_datagrams, send_datagrams};
pub use diagnostics::{BoundSocket, Diagnostics};
pub use error_queue::{
    ErrorOrigin, SocketErrorReport, disable_recverr, enable_recverr, recv_error,
};
pub use options::{
    bind_address_no_port, default_route_address, default_route_mtu, deliver_on_close, ping_socket,
    reset_on_close, set_dont_fragment, so_error, unacknowledged, unsent,
};
pub use tcp::{
    TcpInfo, peek_skipping, probe_far_end, recv_discard, recv_peek, save_syn, saved_syn,
    set_peek_off, supports_peek_off_tcp, tcp_info,
};
pub use tunnel::{lost_datagrams, open_tunnel, open_tunnel_to, route_mtu};
pub use udp::{
    Datagram, SendOptions, receive_details, receive_fields, recv_datagram, send_datagram,
    send_datagram_with, set_udp_gro,
};
