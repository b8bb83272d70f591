//! One socket of the host: what it is, and what its packets are to say.

use std::os::fd::OwnedFd;

use cnet_nat::host::{HeaderFields, HostError, SendOptions};
use cnet_tap::socket as sys;
use rustix::net::sockopt;

use super::errno::{from_errno, from_io};

/// A socket of the host.
#[derive(Debug)]
pub(super) struct HostSocket {
    pub(super) fd: OwnedFd,
    pub(super) v6: bool,
    /// Datagrams that may be joined to trains; echo messages may not.
    pub(super) udp: bool,
    /// A TCP connection of a flow, which is reset if it is closed before its time.
    pub(super) tcp: bool,
    /// TCP: where the kernel's peek offset stands, if it keeps one. UDP: unused.
    pub(super) peek_off: Option<usize>,
    /// What datagrams are sent with at present, so that it is set only when it changes: IPv4's and
    /// IPv6's, since a published socket may serve both.
    pub(super) sent_with: [SentWith; 2],
    pub(super) dont_fragment: bool,
    /// TCP: ICMP errors about its connect are queued.
    pub(super) traced: bool,
}

/// What datagrams of one family are sent with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentWith {
    pub(super) hop_limit: u8,
    pub(super) tos: u8,
}

impl HostSocket {
    /// What the packets of a TCP connection are to say. Where the host does not take it, the connection
    /// is worth more.
    pub(super) fn set_fields(&mut self, fields: HeaderFields) {
        // A socket that was told nothing sends what is usual.
        let usual = HeaderFields::default();
        let mut with = self.sent_with[usize::from(self.v6)];
        let told = (with.hop_limit != 0).then_some(with.hop_limit);
        if told.unwrap_or(usual.hop_limit) != fields.hop_limit {
            let _ = match self.v6 {
                true => sockopt::set_ipv6_unicast_hops(&self.fd, Some(fields.hop_limit)),
                false => sockopt::set_ip_ttl(&self.fd, u32::from(fields.hop_limit)),
            };
            with.hop_limit = fields.hop_limit;
        }
        if with.tos != fields.tos {
            let _ = match self.v6 {
                true => sockopt::set_ipv6_tclass(&self.fd, u32::from(fields.tos)),
                false => sockopt::set_ip_tos(&self.fd, fields.tos),
            };
            with.tos = fields.tos;
        }
        self.sent_with[usize::from(self.v6)] = with;
    }

    /// Brings the socket to what the next datagram is to be sent with.
    pub(super) fn apply(&mut self, options: &SendOptions) -> Result<(), HostError> {
        // Not where the address is one of IPv4, mapped.
        let as_ipv6 = self.v6 && options.to.ip().to_canonical().is_ipv6();
        let mut with = self.sent_with[usize::from(as_ipv6)];
        if with.hop_limit != options.hop_limit {
            let set = if as_ipv6 {
                sockopt::set_ipv6_unicast_hops(&self.fd, Some(options.hop_limit))
            } else {
                sockopt::set_ip_ttl(&self.fd, u32::from(options.hop_limit))
            };
            set.map_err(from_errno)?;
            with.hop_limit = options.hop_limit;
        }
        if with.tos != options.tos {
            let set = if as_ipv6 {
                sockopt::set_ipv6_tclass(&self.fd, u32::from(options.tos))
            } else {
                sockopt::set_ip_tos(&self.fd, options.tos)
            };
            // Some classes need privilege; the datagram is worth more than its class.
            let _ = set;
            with.tos = options.tos;
        }
        self.sent_with[usize::from(as_ipv6)] = with;
        if self.dont_fragment != options.dont_fragment {
            sys::set_dont_fragment(&self.fd, self.v6, options.dont_fragment)
                .map_err(|e| from_io(&e))?;
            self.dont_fragment = options.dont_fragment;
        }
        Ok(())
    }
}
