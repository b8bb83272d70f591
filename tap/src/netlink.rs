//! rtnetlink's messages and their bytes (netlink(7)).

use std::io;
use std::iter;

use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

/// One request, numbered `sequence`.
pub(crate) fn request(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

/// The messages in one datagram that answer request `sequence`. One that cannot be read is an error,
/// and the caller's last.
pub(crate) fn answers(
    mut datagram: &[u8],
    sequence: u32,
) -> impl Iterator<Item = io::Result<NetlinkPayload<RouteNetlinkMessage>>> {
    let next = move || {
        if datagram.is_empty() {
            return None;
        }
        let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram);
        let length = read
            .as_ref()
            .map_or(datagram.len(), |message| message.header.length as usize);
        // Messages are padded to four bytes (NLMSG_ALIGN).
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(read.map_err(io::Error::other))
    };
    iter::from_fn(next)
        .filter(move |read| {
            let number = read.as_ref().map(|message| message.header.sequence_number);
            number.map_or(true, |number| number == sequence)
        })
        .map(|read| read.map(|message| message.payload))
}
