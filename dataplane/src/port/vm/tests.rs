use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};

use cnet_wire::vnet::{self, VnetHeader};

use rustix::net::{AddressFamily, SocketFlags, socketpair};

use super::*;

const MTU: usize = 1500;
const BUFFER: usize = cnet_wire::headers::FRAME_BUFFER_LEN;

fn stream() -> (VmSocket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (VmSocket::stream(ours.into()).unwrap(), theirs)
}

fn datagram() -> (VmSocket, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    (VmSocket::datagram(ours.into()).unwrap(), theirs)
}

/// A frame of an unknown EtherType that tells its number, with a virtio-net header of zeros.
fn numbered(number: u32, length: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; VNET_HDR_LEN + length];
    frame[..VNET_HDR_LEN].fill(0);
    frame[VNET_HDR_LEN..VNET_HDR_LEN + 4].copy_from_slice(&number.to_be_bytes());
    frame
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn next(socket: &mut VmSocket) -> Result<Vec<u8>, io::ErrorKind> {
    let mut buf = vec![0xff; BUFFER];
    let length = socket.read(&mut buf).map_err(|e| e.kind())?;
    assert_eq!(buf[..VNET_HDR_LEN], [0; VNET_HDR_LEN]);
    Ok(buf[VNET_HDR_LEN..length].to_vec())
}

/// `length` bytes of TCP in one frame, to be cut to pieces of `gso_size`.
fn super_frame(length: u16, gso_size: u16) -> Vec<u8> {
    let vnet = VnetHeader {
        flags: vnet::F_NEEDS_CSUM,
        gso_type: vnet::GSO_TCPV4,
        hdr_len: 54,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
    };
    let mut packet = vec![0x45, 0];
    packet.extend((40 + length).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    packet.extend([10, 0, 2, 5, 10, 0, 2, 6]);
    let sum = cnet_wire::checksum::finish(0, &packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 80, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 2, 0]);
    packet.extend([0; 4]);
    packet.extend((0..length).map(|i| (i / 7) as u8));
    let link = [2, 0, 0, 0, 0, 6, 2, 0, 0, 0, 0, 5, 8, 0];
    [&vnet.encode()[..], &link, &packet].concat()
}

#[test]
fn a_socket_of_packets_carries_a_frame_a_packet_and_ends_when_it_is_closed() {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (ours, machine) = pair.unwrap();
    assert!(VmSocket::datagram(ours.try_clone().unwrap()).is_err());
    let mut vm = VmSocket::packets(ours).unwrap();
    let mut buf = vec![0xff; 65_600];
    assert_eq!(
        vm.read(&mut buf).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    rustix::io::write(&machine, &[7; 60]).unwrap();
    assert_eq!(vm.read(&mut buf).unwrap(), VNET_HDR_LEN + 60);
    assert_eq!(buf[..VNET_HDR_LEN], [0; VNET_HDR_LEN]);
    drop(machine);
    let error = vm.read(&mut buf).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_stream_may_come_in_any_pieces() {
    let (mut socket, mut far) = stream();
    let frames = [14, 60, 1514, 65_550].map(|length| numbered(7, length)[VNET_HDR_LEN..].to_vec());
    let bytes: Vec<u8> = frames.iter().flat_map(|f| with_length(f)).collect();
    for piece in [1, 3, 5, 1000, 60_000, bytes.len()] {
        let mut seen = Vec::new();
        for part in bytes.chunks(piece) {
            far.write_all(part).unwrap();
            loop {
                match next(&mut socket) {
                    Ok(frame) => seen.push(frame),
                    Err(error) => break assert_eq!(error, io::ErrorKind::WouldBlock),
                }
            }
        }
        // The last may have needed a second look at the socket.
        seen.extend(next(&mut socket));
        assert_eq!(seen, frames, "{piece}");
    }
}

#[test]
fn a_frame_that_is_too_short_is_passed_on_and_the_next_is_read() {
    for length in [0, 1, 13] {
        let (mut socket, mut far) = stream();
        let good = numbered(1, 100)[VNET_HDR_LEN..].to_vec();
        let short = vec![7; length];
        far.write_all(&with_length(&short)).unwrap();
        far.write_all(&with_length(&good)).unwrap();
        assert_eq!(next(&mut socket), Ok(short), "for the switch to count");
        assert_eq!(next(&mut socket), Ok(good));
        let (mut socket, far) = datagram();
        far.send(&[7; 13][..length]).unwrap();
        assert_eq!(next(&mut socket), Ok(vec![7; length]));
    }
}

#[test]
fn a_length_over_the_longest_frame_ends_it_after_what_came_before() {
    for length in [65_551, u32::MAX] {
        let (mut socket, mut far) = stream();
        let good = numbered(1, 100)[VNET_HDR_LEN..].to_vec();
        far.write_all(&with_length(&good)).unwrap();
        far.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(next(&mut socket), Ok(good));
        let error = socket.read(&mut [0; BUFFER]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains(&length.to_string()), "{error}");
    }
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_over() {
    let (mut socket, mut far) = stream();
    let good = numbered(1, 100)[VNET_HDR_LEN..].to_vec();
    far.write_all(&with_length(&good)).unwrap();
    far.write_all(&with_length(&good)[..50]).unwrap();
    drop(far);
    assert_eq!(next(&mut socket), Ok(good));
    assert_eq!(next(&mut socket), Err(io::ErrorKind::UnexpectedEof));
    // Nor can it be written to, which does not hurt.
    assert!(socket.write(&numbered(2, 100), MTU).is_some());
    assert!(socket.has_failed() && !socket.is_stuck());
    assert_eq!(socket.write(&numbered(2, 100), MTU), None);
    assert_eq!(next(&mut socket), Err(io::ErrorKind::BrokenPipe));
}

#[test]
fn a_machine_that_does_not_read_gets_what_was_taken_whole_and_in_order() {
    let (mut socket, mut far) = stream();
    far.set_nonblocking(true).unwrap();
    let lengths = (0..).map(|n: u32| (n, 14 + (n as usize * 389) % 1501));
    let mut taken = Vec::new();
    let (mut seen, mut lost) = (Vec::new(), 0);
    for (number, length) in lengths.take(5000) {
        let frame = numbered(number, length);
        match socket.write(&frame, MTU) {
            Some(written) => {
                assert_eq!((written.frames, written.bytes), (1, length as u64));
                taken.extend(with_length(&frame[VNET_HDR_LEN..]));
            }
            None => lost += 1,
        }
        // It reads little, and seldom; then there is room again, but never at the right places.
        if number % 800 == 799 {
            let mut part = vec![0; 100_001];
            let read = far.read(&mut part).unwrap();
            seen.extend_from_slice(&part[..read]);
            socket.flush();
        }
        assert!(socket.outbox.bytes.len() <= 2 * OUTBOX);
        assert!(socket.outbox.waiting().len() <= OUTBOX);
    }
    assert!(lost > 1000 && socket.is_stuck(), "{lost}");
    let mut part = vec![0; 1 << 20];
    while socket.is_stuck() {
        let read = far.read(&mut part).unwrap();
        seen.extend_from_slice(&part[..read]);
        socket.flush();
    }
    while let Ok(read) = far.read(&mut part) {
        seen.extend_from_slice(&part[..read]);
    }
    assert!(seen == taken, "{} of {}", seen.len(), taken.len());
}

#[test]
fn super_frames_are_cut_or_lost_whole() {
    let (mut socket, mut far) = stream();
    let taken = Taken {
        frames: 3,
        bytes: 3 * 54 + 4000,
    };
    assert_eq!(socket.write(&super_frame(4000, 1400), MTU), Some(taken));
    let mut seen = vec![0; 3 * 4 + 3 * 54 + 4000];
    far.read_exact(&mut seen).unwrap();
    let lengths = [0, 1458, 2916]
        .map(|at| u32::from_be_bytes([seen[at], seen[at + 1], seen[at + 2], seen[at + 3]]));
    assert_eq!(lengths, [1454, 1454, 1254]);
    // In shreds it would be more than the outbox ever holds.
    assert_eq!(socket.write(&super_frame(50_000, 8), MTU), None);
    assert!(!socket.has_failed() && !socket.is_stuck());
    let frames = socket.write(&super_frame(50_000, 16), MTU);
    assert_eq!(frames.map(|taken| taken.frames), Some(3125));
}

#[test]
fn datagrams_are_frames_and_wait_for_room_too() {
    let (mut socket, far) = datagram();
    far.set_nonblocking(true).unwrap();
    for frame in [&b""[..], b"short", &[9; 1514]] {
        far.send(frame).unwrap();
        assert_eq!(next(&mut socket).as_deref(), Ok(frame));
    }
    assert_eq!(next(&mut socket), Err(io::ErrorKind::WouldBlock));
    let mut taken = Vec::new();
    for number in 0.. {
        if socket.write(&numbered(number, 1000), MTU).is_none() {
            break;
        }
        taken.push(number);
    }
    assert!(socket.is_stuck());
    let mut seen = Vec::new();
    let mut buf = [0; 2000];
    loop {
        match far.recv(&mut buf) {
            Ok(length) => {
                assert_eq!(length, 1000);
                seen.push(u32::from_be_bytes([buf[0], buf[1], buf[2], buf[3]]));
            }
            Err(_) if socket.is_stuck() => socket.flush(),
            Err(_) => break,
        }
    }
    assert_eq!(seen, taken);
    assert!(socket.write(&super_frame(4000, 1400), MTU).is_some());
    let lengths = [1454, 1454, 1254].map(|_| far.recv(&mut buf).unwrap());
    assert_eq!(lengths, [1454, 1454, 1254]);
    drop(far);
    assert!(socket.write(&numbered(0, 100), MTU).is_some());
    assert!(socket.has_failed());
    assert!(next(&mut socket).is_err());
}

#[test]
fn other_descriptors_are_refused() {
    let (a, b) = UnixStream::pair().unwrap();
    assert!(VmSocket::datagram(a.into()).is_err());
    assert!(VmSocket::stream(b.into()).is_ok());
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(VmSocket::stream(file.into()).is_err());
}
