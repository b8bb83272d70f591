//! A TCP client made by hand: it sends the segments it is told to, and hears what comes back.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use crate::arena::Arena;
use crate::frames::{ETHERNET, End, tcp};
use cnet_testkit::frames::flag::{ACK, SYN};

/// ETH_P_ALL (packet(7)): every protocol.
const ALL: u16 = 3;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Where the fields of a segment are in an IPv4 frame without IP options.
const SEGMENT: usize = ETHERNET + 20;

/// A segment that came.
#[derive(Debug)]
pub struct Segment {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub payload: Vec<u8>,
}

/// One connection, whose numbers the test may do with as it likes.
pub struct Client<'a> {
    arena: &'a Arena,
    hears: OwnedFd,
    to: End,
    ports: (u16, u16),
    /// The next number that is sent.
    pub seq: u32,
    /// The next number that is expected.
    pub ack: u32,
}

impl<'a> Client<'a> {
    /// One that has not sent anything yet. The attacker's own kernel, which knows nothing of it, is
    /// kept from resetting it.
    pub fn new(arena: &'a Arena, to: End, ports: (u16, u16), isn: u32) -> Self {
        arena.attacker.namespace.nft(
            "table inet mute {
                chain output {
                    type filter hook output priority 0
                    tcp flags & rst == rst drop
                }
            }",
        );
        let hears = arena.attacker.namespace.enter(|| {
            let all = NonZeroU32::new(u32::from(ALL.to_be())).map(Protocol::from_raw);
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::PACKET, SocketType::RAW, flags, all)
        });
        Self {
            arena,
            hears: hears.expect("a packet socket as root"),
            to,
            ports,
            seq: isn,
            ack: 0,
        }
    }

    /// One whose connection is open, with these options in its SYN.
    pub fn open(arena: &'a Arena, to: End, ports: (u16, u16), isn: u32, options: &[u8]) -> Self {
        let mut client = Self::new(arena, to, ports, isn);
        client.send(SYN, options, b"");
        client.seq = isn.wrapping_add(1);
        let answer = client.hear("a SYN/ACK", |segment| segment.flags & SYN != 0);
        assert_eq!(answer.flags, SYN | ACK, "{answer:?}");
        assert_eq!(answer.ack, client.seq, "{answer:?}");
        client.ack = answer.seq.wrapping_add(1);
        client.send(ACK, &[], b"");
        client
    }

    /// Sends a segment with the next numbers, which stay as they are.
    pub fn send(&self, flags: u8, options: &[u8], payload: &[u8]) {
        self.send_at((self.seq, self.ack), flags, options, payload);
    }

    /// Sends a segment with these numbers.
    pub fn send_at(&self, numbers: (u32, u32), flags: u8, options: &[u8], payload: &[u8]) {
        let from = self.arena.v4();
        let frame = tcp(from, self.to, self.ports, numbers, flags, options, payload);
        self.arena.wire.send(&frame);
    }

    /// Sends a segment after `change` has seen its header; the checksum is right then.
    pub fn send_changed(&self, flags: u8, payload: &[u8], change: impl FnOnce(&mut [u8])) {
        let from = self.arena.v4();
        let numbers = (self.seq, self.ack);
        let frame = tcp(from, self.to, self.ports, numbers, flags, &[], payload);
        let mut segment = frame[SEGMENT..].to_vec();
        change(&mut segment);
        segment[16..18].fill(0);
        self.arena
            .wire
            .send(&crate::lab::raw::ip(from, self.to, 6, 16, &segment));
    }

    /// Sends `bytes` in segments of `size`, and waits until they are acknowledged.
    pub fn upload(&mut self, bytes: &[u8], size: usize) {
        for piece in bytes.chunks(size) {
            self.send(ACK, &[], piece);
            self.seq = self
                .seq
                .wrapping_add(u32::try_from(piece.len()).expect("a segment"));
            let due = self.seq;
            self.hear("an acknowledgement", |segment| segment.ack == due);
        }
    }

    /// The next segment that is `wanted`.
    pub fn hear(&self, what: &str, wanted: impl Fn(&Segment) -> bool) -> Segment {
        let found = self.hear_within(ANSWER, wanted);
        found.unwrap_or_else(|| panic!("{what} never came"))
    }

    /// The next segment that is `wanted`, if one comes in `time`.
    pub fn hear_within(
        &self,
        time: Duration,
        wanted: impl Fn(&Segment) -> bool,
    ) -> Option<Segment> {
        let until = Instant::now() + time;
        let mut buffer = vec![0; 1 << 17];
        loop {
            match recv(&self.hears, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    let segment = self.parse(&buffer[..length]);
                    if let Some(segment) = segment.filter(|segment| wanted(segment)) {
                        return Some(segment);
                    }
                }
                Err(_) => {
                    let left = until.checked_duration_since(Instant::now())?;
                    let left = Timespec::try_from(left).expect("a short time");
                    let _ = poll(&mut [PollFd::new(&self.hears, PollFlags::IN)], Some(&left));
                }
            }
        }
    }

    /// A segment of this connection towards the attacker.
    fn parse(&self, frame: &[u8]) -> Option<Segment> {
        let short = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let long = |at: usize| Some(u32::from(short(at)?) << 16 | u32::from(short(at + 2)?));
        let is_tcp = frame.get(12..15)? == [8, 0, 0x45] && *frame.get(ETHERNET + 9)? == 6;
        let ports = (short(SEGMENT + 2)?, short(SEGMENT)?);
        if !is_tcp || frame[..6] != self.arena.own.mac || ports != self.ports {
            return None;
        }
        let header = usize::from(frame.get(SEGMENT + 12)? >> 4) * 4;
        let end = ETHERNET + usize::from(short(ETHERNET + 2)?);
        Some(Segment {
            flags: *frame.get(SEGMENT + 13)?,
            seq: long(SEGMENT + 4)?,
            ack: long(SEGMENT + 8)?,
            payload: frame.get(SEGMENT + header..end)?.to_vec(),
        })
    }
}
