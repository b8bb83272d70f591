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

use crate::fdb::{REFRESH_INTERVAL, Refusal};
use crate::port::{MAX_TAKEN_ADDRESSES, Port};
use crate::stations::Stations;
use cnet_wire::addr::{MacAddr, PortId};
use cnet_wire::arp::ArpPacket;
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
    /// The source MAC address must be the port's own. Learns it.
    #[inline]
    pub(super) fn admit_mac(&mut self, src: MacAddr) -> Result<(), DropReason> {
        if self
            .port
            .last_source
            .is_some_and(|(mac, at)| mac == src && self.now.saturating_since(at) < REFRESH_INTERVAL)
        {
            return Ok(());
        }
        if self.stations.is_gateway_mac(src) {
            return Err(DropReason::Spoofed);
        }
        match self.port.config.lease.mac {
            Some(own) if own == src => {}
            Some(_) if self.port.config.spoof_protection => return Err(DropReason::Spoofed),
            _ => {
                let limit = self.port.config.max_macs;
                match self.stations.fdb.observe(self.now, src, self.id, limit) {
                    Ok(()) => {}
                    Err(Refusal::Owned) => return Err(DropReason::Spoofed),
                    Err(Refusal::Full) => return Err(DropReason::MacTableFull),
                }
            }
        }
        self.port.last_source = Some((src, self.now));
        Ok(())
    }

    /// The source IP address must be the port's own, where spoof protection is on.
    #[inline]
    pub(super) fn admit_ip(&self, src: IpAddr) -> Result<(), DropReason> {
        if self.port.config.spoof_protection && !src.is_unspecified() {
            self.admit_own(src)?;
        }
        Ok(())
    }

    /// `addr` must be leased to the port or, as RFC 6620 has it, be its by first use.
    fn admit_own(&self, addr: IpAddr) -> Result<(), DropReason> {
        if self.port.config.lease.holds(addr) {
            return Ok(());
        }
        match addr {
            IpAddr::V6(a) if self.stations.may_be_taken(a) => self
                .stations
                .addresses
                .observe(self.now, addr, self.id, MAX_TAKEN_ADDRESSES)
                .map_err(|_| DropReason::Spoofed),
            _ => Err(DropReason::Spoofed),
        }
    }

    /// The port says that `addr` is its own.
    fn admit_claim(&self, addr: IpAddr) -> Result<(), DropReason> {
        let others = self.stations.addresses.pinned(addr);
        if self.stations.is_gateway_address(addr) || others.is_some_and(|owner| owner != self.id) {
            Err(DropReason::Spoofed)
        } else if self.port.config.spoof_protection {
            self.admit_own(addr)
        } else {
            Ok(())
        }
    }

    /// The port says that `mac`, in a frame from `src`, is where an address of its own lives.
    fn admit_claimed_mac(&self, src: MacAddr, mac: MacAddr) -> Result<(), DropReason> {
        if mac == src {
            return Ok(());
        }
        let others = self.stations.fdb.pinned(mac);
        if self.port.config.spoof_protection
            || self.stations.is_gateway_mac(mac)
            || others.is_some_and(|owner| owner != self.id)
        {
            return Err(DropReason::Spoofed);
        }
        Ok(())
    }

    /// What an ARP message claims must be the port's own.
    pub(super) fn admit_arp(&self, src: MacAddr, arp: &ArpPacket) -> Result<(), DropReason> {
        if arp.sender_mac.is_multicast() || arp.sender_mac.is_zero() {
            return Err(DropReason::BadArp);
        }
        self.admit_claimed_mac(src, arp.sender_mac)?;
        // A probe claims nothing yet (RFC 5227 section 1.1).
        if arp.sender_ip.is_unspecified() {
            return Ok(());
        }
        self.admit_claim(IpAddr::V4(arp.sender_ip))
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
            self.admit_claim(ip.src)?;
        }
        if let (Some(&v6::NEIGHBOUR_ADVERTISEMENT), Some(target)) = (l4.first(), ndp::target(l4)) {
            self.admit_claim(IpAddr::V6(target))?;
        }
        for option in options {
            if let Some(mac) = option?.link_layer_address() {
                self.admit_claimed_mac(src, mac)?;
            }
        }
        Ok(())
    }
}
