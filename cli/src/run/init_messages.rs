//! What is said between this program and the command's init while the command runs: a message each way,
//! over the socket of the handshake. The program has signals passed on to the command, the init tells
//! that the command has stopped.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Says that the command has stopped.
const STOPPED: u8 = 5;

/// The first byte of a request to pass a signal on, whose number is the second.
const SIGNAL: u8 = 2;

/// Asks the init to pass a signal on. One that is gone has no use for it.
pub(super) fn request_signal(init: impl AsFd, number: i32) {
    let number = u8::try_from(number).unwrap_or_default();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = send(init, &[SIGNAL, number], flags);
}

/// In the init: the next signal to pass on; `None` once the program is gone. Waits for one.
pub(super) fn next_signal(program: impl AsFd) -> Option<i32> {
    let mut bytes = [0; 2];
    loop {
        match recv(&program, &mut bytes, RecvFlags::empty()) {
            Ok((_, 2)) if bytes[0] == SIGNAL => {
                return Some(bytes[1].into());
            }
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// In the init: says that the command has stopped. A program that is gone is noticed otherwise.
pub(super) fn tell_stopped(program: impl AsFd) {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = send(program, &[STOPPED], flags);
}

/// Takes what the init tells, without waiting: whether the command has stopped. `None` once the init
/// is gone.
///
/// # Errors
///
/// `EAGAIN` when there is nothing.
pub(super) fn has_stopped(init: impl AsFd) -> rustix::io::Result<Option<bool>> {
    let mut byte = [0];
    let (_, length) = recv(init, &mut byte, RecvFlags::DONTWAIT)?;
    Ok((length > 0).then_some(byte == [STOPPED]))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn signals_go_one_way_and_stops_the_other() {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let (program, init) = socketpair(family, SocketType::SEQPACKET, flags, None).unwrap();
        request_signal(&program, 37);
        assert_eq!(next_signal(&init), Some(37));
        assert_eq!(has_stopped(&program), Err(Errno::AGAIN));
        tell_stopped(&init);
        assert_eq!(has_stopped(&program), Ok(Some(true)));
        drop(program);
        assert_eq!(next_signal(&init), None);
    }
}
