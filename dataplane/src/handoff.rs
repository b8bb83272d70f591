//! The way of frames from one worker to another: a bounded channel of buffers that go round.
//!
//! # Theory of operation
//!
//! A worker copies a frame that the primary worker is to take ([`cnet_core::Network::further`])
//! into a buffer and puts it into the channel ([`Outlet`]); the primary worker takes it out, handles it
//! and sends the buffer back ([`Inlet`]). The primary worker is woken once a batch, by the eventfd that its
//! commands come with.
//!
//! # Limits
//!
//! [`WAITING`] frames wait at most, and what comes then is lost, as it would be in a TAP that is
//! full. As a frame is 64 KiB at most, that bounds the buffers of a worker, which stay as large as
//! what they held, to 8 MiB; a worker that hands over none has none.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use cnet_nat::host::Token;
use cnet_wire::PortFull;

/// Frames that may wait: two of the batches that a worker reads at a time.
const WAITING: usize = 128;

/// A frame, virtio-net header first, and the port that it came in by.
#[derive(Debug)]
struct Handed {
    port: Token,
    frame: Vec<u8>,
}

/// The end that frames go into.
#[derive(Debug)]
pub(super) struct Outlet {
    frames: SyncSender<Handed>,
    spare: Receiver<Vec<u8>>,
    /// A buffer that found no room in the channel.
    kept: Option<Vec<u8>>,
    /// Of the worker at the other end.
    wake: Arc<OwnedFd>,
    unannounced: bool,
    /// Frames that found room.
    handed_over: u64,
}

/// The end that frames come out of.
#[derive(Debug)]
pub(super) struct Inlet {
    frames: Receiver<Handed>,
    spare: SyncSender<Vec<u8>>,
}

/// A channel whose reader is woken by `wake`.
pub(super) fn channel(wake: Arc<OwnedFd>) -> (Outlet, Inlet) {
    let (frames, handed) = sync_channel(WAITING);
    // Those that wait, and the one that is being handled.
    let (used, spare) = sync_channel(WAITING + 1);
    let outlet = Outlet {
        frames,
        spare,
        kept: None,
        wake,
        unannounced: false,
        handed_over: 0,
    };
    let inlet = Inlet {
        frames: handed,
        spare: used,
    };
    (outlet, inlet)
}

impl Outlet {
    /// Puts a copy of `frame`, which came in by `port`, into the channel.
    pub(super) fn hand_over(&mut self, port: Token, frame: &[u8]) -> Result<(), PortFull> {
        let kept = self.kept.take().or_else(|| self.spare.try_recv().ok());
        let mut copy = kept.unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(frame);
        let handed = Handed { port, frame: copy };
        // Also when it was full: the worker that empties it has to know.
        self.unannounced = true;
        match self.frames.try_send(handed) {
            Ok(()) => {
                self.handed_over += 1;
                Ok(())
            }
            Err(TrySendError::Full(handed) | TrySendError::Disconnected(handed)) => {
                self.kept = Some(handed.frame);
                Err(PortFull)
            }
        }
    }

    /// Frames handed over so far.
    pub(crate) fn handed_over(&self) -> u64 {
        self.handed_over
    }

    /// Wakes the other end if there is something new for it.
    pub(super) fn announce(&mut self) {
        if std::mem::take(&mut self.unannounced) {
            // A counter at its limit wakes as well.
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Inlet {
    /// Has `handle` take the next frame; `false` if none waits.
    pub(super) fn take(&self, handle: impl FnOnce(Token, &[u8])) -> bool {
        let Ok(Handed { port, frame }) = self.frames.try_recv() else {
            return false;
        };
        handle(port, &frame);
        // There is room for all that there are, unless the other end is gone.
        let _ = self.spare.try_send(frame);
        true
    }
}

#[cfg(test)]
mod tests {
    use cnet_nat::host::TokenKind;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn ends() -> (Outlet, Inlet, Arc<OwnedFd>) {
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let (outlet, inlet) = channel(Arc::clone(&wake));
        (outlet, inlet, wake)
    }

    fn signalled(wake: &OwnedFd) -> bool {
        rustix::io::read(wake, &mut [0; 8]).is_ok()
    }

    #[test]
    fn frames_come_out_as_they_went_in_and_buffers_go_round() {
        let (mut outlet, inlet, wake) = ends();
        let port = |n| Token::new(TokenKind::Shell, n, 7);
        for round in 0..3_u32 {
            for n in 0..5_u32 {
                let frame = vec![n as u8; 10 + n as usize];
                outlet.hand_over(port(n + round), &frame).unwrap();
            }
            assert!(!signalled(&wake));
            outlet.announce();
            assert!(signalled(&wake));
            outlet.announce();
            assert!(!signalled(&wake), "nothing new");
            for n in 0..5_u32 {
                let took = inlet.take(|token, frame| {
                    assert_eq!(token, port(n + round));
                    assert_eq!(frame, vec![n as u8; 10 + n as usize]);
                });
                assert!(took);
            }
            assert!(!inlet.take(|_, _| panic!("empty")));
        }
        let spares = std::iter::from_fn(|| outlet.spare.try_recv().ok()).count();
        assert_eq!(spares, 5);
    }

    #[test]
    fn what_finds_no_room_is_refused_and_the_rest_stays() {
        let (mut outlet, inlet, _wake) = ends();
        let port = Token::new(TokenKind::Shell, 1, 1);
        for n in 0..WAITING {
            outlet.hand_over(port, &[n as u8]).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(outlet.hand_over(port, b"more"), Err(PortFull));
        }
        assert!(inlet.take(|_, frame| assert_eq!(frame, [0])));
        outlet.hand_over(port, b"last").unwrap();
        let mut frames = Vec::new();
        while inlet.take(|_, frame| frames.push(frame.to_vec())) {}
        assert_eq!(frames.len(), WAITING);
        assert_eq!(frames.last().unwrap(), b"last");
        drop(inlet);
        assert_eq!(outlet.hand_over(port, b"gone"), Err(PortFull));
    }
}
