//! TCP: the container's connection spliced to a socket of the host.
//!
//! # Theory of operation
//!
//! There are two TCPs already, the container's kernel and the host's, and both are better than a
//! third would be. This engine speaks just enough TCP on the TAP to carry bytes, windows,
//! acknowledgements and ends between them.
//!
//! - **Open, outwards.** A SYN asks policy, enters the table and starts a non-blocking connect.
//!   The container hears nothing until the host's kernel knows: connected is a SYN/ACK, refused a
//!   RST, unreachable an ICMP error. When the host's connect times out nothing is said either: no
//!   ICMP error means ETIMEDOUT, and the container's own kernel, whose SYNs go unanswered, says
//!   just that. **Inwards**, an accepted client becomes a SYN with the client's own address.
//! - **Container to host** ([`receive`]): payload goes from the frame into the socket.
//! - **Host to container** ([`transmit`]): bytes are peeked from the socket, and discarded there
//!   when the container acknowledged them. A flow with much to send goes on in the `backlog`.
//! - **Ends.** A FIN of either side becomes the other side's FIN once all bytes before it are
//!   through; a RST of either side resets the other. The flow is over when both FINs are
//!   acknowledged. There is no TIME-WAIT here: whichever kernel closed first keeps it.
//!
//! # What an ACK means
//!
//! That the host's kernel has the bytes, or that they are in the flow's unsent buffer (see
//! [`receive`]); of the last segment and of a FIN, that the far end has all ([`acknowledge`]). To wait
//! with all of it would tie the container's window to the far round trip. If the far end resets, the
//! container gets the RST, as with any proxy.
//!
//! # Time and limits
//!
//! One deadline a flow ([`flow`]). An established flow that is silent for
//! [`TcpConfig::established_timeout`] is probed and ends only if the container does not answer. When
//! a port has as many flows as it may (`quotas`), a mapping of UDP or echo of the same port that was
//! idle for a while makes room (the router sees to that), then the port's oldest flow whose handshake is not done, and
//! then the oldest one whose container is gone (`orphan`); an established flow never does, nor does one
//! of another port.
//!
//! # What is left out
//!
//! Timestamps, ECN and urgent data: the link is local, urgent bytes are passed in line. Segments
//! out of order are not kept (the TAP keeps order).

use std::net::IpAddr;

use cnet_wire::time::Duration;

use crate::flow::FlowBudget;

/// Runs one flow operation with the parts of [`TcpSessions`] that it needs. The caller then calls
/// [`TcpSessions::settle`], which frees a flow that has ended or updates its timer.
macro_rules! with_flow {
    ($self:ident, $handle:expr, $now:expr, $io:expr, |$flow:ident, $cx:ident| $body:expr) => {{
        let TcpSessions {
            config,
            flows,
            unsent,
            counters,
            torn,
            ..
        } = &mut *$self;
        let operation = || {
            flows.entry_mut($handle).map(|(ends, $flow)| {
                let mut cx = $crate::tcp::flow::Cx {
                    now: $now,
                    io: $io,
                    route: cnet_wire::tcp::Route::from(ends),
                    config,
                    unsent,
                    counters,
                };
                let $cx = &mut cx;
                $body
            })
        };
        $crate::in_hand::with_in_hand(torn, $handle, operation)
    }};
}

mod acknowledge;
mod alarm;
mod congestion;
mod counters;
mod emit;
pub mod flow;
mod held;
mod isn;
mod open;
mod orphan;
mod quota;
mod receive;
mod recover;
mod rto;
mod rto_queue;
mod session;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transmit;
mod unsent;

pub use counters::TcpCounters;
pub use table::TcpSessions;

/// Limits and timeouts.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// IP MTU of the link, in bytes.
    pub mtu: usize,
    /// Flows in the table.
    pub max_flows: usize,
    /// Flows of one port.
    pub max_flows_per_port: usize,
    /// Flows of every protocol, of all workers.
    pub budget: FlowBudget,
    /// Silence after which an established flow is probed; at least 2 h 4 min (RFC 5382, REQ-5).
    pub established_timeout: Duration,
    /// Silence after which a half-open or half-closed flow is probed or dropped; at least 4 min.
    pub transitory_timeout: Duration,
    /// Bytes all unsent buffers together may hold.
    pub unsent_limit: usize,
    /// Connect from the host's port of the same number as the container's, where it can be had.
    pub keep_ports: bool,
    /// Source of ICMP errors, and what a client on the host's loopback looks like.
    pub gateway_v4: Option<IpAddr>,
    /// The same for IPv6.
    pub gateway_v6: Option<IpAddr>,
}

impl Default for TcpConfig {
    fn default() -> Self {
        TcpConfig {
            mtu: 1500,
            max_flows: 200_000,
            max_flows_per_port: usize::MAX,
            budget: FlowBudget::default(),
            established_timeout: Duration::from_secs(2 * 3600 + 4 * 60),
            transitory_timeout: Duration::from_secs(240),
            unsent_limit: 64 << 20,
            keep_ports: false,
            gateway_v4: None,
            gateway_v6: None,
        }
    }
}

impl TcpConfig {
    /// Our address in the family of `a`.
    fn gateway(&self, a: IpAddr) -> Option<IpAddr> {
        if a.is_ipv4() {
            self.gateway_v4
        } else {
            self.gateway_v6
        }
    }
}
