//! Helper processes: forked children that work inside a container's namespaces and hand back what
//! they made.
//!
//! # Theory of operation
//!
//! setns(2) takes a process into a user namespace only while it has one thread, and a process that
//! went in cannot come back. So work inside is done by a child, which shares a socket pair with its
//! parent ([`spawn`](crate::fork::spawn)): requests go one way, answers with descriptors the other,
//! a message each. There are four kinds:
//!
//! - [`one_shot`]: the child does one thing, which it has from its parent's memory, and ends.
//! - [`ns_helper`]: waits for requests, each for a TAP or its routes in a namespace that comes as a
//!   descriptor, and forks once more for each.
//! - [`socket_helper`]: stays in one network namespace and makes TCP sockets there.
//! - [`outside`]: enters nothing, and does for a process in the sandbox what needs the host's files.
//!
//! # Invariants
//!
//! - No helper outlives its parent: the child asks for SIGKILL at its parent's death, and asks again
//!   after entering ([`Parent::die_together`]), or ends when its socket is closed.
//! - An answer is an outcome: what the work gave, or the full text of its error.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use rustix::net::{RecvFlags, SendFlags};

use crate::device::{MAX_QUEUES, Tap, TapInfo};
use crate::error::TapError;
use crate::fork::Parent;
use crate::namespace::Namespaces;
use crate::unix;

pub mod ns_helper;
pub mod one_shot;
pub mod outside;
pub mod socket_helper;

pub use ns_helper::{NsHelper, OpenedTap, Request, RouteState, TapRequest};
pub use one_shot::{open_tap_in, run_in};
pub use outside::Outside;
pub use socket_helper::SocketHelper;

/// The most bytes that one answer may have, besides its descriptors.
pub const MAX_ANSWER: usize = 64 * 1024;

/// Descriptors of an answer beside those of a TAP's queues, at most.
const MAX_FURTHER: usize = 2;

/// What work inside namespaces gives: descriptors, at most [`MAX_QUEUES`] and two, and bytes, at most
/// [`MAX_ANSWER`].
pub type Output = (Vec<OwnedFd>, Vec<u8>);

/// The first byte of an answer: what follows is the output.
const SUCCEEDED: u8 = 0;
/// The first byte of an answer: what follows is an error's text.
const FAILED: u8 = 1;

/// In the child: enters the namespaces and does the work there. A panic becomes an error.
fn work_in(
    ns: &Namespaces,
    parent: Parent,
    work: impl FnOnce() -> Result<Output, TapError>,
) -> Result<Output, TapError> {
    let enter_and_work = || {
        parent.die_together()?;
        ns.enter()?;
        parent.die_together()?;
        work()
    };
    let panicked = |_| Err(TapError::Helper("the helper process panicked".to_owned()));
    std::panic::catch_unwind(AssertUnwindSafe(enter_and_work)).unwrap_or_else(panicked)
}

/// Sends an outcome, with `tag` in front.
fn answer(
    socket: BorrowedFd<'_>,
    tag: &[u8],
    outcome: Result<Output, TapError>,
) -> rustix::io::Result<()> {
    let outcome = outcome.and_then(|output| match output.1.len() <= MAX_ANSWER {
        true => Ok(output),
        false => Err(TapError::Helper(
            "the helper's reply is too long".to_owned(),
        )),
    });
    let (status, descriptors, bytes) = match outcome {
        Ok((descriptors, bytes)) => (SUCCEEDED, descriptors, bytes),
        Err(error) => {
            let mut text = error.to_string().into_bytes();
            text.truncate(MAX_ANSWER);
            (FAILED, Vec::new(), text)
        }
    };
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let pieces = [tag, &[status], &bytes];
    unix::send(socket, &pieces, &borrowed, SendFlags::empty()).map(drop)
}

/// The next message with its descriptors, or `None` once the other end is closed. Waits if the
/// socket does.
fn receive(socket: BorrowedFd<'_>) -> rustix::io::Result<Option<Output>> {
    let mut bytes = vec![0; size_of::<u64>() + 1 + MAX_ANSWER];
    let most = usize::from(MAX_QUEUES) + MAX_FURTHER;
    let (length, descriptors) = unix::receive(socket, &mut bytes, most, RecvFlags::empty())?;
    bytes.truncate(length);
    Ok((length > 0).then_some((descriptors, bytes)))
}

/// Reads an answer's outcome, its tag taken off.
fn outcome(descriptors: Vec<OwnedFd>, bytes: &[u8]) -> Result<Output, TapError> {
    match bytes.split_first() {
        Some((&SUCCEEDED, output)) => Ok((descriptors, output.to_vec())),
        Some((_, text)) => Err(TapError::Helper(String::from_utf8_lossy(text).into_owned())),
        None => Err(TapError::Helper(String::new())),
    }
}

/// Takes a TAP apart for an answer.
fn tap_output(tap: Tap) -> Output {
    let (queues, info) = tap.into_fds();
    (queues, info.to_bytes())
}

/// Puts a TAP of `queues` queues together again; `None` if the output is no such thing.
fn tap_of((descriptors, bytes): Output, queues: u16) -> Option<Tap> {
    let info = TapInfo::from_bytes(&bytes)?;
    (descriptors.len() == usize::from(queues)).then(|| Tap::from_fds(descriptors, info))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_apart() {
        let ok = outcome(vec![], &[SUCCEEDED, 1, 2]).unwrap();
        assert_eq!(ok.1, [1, 2]);
        let error = outcome(vec![], &[&[FAILED], &b"why"[..]].concat()).unwrap_err();
        assert_eq!(error.to_string(), "why");
        assert_eq!(outcome(vec![], &[]).unwrap_err().to_string(), "");
    }
}
