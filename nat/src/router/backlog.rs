//! Datagram sockets that had more to receive than one round allows, in the order of their next rounds.
//!
//! A round may be a megabyte. Each event gives its socket one at once; what is left then waits here,
//! each socket once however many events it had, and a few go on in each call of
//! [`Router::handle_timeout`](super::Router::handle_timeout).

use std::collections::{BTreeMap, VecDeque};

use crate::host::{Readiness, Token};

/// Sockets that go on in one call of [`Router::handle_timeout`](super::Router::handle_timeout).
pub(super) const BACKLOG_ROUNDS: usize = 4;

/// The sockets that wait for their next round.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// What each socket has left, by the bits of its token.
    left: BTreeMap<u64, Readiness>,
    /// The order of their rounds: each once.
    order: VecDeque<Token>,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Keeps what a socket's round has left for its next one, which mostly is nothing.
    #[inline]
    pub(super) fn push(&mut self, token: Token, left: Readiness) {
        if left != Readiness::default() {
            self.keep(token, left);
        }
    }

    fn keep(&mut self, token: Token, left: Readiness) {
        let waiting = self.left.entry(token.to_bits()).or_insert_with(|| {
            self.order.push_back(token);
            Readiness::default()
        });
        *waiting = Readiness {
            readable: waiting.readable | left.readable,
            writable: waiting.writable | left.writable,
            read_closed: waiting.read_closed | left.read_closed,
            error: waiting.error | left.error,
        };
    }

    /// The socket whose round is next, and what it had left.
    pub(super) fn pop(&mut self) -> Option<(Token, Readiness)> {
        let token = self.order.pop_front()?;
        Some((token, self.left.remove(&token.to_bits())?))
    }
}
