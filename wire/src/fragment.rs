//! What both families ask of a fragment.

use crate::drops::DropReason;
use crate::icmp;
use crate::ip::{Fragment, protocol};
use crate::tcp::{self, TCP_HEADER_LEN};
use crate::udp::UDP_HEADER_LEN;

/// Whether `l4`, the data of a datagram's first fragment, holds the whole transport header
/// (RFC 1858 section 3, RFC 7112). Unknown protocols need only be there.
fn transport_header_whole(protocol: u8, l4: &[u8]) -> bool {
    let needed = match protocol {
        protocol::TCP => tcp::header_len(l4).map_or(usize::MAX, |len| len.max(TCP_HEADER_LEN)),
        protocol::UDP => UDP_HEADER_LEN,
        protocol::ICMP | protocol::ICMPV6 => icmp::HEADER_LEN,
        _ => 1,
    };
    l4.len() >= needed
}

/// Checks a fragment: `header` bytes of the reassembled packet stand
/// before the fragmented part, `data` is this fragment's own.
pub(crate) fn check_fragment(
    fragment: Fragment,
    protocol: u8,
    header: usize,
    data: &[u8],
) -> Result<(), DropReason> {
    let offset = fragment.offset as usize;
    // Only the last fragment may end off an eight-byte boundary (RFC 791 section 3.2).
    let ragged = fragment.more && !data.len().is_multiple_of(8);
    let past_end = header + offset + data.len() > usize::from(u16::MAX);
    let tiny = if offset == 0 {
        !transport_header_whole(protocol, data)
    } else {
        // A later fragment that would rewrite the TCP header (RFC 1858 section 4, RFC 3128).
        protocol == protocol::TCP && offset < TCP_HEADER_LEN
    };
    if ragged || past_end || tiny || data.is_empty() {
        return Err(DropReason::BadFragment);
    }
    Ok(())
}
