//! Sockets kept ready for connections, and the bound on those of all containers together.
//!
//! A pool is filled once there was a client, and is kept full from then on. Where the pools of many
//! containers would become too large together, those that had no client for longest are given up:
//! their next client waits for the socket helper, as the first one did.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use cnet_wire::time::Instant;

use super::Client;

/// Sockets of one family asked for at once, and held at most.
const POOL_LEN: usize = 32;
/// Further ones are asked for when there are fewer.
const LOW_WATER: usize = POOL_LEN / 2;

/// The sockets of one family.
#[derive(Debug, Default)]
pub(super) struct SocketPool {
    pub(super) sockets: Vec<OwnedFd>,
    /// Sockets of an answer that is awaited.
    pub(super) asked: usize,
    /// The number of its last client among all. Without one it is not kept.
    pub(super) used: Option<u64>,
    /// Clients that came too early, and until when they wait. The first has waited longest.
    pub(super) waiting: VecDeque<(Instant, Client)>,
}

impl SocketPool {
    /// How many sockets it is short of, if it is to be filled now.
    pub(super) fn short(&self) -> Option<usize> {
        let low = self.used.is_some() && self.asked == 0 && self.sockets.len() < LOW_WATER;
        low.then(|| POOL_LEN - self.sockets.len())
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

/// How many of `more` sockets may be asked for, when the others' `pools` are to have no more than
/// `limit` together with them. At least one, as there was a client.
pub(super) fn make_room<'a>(
    pools: impl Iterator<Item = &'a mut SocketPool>,
    more: usize,
    limit: usize,
) -> usize {
    let mut pools: Vec<&mut SocketPool> = pools.filter(|s| s.held() > 0).collect();
    let all: usize = pools.iter().map(|s| s.held()).sum();
    let mut over = (all + more).saturating_sub(limit);
    if over > 0 {
        pools.sort_by_key(|pool| pool.used);
        for pool in pools {
            if over > 0 && pool.waiting.is_empty() {
                over = over.saturating_sub(pool.give_up());
            }
        }
    }
    more.saturating_sub(over).max(1)
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn pool(sockets: usize, used: Option<u64>) -> SocketPool {
        let socket = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        SocketPool {
            sockets: std::iter::repeat_with(socket).take(sockets).collect(),
            used,
            ..SocketPool::default()
        }
    }

    fn held(pools: &[SocketPool]) -> Vec<usize> {
        pools.iter().map(|s| s.sockets.len()).collect()
    }

    #[test]
    fn who_had_no_client_for_longest_makes_room() {
        let mut pools = [pool(32, Some(3)), pool(32, Some(1)), pool(0, None)];
        assert_eq!(make_room(pools.iter_mut(), 32, 96), 32);
        assert_eq!(held(&pools), [32, 32, 0]);
        assert_eq!(make_room(pools.iter_mut(), 32, 95), 32);
        assert_eq!(held(&pools), [32, 0, 0]);
        assert_eq!(pools[1].short(), None, "not kept without a client");
        pools[1].used = Some(5);
        assert_eq!(pools[1].short(), Some(32));
    }

    #[test]
    fn what_is_awaited_counts_and_a_client_has_its_socket_in_any_case() {
        // The last of them was given up while its answer was on the way.
        let mut pools = [pool(10, Some(1)), pool(0, Some(2)), pool(3, None)];
        pools[1].asked = 32;
        assert_eq!(make_room(pools.iter_mut(), 29, 40), 8);
        assert_eq!(held(&pools), [0, 0, 0]);
        assert_eq!(make_room(pools.iter_mut(), 29, 20), 1);
        assert_eq!(pools[1].short(), None, "an answer is awaited");
    }
}
