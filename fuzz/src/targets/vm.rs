//! The socket of a virtual machine: frames behind their lengths, in pieces of any size.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use cnet_dataplane::VmSocket;
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::vnet::VNET_HDR_LEN;

use crate::feedback;

/// The longest frame: one byte more than what carries the longest IPv4 packet. A short one is passed on,
/// for the switch to drop and count.
const MAX_FRAME: usize = 65_550;
/// Pieces in which the machine writes, by the first byte. The smaller they are, the less is written.
const PIECES: [usize; 8] = [1, 3, 4, 16, 100, 1_000, 5_000, 65_536];
/// Writes of one input.
const MAX_WRITES: usize = 300;
const MTU: usize = 1500;

/// The frames of a stream, and whether a length in it is a lie.
fn expected(mut stream: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut frames = Vec::new();
    while let Some((&length, behind)) = stream.split_first_chunk() {
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            return (frames, true);
        }
        let Some(frame) = behind.get(..length) else {
            break;
        };
        frames.push(frame);
        stream = &behind[length..];
    }
    (frames, false)
}

/// What the machine writes arrives as the frames in it, each once and whole, up to the first length
/// that no frame has; and a frame that is written back arrives as it was.
pub fn stream(input: &[u8]) {
    let Some((&way, stream)) = input.split_first() else {
        return;
    };
    let piece = PIECES[usize::from(way & 7)];
    let stream = &stream[..stream.len().min(piece.saturating_mul(MAX_WRITES))];
    let (frames, lie) = expected(stream);
    let Ok((mut machine, ours)) = UnixStream::pair() else {
        return;
    };
    machine.set_nonblocking(true).expect("a socket");
    let mut socket = VmSocket::stream(ours.into()).expect("a stream socket");
    let mut buf = vec![0xaa; FRAME_BUFFER_LEN];
    let mut arrived = 0;
    let mut ended = None;
    for bytes in stream.chunks(piece) {
        if ended.is_some() {
            break;
        }
        machine.write_all(bytes).expect("room for a piece");
        while ended.is_none() {
            match socket.read(&mut buf) {
                Ok(len) => {
                    assert_eq!(buf[..VNET_HDR_LEN], [0; VNET_HDR_LEN]);
                    assert_eq!(frames.get(arrived), Some(&&buf[VNET_HDR_LEN..len]));
                    arrived += 1;
                    write_back(&mut socket, &mut machine, &buf[..len]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => ended = Some(error.kind()),
            }
        }
    }
    assert_eq!(arrived, frames.len(), "frames");
    assert_eq!(ended, lie.then_some(ErrorKind::InvalidData), "the end");
    feedback::note(8 * u32::from(lie) + arrived.min(7) as u32);
}

fn write_back(socket: &mut VmSocket, machine: &mut UnixStream, frame: &[u8]) {
    let Some(taken) = socket.write(frame, MTU) else {
        return feedback::note(20);
    };
    feedback::note(21);
    assert_eq!(taken.frames, 1);
    let mut got = Vec::new();
    let mut part = [0; 4096];
    loop {
        match machine.read(&mut part) {
            Ok(len) => got.extend_from_slice(&part[..len]),
            Err(_) if socket.is_stuck() => socket.flush(),
            Err(_) => break,
        }
    }
    let plain = &frame[VNET_HDR_LEN..];
    assert_eq!(got[..4], (plain.len() as u32).to_be_bytes());
    assert_eq!(&got[4..], plain);
}
