//! Services that only the gateway offers: router advertisements (CVE-2020-13401, CVE-2020-10749),
//! DHCP servers' messages and redirects stop here.

use std::net::IpAddr;

use cnet_wire::dhcp;
use cnet_wire::drops::DropReason;
use cnet_wire::frame::{Frame, IpHeader, protocol};
use cnet_wire::icmp::{v4, v6};

/// Refuses messages that no container sends: `ip` of `frame` is no later fragment.
pub(super) fn refuse(frame: &Frame<'_>, ip: &IpHeader) -> Result<(), DropReason> {
    let kind = || frame.l4(ip).first().copied();
    let is_rogue = match (ip.protocol, ip.src) {
        (protocol::UDP, src) => {
            // Only a server writes to a client's port.
            let client = match src {
                IpAddr::V4(_) => dhcp::v4::CLIENT_PORT,
                IpAddr::V6(_) => dhcp::v6::CLIENT_PORT,
            };
            frame.ports(ip).is_some_and(|[_, to]| to == client)
        }
        (protocol::ICMP, IpAddr::V4(_)) => {
            matches!(kind(), Some(v4::REDIRECT | v4::ROUTER_ADVERTISEMENT))
        }
        (protocol::ICMPV6, IpAddr::V6(_)) => {
            matches!(kind(), Some(v6::ROUTER_ADVERTISEMENT | v6::REDIRECT))
        }
        _ => false,
    };
    if is_rogue {
        return Err(DropReason::RogueService);
    }
    Ok(())
}
