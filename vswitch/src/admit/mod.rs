//! What a container may say: the checks on a frame before it is forwarded, a file a question.
//!
//! - [`source`]: are the addresses that it speaks with, and for, the port's own?
//! - [`rogue`]: is it a service that only the gateway offers?
//! - [`rules`]: do policies allow it to go to that container? With [`crate::conntrack`], which knows answers.
//!
//! Every frame of every container passes here, whoever it is for. Who may open a conversation with the
//! host and the world is policy's to say (`nat/src/policy`).
//!
//! # Limits
//!
//! A fragment after the first shows no ports or types; without its first fragment, which does, it
//! completes nothing.

mod rogue;
pub(crate) mod rules;
mod source;

use std::net::IpAddr;

use cnet_wire::drops::DropReason;
use cnet_wire::frame::{Frame, L3, protocol};

pub(crate) use source::Source;

/// Lets the frame in that came from `source`, or says why not. Learns its sources.
#[inline]
pub(crate) fn admit(source: &mut Source<'_>, frame: &Frame<'_>) -> Result<(), DropReason> {
    let ip = match &frame.l3 {
        L3::Arp => return source.admit_arp(frame),
        L3::Ip(ip) => ip,
    };
    source.admit_packet(frame.src, ip.src)?;
    // Ports and types are in the first fragment.
    if ip.protocol == protocol::TCP || ip.fragment.is_some_and(|f| f.offset > 0) {
        return Ok(());
    }
    if !source.port.config.offers_services {
        rogue::refuse(frame, ip)?;
    }
    match (ip.protocol, ip.src) {
        (protocol::ICMPV6, IpAddr::V6(_)) => source.admit_icmpv6(frame, ip),
        _ => Ok(()),
    }
}
