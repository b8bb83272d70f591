//! What an ICMP error from a container quotes.
//!
//! A container's kernel answers a packet it cannot deliver with an ICMP error. The host's sockets
//! have no way to pass that on, so such an error is dropped whatever it says; but an honest one and
//! one made up to look like it (RFC 5927) are counted apart. An honest one quotes a packet that was
//! sent to the container: its destination is the container's own address, and a flow led there.

use cnet_wire::icmp;
pub use cnet_wire::icmp::Quote;
use cnet_wire::{DropReason, Frame, IpHeader};

/// Judges the ICMP or ICMPv6 message `ip` of `frame`, which is not an echo request. `owns` tells
/// whether a flow leads to where the quoted packet was sent.
pub(super) fn judge(
    frame: &Frame<'_>,
    ip: &IpHeader,
    owns: impl FnOnce(&Quote) -> bool,
) -> DropReason {
    let l4 = frame.l4(ip);
    let kind = l4.first().copied().unwrap_or_default();
    if !icmp::is_error(ip.protocol, kind) {
        return DropReason::NotServed;
    }
    // An honest error is sent by the end that the quoted packet was sent to.
    let quote = Quote::read(l4, ip.src.is_ipv6()).filter(|q| q.destination.ip() == ip.src);
    match quote.is_some_and(|quote| owns(&quote)) {
        true => DropReason::NotServed,
        false => DropReason::ForgedQuote,
    }
}
