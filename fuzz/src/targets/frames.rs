//! Targets whose input is a sequence of frames and of what happens between them.
//!
//! The first byte has the [`Settings`]. Each [`Record`] is a step; its
//! operation's low bits say which, and the rest how it is taken.

use cnet_testkit::{frames, offload};
use cnet_wire::time::Duration;
use cnet_wire::vnet::VNET_HDR_LEN;

use super::network::{NEIGHBOUR, Network, PORT, Settings};
use crate::mutate::{Record, parse};

/// What happens: a frame of the container for any other value.
const KIND: u8 = 7;
/// A frame of the other container.
pub const FROM_NEIGHBOUR: u8 = 3;
/// So many milliseconds pass, two bytes.
pub const TIME: u8 = 4;
/// A client comes to a published port, over IPv6 if the first byte is odd.
pub const CLIENT: u8 = 5;
/// The container goes and comes again.
pub const REPLUG: u8 = 6;

/// This frame's checksums are completed.
pub const COMPLETE: u8 = 1 << 3;
/// Its acknowledgement number and its SACK blocks count from the far end's first sequence number,
/// which is not known when an input is made.
pub const RELATIVE: u8 = 1 << 4;

/// What passes between two steps.
const PAUSE: Duration = Duration::from_millis(1);

/// Runs the steps of an input.
pub fn any(input: &[u8]) {
    let (settings, records) = parse(input);
    let settings = Settings(settings);
    let mut network = Network::new(settings);
    for record in &records {
        step(&mut network, settings, record);
    }
    network.finish(settings);
}

/// As [`any`]; the invariants of the switch are checked by the network's sink in all of them.
pub fn switch(input: &[u8]) {
    any(input);
}

fn step(network: &mut Network, settings: Settings, record: &Record) {
    let bytes = &record.bytes;
    match record.operation & KIND {
        TIME => {
            let millis = bytes
                .first_chunk()
                .map_or(1, |&two| u16::from_be_bytes(two));
            network.pass(Duration::from_millis(millis.into()));
        }
        CLIENT => network.accept(bytes.first().is_some_and(|byte| byte & 1 == 1)),
        REPLUG => network.replug(),
        kind => {
            let mut frame = bytes.clone();
            let complete = settings.has(Settings::COMPLETE) || record.operation & COMPLETE != 0;
            if complete {
                complete_checksums(&mut frame);
            }
            if record.operation & RELATIVE != 0 {
                make_absolute(network, &mut frame);
            }
            let port = match kind {
                FROM_NEIGHBOUR => NEIGHBOUR,
                _ => PORT,
            };
            network.frame(port, &frame);
        }
    }
    network.pass(PAUSE);
    while let Some(query) = network.query() {
        let mut answer = query.message;
        if let Some(flags) = answer.get_mut(2) {
            *flags |= 0x80;
        }
        network.answer(query.id, &answer);
    }
    network.sent(PORT);
}

fn complete_checksums(frame: &mut [u8]) {
    frames::complete_ip(frame);
    if frame.len() > VNET_HDR_LEN {
        offload::complete_checksum(&mut frame[VNET_HDR_LEN..]);
    }
}

/// Makes a segment's acknowledgement number and SACK blocks absolute, and its checksum right.
fn make_absolute(network: &Network, frame: &mut [u8]) {
    let Some(plain) = frame.get_mut(VNET_HDR_LEN..) else {
        return;
    };
    let Ok(at) = offload::tcp_at(plain) else {
        return;
    };
    let ports = |i: usize| u16::from_be_bytes([plain[at.l4 + i], plain[at.l4 + i + 1]]);
    let base = network.base((ports(0), ports(2)));
    let mut shift = |place: usize| {
        if let Some(four) = plain.get_mut(place..place + 4)
            && let Ok(old) = <[u8; 4]>::try_from(&*four)
        {
            let new = u32::from_be_bytes(old).wrapping_add(base);
            four.copy_from_slice(&new.to_be_bytes());
        }
    };
    shift(at.l4 + 8);
    for place in sack_edges(frame, VNET_HDR_LEN + at.l4 + 20, VNET_HDR_LEN + at.payload) {
        if let Some(four) = frame.get_mut(place..place + 4)
            && let Ok(old) = <[u8; 4]>::try_from(&*four)
        {
            let new = u32::from_be_bytes(old).wrapping_add(base);
            four.copy_from_slice(&new.to_be_bytes());
        }
    }
    offload::complete_checksum(&mut frame[VNET_HDR_LEN..]);
}

/// Where the edges of SACK blocks stand among the options in `from..to` (RFC 2018).
fn sack_edges(frame: &[u8], from: usize, to: usize) -> Vec<usize> {
    let mut edges = Vec::new();
    let mut at = from;
    while at < to {
        let (kind, len) = (frame[at], frame.get(at + 1).copied().map_or(0, usize::from));
        match kind {
            0 => break,
            1 => at += 1,
            _ if len < 2 || at + len > to => break,
            5 => {
                edges.extend((at + 2..at + len).step_by(4));
                at += len;
            }
            _ => at += len,
        }
    }
    edges
}
