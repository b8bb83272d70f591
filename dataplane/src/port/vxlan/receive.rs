//! Frames in from peers.
//!
//! Datagrams are received many at a time, each of which may be a train of them that the kernel has put
//! together (`UDP_GRO`). What is no frame of this network from a peer is dropped by reason; the frames
//! of the rest are copied one by one behind a virtio-net header, and those of TCP that go on where the
//! last one ended are joined to a super-frame ([`Joined`]).
//!
//! The outer checksum of a train was verified by the kernel, so the frames in it are as its sender sent
//! them, and it answers for their checksums. A single datagram may have come without an outer checksum.

use std::io::{self, IoSliceMut};
use std::net::IpAddr;

use cnet_tap::socket::udp::Datagram;
use cnet_tap::socket::{BatchSpace, recv_datagrams};
use cnet_vswitch::fdb::Refusal;
use cnet_wire::time::{Duration, Instant};
use cnet_wire::vxlan;
use cnet_wire::{DropReason, Joined, MacAddr, PortId};

use super::{MACS_A_PEER, Vxlan};

/// Datagrams, or trains of them, in one call. Memory that none fills is not resident.
const BATCH: usize = 16;
/// The longest datagram, and the longest train.
const DATAGRAM: usize = 1 << 16;
/// The station of the last frame is asked of the table again after so long.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// What was received and not read yet.
#[derive(Debug)]
pub(super) struct Inbox {
    memory: Box<[u8]>,
    datagrams: Vec<Datagram>,
    space: Box<BatchSpace>,
    /// The place of the datagram that is read, and of the next frame in it.
    at: usize,
    offset: usize,
    /// When it was received.
    now: Instant,
    /// The last datagram's sender, and its number.
    sender: Option<(IpAddr, Option<usize>)>,
    /// The last frame's source, behind which peer it is, and when the table said so.
    source: Option<(MacAddr, usize, Instant)>,
}

/// One frame's place in the memory.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: usize,
    end: usize,
    from: IpAddr,
    /// It came in a train.
    verified: bool,
    truncated: bool,
}

impl Inbox {
    pub(super) fn new() -> Inbox {
        Inbox {
            memory: vec![0; BATCH * DATAGRAM].into_boxed_slice(),
            datagrams: Vec::with_capacity(BATCH),
            space: BatchSpace::new(),
            at: 0,
            offset: 0,
            now: Instant::ZERO,
            sender: None,
            source: None,
        }
    }

    /// The next datagram of those received, one of a train as well.
    fn peek(&self) -> Option<Piece> {
        let datagram = self.datagrams.get(self.at)?;
        let place = self.at * DATAGRAM;
        let length = datagram.segment.map_or(datagram.len, usize::from);
        let start = place + self.offset;
        Some(Piece {
            start,
            end: (start + length).min(place + datagram.len),
            from: datagram.from.ip(),
            verified: datagram.segment.is_some(),
            truncated: datagram.truncated,
        })
    }

    /// Takes the piece that [`Inbox::peek`] gave.
    fn pass(&mut self, piece: Piece) {
        self.offset = piece.end - self.at * DATAGRAM;
        let whole = self.datagrams.get(self.at).map_or(0, |d| d.len);
        if self.offset >= whole {
            self.at += 1;
            self.offset = 0;
        }
    }

    /// Passes over the rest of the datagram that is read.
    fn pass_train(&mut self) {
        self.at += 1;
        self.offset = 0;
    }
}

impl Vxlan {
    /// Reads one frame, or as many as make a super-frame, into `buf`, a virtio-net header first. `mtu` is
    /// the link's. Never blocks, and asks the socket at most once.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing waits; `Interrupted` when all that was received was dropped. Neither ends
    /// the port.
    pub(crate) fn read(&mut self, now: Instant, buf: &mut [u8], mtu: usize) -> io::Result<usize> {
        if self.inbox.peek().is_none() {
            self.fill(now)?;
        }
        while let Some(piece) = self.inbox.peek() {
            match self.take(piece, buf, mtu) {
                Ok(joined) => return Ok(self.join(joined, piece.from, buf)),
                Err(reason) => self.count_drop(reason),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn fill(&mut self, now: Instant) -> io::Result<()> {
        let Inbox {
            memory,
            datagrams,
            space,
            ..
        } = &mut self.inbox;
        datagrams.clear();
        let mut places = memory.chunks_exact_mut(DATAGRAM).map(IoSliceMut::new);
        let mut buffers: [IoSliceMut<'_>; BATCH] =
            std::array::from_fn(|_| places.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let received = recv_datagrams(&self.socket, &mut buffers, datagrams, space);
        (self.inbox.at, self.inbox.offset, self.inbox.now) = (0, 0, now);
        match received {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // Of the socket's own, such as want of memory: the port stays.
            Err(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Checks the datagram and its frame, and puts the frame into `buf`.
    fn take(&mut self, piece: Piece, buf: &mut [u8], mtu: usize) -> Result<Joined, DropReason> {
        let peer = self.sender(piece.from);
        let checked = self.check(piece, peer);
        match checked {
            // Where one is wrong, so are those behind it in the same train.
            Err(_) => self.inbox.pass_train(),
            Ok(_) => self.inbox.pass(piece),
        }
        let (peer, start) = checked?;
        let frame = &self.inbox.memory[start..piece.end];
        let counters = &mut self.peers[peer].counters;
        counters.frames_in += 1;
        counters.bytes_in += frame.len() as u64;
        let source = MacAddr(*frame[6..].first_chunk().ok_or(DropReason::BadVxlanHeader)?);
        let joined = Joined::start(buf, frame, mtu, piece.verified)?;
        if let Some(ip) = joined.ip()
            && vxlan::is_nested(frame, ip, self.port, self.vni)
        {
            return Err(DropReason::NestedTunnel);
        }
        self.learn(source, peer)?;
        Ok(joined)
    }

    /// The number of the peer that a datagram came from.
    fn sender(&mut self, from: IpAddr) -> Option<usize> {
        match self.inbox.sender {
            Some((known, number)) if known == from => number,
            _ => {
                let number = self.peer_at(from);
                self.inbox.sender = Some((from, number));
                number
            }
        }
    }

    /// Gives the peer's number and where the frame starts.
    fn check(&self, piece: Piece, peer: Option<usize>) -> Result<(usize, usize), DropReason> {
        let peer = peer.ok_or(DropReason::UnknownPeer)?;
        if piece.truncated {
            return Err(DropReason::FrameTooLong);
        }
        let (vni, frame) = vxlan::decode(&self.inbox.memory[piece.start..piece.end])?;
        match vni == self.vni {
            true => Ok((peer, piece.end - frame.len())),
            false => Err(DropReason::UnknownVni),
        }
    }

    /// The station at `source` is behind `peer`, unless it is behind another.
    fn learn(&mut self, source: MacAddr, peer: usize) -> Result<(), DropReason> {
        let now = self.inbox.now;
        if let Some((mac, of, at)) = self.inbox.source
            && (mac, of) == (source, peer)
            && now.saturating_since(at) < REFRESH_INTERVAL
        {
            return Ok(());
        }
        if source.is_multicast() || source.is_zero() {
            return Err(DropReason::BadSourceMac);
        }
        let number = PortId(peer as u32);
        match self.stations.observe(now, source, number, MACS_A_PEER) {
            Ok(()) => {
                self.inbox.source = Some((source, peer, now));
                Ok(())
            }
            Err(Refusal::Owned) => Err(DropReason::Spoofed),
            Err(Refusal::Full) => Err(DropReason::MacTableFull),
        }
    }

    /// Joins what follows, as far as it goes on where `joined` ends. Gives the length in `buf`.
    fn join(&mut self, mut joined: Joined, from: IpAddr, buf: &mut [u8]) -> usize {
        while joined.is_open()
            && let Some(piece) = self.inbox.peek()
            && piece.from == from
            && !piece.truncated
        {
            let memory = &self.inbox.memory[piece.start..piece.end];
            let Ok((vni, frame)) = vxlan::decode(memory) else {
                break;
            };
            // The link's addresses are the first frame's, so its source is the peer's.
            if vni != self.vni || !joined.append(buf, frame, piece.verified) {
                break;
            }
            let counters = self.sender(from).map(|peer| &mut self.peers[peer].counters);
            if let Some(counters) = counters {
                counters.frames_in += 1;
                counters.bytes_in += (piece.end - piece.start - vxlan::HEADER_LEN) as u64;
            }
            self.inbox.pass(piece);
        }
        joined.finish(buf).0
    }
}
