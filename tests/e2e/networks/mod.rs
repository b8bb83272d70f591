//! Named networks, with the program as it is: containers join and leave while others run, find each
//! other and the world, and are kept from what is not theirs.
//!
//! Containers are made by somebody else, by `unshare` or `cnet run`, and the tests look at them from
//! inside. What an ordinary user does is done as root as well: they differ in directories, user
//! namespaces and the right to open ports.

mod events;
mod filter;
mod foul;
mod ill;
mod last_data;
mod management;
mod metrics;
mod mistakes;
mod moves;
mod names;
mod policy;
mod ports;
mod removal;
mod several;
mod sixty_four;
mod stalled;
mod survival;
mod tutorial;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::lab::place::{Member, Place};
use crate::lab::run::SHORT;
use crate::lab::servers::UdpServer;
use crate::lab::{Lab, REMOTE_V4, wait_until};

/// Waits until a container of that name is on no network.
fn wait_for_leave(place: &Place<'_>, name: &str) {
    wait_until("the container is gone", SHORT, || {
        let listed = place.json("ps --format json");
        let rows = listed.as_array().expect("a list");
        match rows.iter().any(|row| row["name"] == name) {
            true => Err(listed.to_string()),
            false => Ok(()),
        }
    });
}

/// A DNS server on the second host: names that start with `known` have the address `known`, no
/// others exist.
fn upstream(lab: &Lab, known: Ipv4Addr) -> UdpServer {
    UdpServer::start(
        &lab.remote,
        SocketAddr::new(REMOTE_V4.into(), 53),
        move |query| {
            let mut answer = query.to_vec();
            // A response; recursion desired and available.
            (answer[2], answer[3]) = (0x81, 0x80);
            if query[12..].starts_with(b"\x05known") {
                answer[7] = 1;
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(known.octets());
            } else {
                answer[3] |= 3;
            }
            Some(answer)
        },
    )
}

/// How long after its last container a network's process may be there.
const GONE: Duration = Duration::from_secs(5);
