//! What the TCP flows of one worker did. A segment from a container that is refused is counted by the
//! caller, under the [`DropReason`](cnet_wire::DropReason) returned, and not here.

counters! {
    /// TCP, since the start of the worker.
    TcpCounters {
        /// Flows opened by containers.
        opened = "opened",
        /// Flows opened through published ports.
        accepted = "accepted",
        /// Flows that ended to make room for others: half-open ones, and those whose container was
        /// gone.
        evicted = "evicted",
        /// Connections refused because the port, or the table, has as many flows as it may.
        refused = "refused",
        /// Connects that the host's kernel did not complete.
        connect_failures = "connect_failures",
        /// Flows that ended with a RST to the container.
        resets = "resets",
        /// Segments and super-frames sent to containers again.
        retransmissions = "retransmissions",
        /// Retransmission timeouts.
        timeouts = "timeouts",
    }
}
