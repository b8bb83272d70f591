//! Bytes and values of cnet, without state: each header is read in one place and written in one
//! place, and no other crate counts octets.
//!
//! Readers: [`vnet`], [`frame`] (which reads [`ethernet`], [`arp`], IPv4 and [`ipv6`] once, from
//! outside to inside, into the values of [`ip`]). Writers: [`headers`] in front of a payload that stands in place already, [`segment`]
//! and its reverse [`join`] for ports without offloads, [`checksum`] for both. Readers and writers of what a gateway speaks:
//! [`icmp`], [`ndp`], [`dhcp`], [`dns`]; of what it translates: [`tcp`], [`udp`]; of tunnels: [`vxlan`]. Vocabulary that all
//! crates share: [`addr`], [`access`], [`drops`], [`time`], and what one crate asks of another as traits: [`sink`],
//! where frames leave the pure core, [`host`], the sockets it asks for, and [`stations`], who is where on
//! the link. They stand here, below the crates that use them and the kit that tests them, so that one fake
//! host serves the unit tests of all.
//!
//! # The contract of the pure crates
//!
//! `cnet-wire`, `cnet-vswitch`, `cnet-nat` and `cnet-core` hold no descriptor, clock, thread or
//! random source. Time comes in as a [`time::Instant`], seeds come in at construction, and effects
//! leave through small traits with static dispatch. A state machine's methods are sorted by name:
//!
//! - `handle_*(now, …)` takes one event in (a frame, a socket's readiness, an expired deadline);
//! - `poll_timeout()` tells when `handle_timeout(now)` wants to be called next, if at all;
//! - everything else is a getter or a configuration change.
//!
//! A packet that is refused is an outcome, not an error: it is counted under its [`DropReason`].
#![forbid(unsafe_code)]

pub mod access;
pub mod addr;
pub mod arp;
pub mod checksum;
pub mod conversation;
pub mod dhcp;
pub mod dns;
pub mod drops;
pub mod ethernet;
mod fragment;
pub mod frame;
pub mod headers;
pub mod host;
pub mod icmp;
pub mod ip;
mod ipv4;
pub mod ipv6;
pub mod join;
pub mod ndp;
pub mod packet;
pub mod prefixes;
pub mod segment;
pub mod sink;
pub mod stations;
pub mod tcp;
pub mod time;
pub mod udp;
pub mod vnet;
pub mod vxlan;

pub use addr::{MacAddr, MacAddrError, PortId, Protocol, ProtocolError};
pub use drops::{DropCounters, DropReason};
pub use frame::{Fragment, Frame, IpHeader, L3};
pub use join::Joined;
pub use packet::Packet;
pub use segment::Segments;
pub use sink::{FrameSink, PortFull};
pub use vnet::VnetHeader;
pub use vxlan::Vni;
