//! Whose addresses a frame speaks with, and for.
//!
//! # Theory of operation
//!
//! - *Is the source the port's own?* The MAC address always; the IP address where spoof protection
//!   is on.
//! - *Does it claim an address for a station?* ARP and neighbour discovery write other stations'
//!   caches, so what they claim is checked on every port: the gateway's and other ports' leased
//!   addresses are never the claimant's.
//!
//! IPv6 hosts make up addresses of their own (RFC 7217, RFC 8981), which no lease can foretell.
//! Those in fe80::/10 and in the network's own prefixes belong to the port that uses them first
//! (FCFS SAVI, RFC 6620), within a limit.
//!
//! # Limits
//!
//! A duplicate address detection probe claims nothing yet and is let through.

use std::net::IpAddr;

use crate::fdb::Refusal;
use crate::port::{LastSource, Port};
use crate::stations::Stations;
use cnet_wire::addr::{MacAddr, PortId};
use cnet_wire::arp::{OP_REPLY, OP_REQUEST};
use cnet_wire::drops::DropReason;
use cnet_wire::frame::{Frame, IpHeader};
use cnet_wire::icmp::v6;
use cnet_wire::ndp::{self, NdpOptions};
use cnet_wire::time::Instant;

/// The port a frame came from, and what its addresses are held against.
pub(crate) struct Source<'a> {
    pub(crate) now: Instant,
    pub(crate) id: PortId,
    pub(crate) port: &'a mut Port,
    pub(crate) stations: &'a Stations,
}

impl Source<'_> {
    /// The sources of an IP packet.
    #[inline]
    pub(super) fn admit_packet(&mut self, mac: MacAddr, src: IpAddr) -> Result<(), DropReason> {
        self.admit_mac(mac)?;
        self.admit_ip(mac, src)
    }

    /// The source MAC address must be the port's own. Learns it.
    #[inline]
    fn admit_mac(&mut self, src: MacAddr) -> Result<(), DropReason> {
        if self.port.last_source.is(self.now, src) {
            return Ok(());
        }
        match self.port.config.lease.mac {
            Some(own) if own == src => {}
            Some(_) if self.port.config.is_guarded() => return Err(DropReason::Spoofed),
            _ => {
                let limit = self.port.config.max_macs;
                match self.stations.fdb.observe(self.now, src, self.id, limit) {
                    Ok(()) => {}
                    Err(Refusal::Owned) => return Err(DropReason::Spoofed),
                    Err(Refusal::Full) => return Err(DropReason::MacTableFull),
                }
            }
        }
        self.port.last_source = LastSource::new(src, self.now);
        Ok(())
    }

    /// The source IP address must be the port's own, where spoof protection is on. Learns it.
    #[inline]
    fn admit_ip(&mut self, mac: MacAddr, src: IpAddr) -> Result<(), DropReason> {
        if self.port.last_source.has(src) {
            return Ok(());
        }
        if !src.is_unspecified() {
            self.admit_own(src, mac)?;
        }
        self.port.last_source.add(src);
        Ok(())
    }

    /// `addr` must be leased or granted to the port or, as RFC 6620 has it, be its by first use; without
    /// spoof protection the port may use any, but does not get what is another's.
    fn admit_own(&self, addr: IpAddr, mac: MacAddr) -> Result<(), DropReason> {
        let config = &self.port.config;
        let may_learn = !config.is_guarded()
            || config.lease.holds(addr)
            || match addr {
                IpAddr::V4(_) => self.stations.addresses.pinned(addr) == Some(self.id),
                IpAddr::V6(a) => self.stations.may_be_taken(a),
            };
        let station = (self.id, mac);
        let is_own = may_learn
            && self
                .stations
                .learn(self.now, addr, station, config.max_addresses)
                .is_ok();
        match is_own || !config.is_guarded() {
            true => Ok(()),
            false => Err(DropReason::Spoofed),
        }
    }

    /// The port says, in a frame from `src`, that `addr` is its own, at `mac`. What a station says of
    /// another MAC address than its own is let through, where it may be, and not believed.
    fn admit_claim(&self, addr: IpAddr, src: MacAddr, mac: MacAddr) -> Result<(), DropReason> {
        let owner = self.stations.addresses.pinned(addr);
        if owner.is_some_and(|owner| owner != self.id) {
            return Err(DropReason::Spoofed);
        }
        if src != mac {
            return Ok(());
        }
        self.admit_own(addr, mac)
    }

    /// The port says that `mac`, in a frame from `src`, is where an address of its own lives.
    fn admit_claimed_mac(&self, src: MacAddr, mac: MacAddr) -> Result<(), DropReason> {
        if mac == src {
            return Ok(());
        }
        let owner = self.stations.fdb.pinned(mac);
        if self.port.config.is_guarded() || owner.is_some_and(|owner| owner != self.id) {
            return Err(DropReason::Spoofed);
        }
        Ok(())
    }

    /// The source of an ARP message, and what it claims.
    pub(super) fn admit_arp(&mut self, frame: &Frame<'_>) -> Result<(), DropReason> {
        let src = frame.src;
        self.admit_mac(src)?;
        let arp = frame.arp().ok_or(DropReason::BadArp)?;
        let known = matches!(arp.operation, OP_REQUEST | OP_REPLY);
        if !known || arp.sender_mac.is_multicast() || arp.sender_mac.is_zero() {
            return Err(DropReason::BadArp);
        }
        self.admit_claimed_mac(src, arp.sender_mac)?;
        // A probe claims nothing yet (RFC 5227 section 1.1).
        if arp.sender_ip.is_unspecified() {
            return Ok(());
        }
        self.admit_claim(IpAddr::V4(arp.sender_ip), src, arp.sender_mac)
    }

    /// An ICMPv6 message: what it claims, if it is one of neighbour discovery.
    pub(super) fn admit_icmpv6(&self, frame: &Frame<'_>, ip: &IpHeader) -> Result<(), DropReason> {
        let (src, l4) = (frame.src, frame.l4(ip));
        match l4.first() {
            Some(
                &(v6::ROUTER_SOLICITATION
                | v6::NEIGHBOUR_SOLICITATION
                | v6::NEIGHBOUR_ADVERTISEMENT),
            ) => {}
            _ => return Ok(()),
        }
        let options = NdpOptions::of(l4)?;
        if ip.hop_limit != ndp::HOP_LIMIT {
            return Err(DropReason::BadIcmp);
        }
        if !ip.src.is_unspecified() {
            self.admit_claim(ip.src, src, src)?;
        }
        if let (Some(&v6::NEIGHBOUR_ADVERTISEMENT), Some(target)) = (l4.first(), ndp::target(l4)) {
            self.admit_claim(IpAddr::V6(target), src, src)?;
        }
        for option in options {
            if let Some(mac) = option?.link_layer_address() {
                self.admit_claimed_mac(src, mac)?;
            }
        }
        Ok(())
    }
}
