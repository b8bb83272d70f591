//! Sockets kept ready for connections, and the bound on those of all containers together.
//!
//! A stock is filled once there was a client, and is kept full from then on. Where the stocks of
//! many containers would become too large together, those that had no client for longest are given
//! up: their next client waits for the supplier, as the first one did.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use cnet_wire::time::Instant;

use super::Client;

/// Sockets of one family asked for at once, and held at most.
const STOCK: usize = 32;
/// Further ones are asked for when there are fewer.
const LOW: usize = STOCK / 2;

/// The sockets of one family.
#[derive(Debug, Default)]
pub(super) struct Stock {
    pub(super) sockets: Vec<OwnedFd>,
    /// Sockets of an answer that is awaited.
    pub(super) asked: usize,
    /// The number of its last client among all. Without one it is not kept.
    pub(super) used: Option<u64>,
    /// Clients that came too early, and until when they wait. The first has waited longest.
    pub(super) waiting: VecDeque<(Instant, Client)>,
}

impl Stock {
    /// How many sockets it is short of, if it is to be filled now.
    pub(super) fn short(&self) -> Option<usize> {
        let low = self.used.is_some() && self.asked == 0 && self.sockets.len() < LOW;
        low.then(|| STOCK - self.sockets.len())
    }

    /// Sockets that it has or will have.
    fn held(&self) -> usize {
        self.sockets.len() + self.asked
    }

    /// Gives its sockets up until there is a client again; how many they were.
    fn give_up(&mut self) -> usize {
        self.used = None;
        std::mem::take(&mut self.sockets).len()
    }
}

/// How many of `more` sockets may be asked for, when the others' `stocks` are to have no more than
/// `limit` together with them. At least one, as there was a client.
pub(super) fn make_room<'a>(
    stocks: impl Iterator<Item = &'a mut Stock>,
    more: usize,
    limit: usize,
) -> usize {
    let mut stocks: Vec<&mut Stock> = stocks.filter(|s| s.held() > 0).collect();
    let all: usize = stocks.iter().map(|s| s.held()).sum();
    let mut over = (all + more).saturating_sub(limit);
    if over > 0 {
        stocks.sort_by_key(|stock| stock.used);
        for stock in stocks {
            if over > 0 && stock.waiting.is_empty() {
                over = over.saturating_sub(stock.give_up());
            }
        }
    }
    more.saturating_sub(over).max(1)
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn stock(sockets: usize, used: Option<u64>) -> Stock {
        let socket = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Stock {
            sockets: std::iter::repeat_with(socket).take(sockets).collect(),
            used,
            ..Stock::default()
        }
    }

    fn held(stocks: &[Stock]) -> Vec<usize> {
        stocks.iter().map(|s| s.sockets.len()).collect()
    }

    #[test]
    fn who_had_no_client_for_longest_makes_room() {
        let mut stocks = [stock(32, Some(3)), stock(32, Some(1)), stock(0, None)];
        assert_eq!(make_room(stocks.iter_mut(), 32, 96), 32);
        assert_eq!(held(&stocks), [32, 32, 0]);
        assert_eq!(make_room(stocks.iter_mut(), 32, 95), 32);
        assert_eq!(held(&stocks), [32, 0, 0]);
        assert_eq!(stocks[1].short(), None, "not kept without a client");
        stocks[1].used = Some(5);
        assert_eq!(stocks[1].short(), Some(32));
    }

    #[test]
    fn what_is_awaited_counts_and_a_client_has_its_socket_in_any_case() {
        // The last of them was given up while its answer was on the way.
        let mut stocks = [stock(10, Some(1)), stock(0, Some(2)), stock(3, None)];
        stocks[1].asked = 32;
        assert_eq!(make_room(stocks.iter_mut(), 29, 40), 8);
        assert_eq!(held(&stocks), [0, 0, 0]);
        assert_eq!(make_room(stocks.iter_mut(), 29, 20), 1);
        assert_eq!(stocks[1].short(), None, "an answer is awaited");
    }
}
