//! Frames out to peers.
//!
//! The segments of a super-frame are datagrams of one length, but for the last, so one call of
//! `UDP_SEGMENT` sends them all: a VXLAN header and the segment's own headers from a slot of
//! [`HeaderSlots`], then its payload from the frame as it was read. What a kernel or a path does not
//! take so is sent datagram by datagram.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::OwnedFd;

use cnet_tap::socket::send_datagram;
use cnet_tap::socket::udp::MAX_SEGMENTS;
use cnet_wire::segment::MAX_HEADERS;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vnet::VNET_HDR_LEN;
use cnet_wire::vxlan::{self, HEADER_LEN};
use cnet_wire::{DropReason, MacAddr, PortId, Segments};

use super::super::vm::Taken;
use super::{PeerCounters, Vxlan};

/// Bytes of one datagram, or of all that one call sends (udp(7): 65,535 less the headers of IPv4 and
/// UDP).
const MAX_SEND: usize = 65_507;
const SLOT: usize = HEADER_LEN + MAX_HEADERS;

/// Frames to many, or to a station not heard of yet, that go to all peers: this many a second, and as
/// many at once.
const FLOODS_A_SECOND: u64 = 1000;

/// A bucket of tokens: a flood takes one.
#[derive(Debug, Default)]
pub(super) struct FloodRate {
    /// When it would be full again.
    full_at: Instant,
}

impl FloodRate {
    const EACH: Duration = Duration::from_nanos(1_000_000_000 / FLOODS_A_SECOND);

    /// Whether another flood may be sent.
    fn allow(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now);
        let allowed = full_at.saturating_since(now) < FloodRate::EACH * FLOODS_A_SECOND as u32;
        if allowed {
            self.full_at = full_at + FloodRate::EACH;
        }
        allowed
    }
}

/// The headers of the segments that one call sends, each behind its VXLAN header.
#[derive(Debug)]
pub(super) struct HeaderSlots(Box<[u8]>);

impl HeaderSlots {
    pub(super) fn new() -> HeaderSlots {
        HeaderSlots(vec![0; MAX_SEGMENTS * SLOT].into_boxed_slice())
    }
}

impl Vxlan {
    /// Sends `frame`, which starts with a virtio-net header, cut to `mtu`, to the peer that its
    /// destination is behind, or to all.
    ///
    /// # Errors
    ///
    /// Why it was dropped: [`DropReason::PortFull`] is the caller's to count, others are counted.
    pub(crate) fn write(
        &mut self,
        now: Instant,
        frame: &[u8],
        mtu: usize,
    ) -> Result<Taken, DropReason> {
        let sent = self.try_write(now, frame, mtu);
        if let Err(reason) = sent
            && reason != DropReason::PortFull
        {
            self.count_drop(reason);
        }
        sent
    }

    fn try_write(&mut self, now: Instant, frame: &[u8], mtu: usize) -> Result<Taken, DropReason> {
        let segments = Segments::parse(frame, mtu)?;
        let ethernet = &frame[VNET_HDR_LEN..];
        // `Segments` has found a whole Ethernet header.
        let dst = MacAddr(*ethernet.first_chunk().ok_or(DropReason::FrameTooShort)?);
        let known = match dst.is_multicast() {
            true => None,
            false => self.stations.lookup(now, dst),
        };
        if known.is_none() && !self.rate.allow(now) {
            return Err(DropReason::RateLimit);
        }
        let entropy = vxlan::entropy(ethernet) as usize;
        let peers = match known {
            Some(PortId(number)) => self.peers.get_mut(number as usize..=number as usize),
            None => Some(&mut self.peers[..]),
        };
        let (peers, slots) = (peers.unwrap_or_default(), &mut self.slots.0);
        let train = Train::of(&segments);
        let mut taken = false;
        let (mut first, mut next) = (0, 0);
        segments.for_each(|headers, _| {
            // A frame that leaves as it came has its headers in the one piece with the rest.
            let own = &headers[..train.head - HEADER_LEN];
            let slot = &mut slots[(next - first) * SLOT..][..train.head];
            slot[..HEADER_LEN].copy_from_slice(&vxlan::header(self.vni));
            slot[HEADER_LEN..].copy_from_slice(own);
            next += 1;
            if next - first == train.at_once || next == train.count {
                for peer in peers.iter_mut() {
                    let socket = &peer.senders[entropy % peer.senders.len()];
                    let sent = train.send(socket, slots, first..next);
                    taken |= sent;
                    peer.counters
                        .count(sent, next - first, train.bytes(first..next));
                }
                first = next;
            }
        });
        match taken {
            true => Ok(Taken {
                frames: segments.count() as u64,
                bytes: segments.bytes() as u64,
            }),
            false => Err(DropReason::PortFull),
        }
    }
}

impl PeerCounters {
    fn count(&mut self, sent: bool, frames: usize, bytes: usize) {
        if sent {
            self.frames_out += frames as u64;
            self.bytes_out += bytes as u64;
        } else {
            self.lost += frames as u64;
        }
    }
}

/// The datagrams that a frame makes.
#[derive(Clone, Copy)]
struct Train<'a> {
    /// Bytes of VXLAN header and headers in each slot.
    head: usize,
    payload: &'a [u8],
    /// Bytes of payload in each datagram but the last.
    size: usize,
    count: usize,
    /// How many of them one call may send.
    at_once: usize,
}

impl<'a> Train<'a> {
    fn of(segments: &Segments<'a>) -> Train<'a> {
        let (head, payload, size) = match segments.as_it_is() {
            Some(frame) => (HEADER_LEN, frame, frame.len()),
            None => {
                let head = HEADER_LEN + segments.headers_len();
                (head, segments.payload(), segments.size())
            }
        };
        Train {
            head,
            payload,
            size,
            count: segments.count(),
            at_once: (MAX_SEND / (head + size)).clamp(1, MAX_SEGMENTS),
        }
    }

    /// The payload of datagram `n`.
    fn payload_of(&self, n: usize) -> &'a [u8] {
        let start = n * self.size;
        let end = self.payload.len().min(start + self.size);
        &self.payload[start..end]
    }

    /// Bytes of the Ethernet frames of some datagrams.
    fn bytes(&self, range: Range<usize>) -> usize {
        let frame = |n| self.head - HEADER_LEN + self.payload_of(n).len();
        range.map(frame).sum()
    }

    /// Sends the datagrams of `range`, at most [`MAX_SEGMENTS`], whose headers are in `slots`, to the peer
    /// that `socket` is connected to; whether they were taken.
    fn send(&self, socket: &OwnedFd, slots: &[u8], range: Range<usize>) -> bool {
        let mut slices = [IoSlice::new(&[]); 2 * MAX_SEGMENTS];
        let count = range.len();
        let pieces = slots.chunks_exact(SLOT).zip(range);
        for (pair, (slot, n)) in slices.chunks_exact_mut(2).zip(pieces) {
            pair[0] = IoSlice::new(&slot[..self.head]);
            pair[1] = IoSlice::new(self.payload_of(n));
        }
        let slices = &slices[..2 * count];
        if count == 1 {
            return send(socket, slices, None).is_ok();
        }
        match send(socket, slices, Some((self.head + self.size) as u16)) {
            Ok(()) => true,
            // Too long for the path by now, or a device that cannot cut.
            Err(error) if is_of_train(&error) => {
                let mut each = slices.chunks_exact(2);
                each.all(|datagram| send(socket, datagram, None).is_ok())
            }
            Err(_) => false,
        }
    }
}

/// Whether single datagrams may be taken where a train was not (udp(7)).
fn is_of_train(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let kinds = [Errno::MSGSIZE, Errno::INVAL, Errno::IO];
    kinds
        .iter()
        .any(|kind| error.raw_os_error() == Some(kind.raw_os_error()))
}

/// Sends once; twice if the first call told the error of an earlier datagram.
fn send(socket: &OwnedFd, pieces: &[IoSlice<'_>], segment: Option<u16>) -> io::Result<()> {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let once = || send_datagram(socket, None, pieces, segment, None, None).map(drop);
    match once() {
        Err(error)
            if matches!(
                error.kind(),
                ConnectionRefused | HostUnreachable | NetworkUnreachable
            ) =>
        {
            once()
        }
        sent => sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_bounded_and_come_back() {
        let mut rate = FloodRate::default();
        let start = Instant::from_millis(5000);
        let allowed = |rate: &mut FloodRate, at| (0..5000).filter(|_| rate.allow(at)).count();
        assert_eq!(allowed(&mut rate, start), FLOODS_A_SECOND as usize);
        let later = start + Duration::from_millis(100);
        assert_eq!(allowed(&mut rate, later), FLOODS_A_SECOND as usize / 10);
    }
}
