//! The IP addresses of the current network namespace, and when they, or its routes, change
//! (rtnetlink(7)).
//!
//! # Theory of operation
//!
//! One socket is subscribed to the kernel's groups for addresses and polls readable after a change.
//! What its messages say is not looked at: they may have been lost (netlink(7), ENOBUFS). Instead all
//! addresses are asked for again, over a second socket, so that answers and messages do not mix.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use crate::error::TapError;
use crate::netlink;

/// Multicast groups as the bits of `nl_groups` (`RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` in
/// `<linux/rtnetlink.h>`).
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;
/// The same of routes (`RTMGRP_IPV4_ROUTE` and `RTMGRP_IPV6_ROUTE`).
const ROUTE_GROUPS: u32 = 0x40 | 0x400;

/// The kernel fills a dump's datagrams up to what the reader has room for, 32 KiB at most.
const DUMP_SPACE: usize = 32 * 1024;

/// Datagrams of one dump. With 400 addresses in each, more do not occur.
const MAX_DATAGRAMS: usize = 1024;

/// The addresses of a network namespace. It polls readable when they may have changed.
#[derive(Debug)]
pub struct HostAddresses {
    changes: OwnedFd,
    questions: OwnedFd,
    sequence: u32,
}

impl HostAddresses {
    /// Those of the current network namespace.
    ///
    /// # Errors
    ///
    /// What socket(2) or bind(2) says.
    pub fn open() -> io::Result<HostAddresses> {
        Ok(HostAddresses {
            changes: open(ADDRESS_GROUPS)?,
            questions: open(0)?,
            sequence: 0,
        })
    }

    /// Reads what is known of changes, so that the next one is an event. Does not wait.
    pub fn forget_changes(&self) {
        forget(self.changes.as_fd());
    }

    /// All addresses there are now. The kernel answers at once.
    ///
    /// # Errors
    ///
    /// What netlink(7) says; `TimedOut` if the answer has no end.
    pub fn list(&mut self) -> io::Result<Vec<IpAddr>> {
        let all = self.ask()?;
        Ok(all.into_iter().map(|(_, address)| address).collect())
    }

    /// The addresses that the interface of this name has now, in the kernel's order.
    ///
    /// # Errors
    ///
    /// As [`list`](HostAddresses::list); [`crate::TapError::NoSuchInterface`].
    pub fn of_interface(&mut self, name: &str) -> Result<Vec<IpAddr>, TapError> {
        let index = crate::netif::index_of(name)?;
        let all = self
            .ask()
            .map_err(TapError::io("cannot ask for the host's addresses"))?;
        let its = all.into_iter().filter(|(of, _)| *of == index);
        Ok(its.map(|(_, address)| address).collect())
    }

    /// All addresses, each with the index of its interface.
    fn ask(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        self.sequence += 1;
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let bytes = netlink::request(question, flags, self.sequence);
        send(&self.questions, &bytes, SendFlags::empty())?;
        let (mut found, mut space) = (Vec::new(), vec![0; DUMP_SPACE]);
        for _ in 0..MAX_DATAGRAMS {
            let (length, _) = recv(&self.questions, &mut space, RecvFlags::empty())?;
            if self.take(&space[..length.min(DUMP_SPACE)], &mut found)? {
                return Ok(found);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Adds the addresses in one datagram to `found`; whether it was the last.
    fn take(&self, datagram: &[u8], found: &mut Vec<(u32, IpAddr)>) -> io::Result<bool> {
        for answer in netlink::answers(datagram, self.sequence) {
            match answer? {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                    let own = own_address(&address);
                    found.extend(own.map(|own| (address.header.index, own)));
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Tells that routes of a network namespace have changed: it polls readable then. Which, it does not tell.
#[derive(Debug)]
pub struct RouteChanges(OwnedFd);

impl RouteChanges {
    /// Of the current network namespace.
    ///
    /// # Errors
    ///
    /// What socket(2) or bind(2) says.
    pub fn open() -> io::Result<RouteChanges> {
        open(ROUTE_GROUPS).map(RouteChanges)
    }

    /// Reads what is known of changes, so that the next one is an event. Does not wait.
    pub fn forget(&self) {
        forget(self.0.as_fd());
    }
}

impl AsFd for RouteChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket to rtnetlink that hears of changes of these groups.
fn open(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    // Protocol 0 of netlink is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn forget(changes: BorrowedFd<'_>) {
    let mut space = [0_u8; 4096];
    // ENOBUFS says that messages were lost, which is as good: all there is is asked for anyway.
    for _ in 0..MAX_DATAGRAMS {
        if let Err(Errno::AGAIN) = recv(changes, &mut space, RecvFlags::DONTWAIT) {
            return;
        }
    }
}

impl AsFd for HostAddresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

/// On a point-to-point link `Address` is the other end's, and `Local` our own (`<linux/if_addr.h>`).
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(own) => return Some(*own),
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_its_address_each_time() {
        let mut addresses = HostAddresses::open().unwrap();
        for _ in 0..2 {
            let found = addresses.list().unwrap();
            assert!(found.contains(&"127.0.0.1".parse().unwrap()), "{found:?}");
        }
        addresses.forget_changes();
    }

    #[test]
    fn an_interface_has_its_own_addresses_alone() {
        let mut addresses = HostAddresses::open().unwrap();
        let of_loopback = addresses.of_interface("lo").unwrap();
        assert_eq!(of_loopback.first(), Some(&"127.0.0.1".parse().unwrap()));
        assert!(of_loopback.iter().all(IpAddr::is_loopback));
        let error = addresses.of_interface("no-such-if").unwrap_err();
        assert!(matches!(error, TapError::NoSuchInterface { .. }), "{error}");
    }
}
