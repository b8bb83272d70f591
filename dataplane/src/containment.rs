//! A panic is contained: it ends what it came from, and the worker goes on.
//!
//! # Theory of operation
//!
//! Each event, each port's turn and each round of deadlines runs inside [`contained`]. What panics there
//! is a defect of this program that a packet has found. So the packet is dropped and counted, the flow it
//! belongs to is reset ([`cnet_core::Network::recover`]), and the log has the packet once.
//!
//! # Limits
//!
//! A worker that panics [`IN_A_ROW`] times while there is neither a frame nor an event in hand makes no
//! progress, and fails. So does one that panics while it recovers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cnet_wire::PortId;

/// Panics of a worker that are logged with their frames. What comes after is counted.
const LOGGED: u64 = 3;

/// Panics in a row of what is done without a frame or an event.
const IN_A_ROW: u32 = 16;

/// Bytes of a frame that are logged: all headers, and some of what is behind them.
const LOGGED_BYTES: usize = 256;

/// What a panic has said.
#[derive(Debug)]
pub(crate) struct Panic(String);

/// Runs `call`. What it has changed when it panics is half changed: the caller recovers.
///
/// # Errors
///
/// The panic.
#[inline]
pub(crate) fn contained<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| Panic(text(&*payload)))
}

/// `panic!` with a text gives a `&str` or a `String`.
fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no text".to_owned())
}

/// What a worker did when it panicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum During {
    /// An event of a socket, or a command.
    Event,
    /// The turn of a port.
    Frames(PortId),
    /// Deadlines, and work that waited.
    Deadlines,
}

/// The panics of one worker.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    count: u64,
    in_a_row: u32,
}

impl Panics {
    /// So many so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Deadlines were acted on without a panic.
    #[inline]
    pub(crate) fn passed(&mut self) {
        self.in_a_row = 0;
    }

    /// Counts a panic, and logs it with the frame in hand. `false` if the worker gets no further.
    pub(crate) fn note(&mut self, during: During, panic: &Panic, frame: Option<&[u8]>) -> bool {
        self.count += 1;
        if self.count <= LOGGED {
            let frame = frame.map(hex).unwrap_or_default();
            tracing::error!(
                ?during,
                frame,
                "a defect was contained, what it concerned is ended: {}; please report it",
                panic.0
            );
        } else if self.count.is_power_of_two() {
            tracing::error!(count = self.count, "further defects were contained");
        }
        if during == During::Deadlines {
            self.in_a_row += 1;
        }
        self.in_a_row < IN_A_ROW
    }
}

fn hex(frame: &[u8]) -> String {
    use std::fmt::Write;
    let shown = frame.iter().take(LOGGED_BYTES);
    let mut text = shown.fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    if frame.len() > LOGGED_BYTES {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_text() {
        assert_eq!(contained(|| 7).ok(), Some(7));
        let said = |call: fn()| contained(call).unwrap_err().0;
        assert_eq!(said(|| panic!("plain")), "plain");
        let number = std::hint::black_box(7);
        let formatted = contained(|| panic!("number {number}")).map(|()| 0);
        assert_eq!(formatted.unwrap_err().0, "number 7");
        assert_eq!(said(|| std::panic::panic_any(7)), "no text");
    }

    #[test]
    fn a_worker_that_gets_no_further_is_told_apart() {
        let mut panics = Panics::default();
        let panic = Panic("a test".to_owned());
        for _ in 0..100 {
            assert!(panics.note(During::Event, &panic, None));
            assert!(panics.note(During::Frames(PortId(1)), &panic, Some(&[0xab; 300])));
        }
        for _ in 1..IN_A_ROW {
            assert!(panics.note(During::Deadlines, &panic, None));
        }
        panics.passed();
        for _ in 1..IN_A_ROW {
            assert!(panics.note(During::Deadlines, &panic, None));
        }
        assert!(!panics.note(During::Deadlines, &panic, None));
        assert_eq!(panics.count(), 200 + 2 * u64::from(IN_A_ROW) - 1);
        assert!(hex(&[0xab; 300]).starts_with("abab") && hex(&[0xab; 300]).ends_with('…'));
    }
}
