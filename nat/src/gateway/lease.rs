//! Which port is entitled to which address: what DHCP tells.
//!
//! A *fixed* lease comes with its port. Where a range is given, a port without one gets a *dynamic*
//! IPv4 lease out of it: one a port, whatever MAC addresses and client identifiers its requests carry,
//! so that no port can drain the range. The table of stations holds both for their port
//! ([`cnet_wire::stations`]): there, a fixed lease takes an address from a dynamic one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cnet_wire::PortId;

/// The lease that a port comes with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The holder.
    pub port: PortId,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address, handed out by DHCPv6 only.
    pub v6: Option<Ipv6Addr>,
    /// Its host name, for DHCPv4.
    pub hostname: Option<String>,
}

impl Lease {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// A port's place in the range.
#[derive(Default)]
struct Dynamic {
    address: Option<Ipv4Addr>,
    /// Where the next search starts, so that a declined address is not offered at once again.
    cursor: Option<Ipv4Addr>,
}

/// All leases of the network.
pub(super) struct Leases {
    fixed: BTreeMap<PortId, Lease>,
    range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Whether DHCPv4 gives addresses of the range to holders of fixed leases as well.
    from_range: bool,
    dynamic: BTreeMap<PortId, Dynamic>,
}

impl Leases {
    pub(super) fn new(range: Option<(Ipv4Addr, Ipv4Addr)>, from_range: bool) -> Leases {
        Leases {
            fixed: BTreeMap::new(),
            range: range.filter(|(first, last)| first <= last),
            from_range,
            dynamic: BTreeMap::new(),
        }
    }

    /// Adds a fixed lease. A port that has its address from the range has it no more.
    pub(super) fn add(&mut self, lease: Lease) {
        self.dynamic
            .retain(|_, d| d.address.is_none() || d.address != lease.v4);
        self.fixed.insert(lease.port, lease);
    }

    /// Forgets what `port` holds.
    pub(super) fn remove_port(&mut self, port: PortId) {
        self.fixed.remove(&port);
        self.dynamic.remove(&port);
    }

    /// The fixed lease of `port`.
    pub(super) fn fixed(&self, port: PortId) -> Option<&Lease> {
        self.fixed.get(&port)
    }

    /// The addresses leased to `port`.
    pub(super) fn addresses_of(&self, port: PortId) -> impl Iterator<Item = IpAddr> + '_ {
        let fixed = self.fixed(port).into_iter();
        let dynamic = self.dynamic.get(&port).and_then(|d| d.address);
        fixed
            .flat_map(Lease::addresses)
            .chain(dynamic.map(IpAddr::V4))
    }

    /// Whether any port has `ip` leased or granted.
    pub(super) fn has(&self, ip: IpAddr) -> bool {
        let mut ports = self.fixed.keys().chain(self.dynamic.keys());
        ports.any(|&port| self.addresses_of(port).any(|own| own == ip))
    }

    /// The IPv4 address that DHCP tells `port` because of its fixed lease.
    fn fixed_v4(&self, port: PortId) -> Option<Ipv4Addr> {
        let address = self.fixed(port).and_then(|l| l.v4);
        address.filter(|_| !self.from_range)
    }

    /// Gives `port` the address of the range that its client `wants`, if it has no fixed one and that
    /// is free (RFC 2131 section 4.3.1); tells which address it gives back for it. `is_free` is asked
    /// of an address of the range alone.
    pub(super) fn move_to(
        &mut self,
        port: PortId,
        wants: Ipv4Addr,
        is_free: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let (first, last) = self.range?;
        let held = self.dynamic.get(&port).and_then(|d| d.address);
        let is_other = (first..=last).contains(&wants) && held != Some(wants);
        if self.fixed_v4(port).is_some() || !is_other || !is_free(wants) {
            return None;
        }
        self.dynamic.entry(port).or_default().address.replace(wants)
    }

    /// The IPv4 address of `port`, taken from the range if it has no other. `is_free` is asked of
    /// addresses of the range in their order, and the first that it takes for free is the port's.
    pub(super) fn v4(
        &mut self,
        port: PortId,
        is_free: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        if let Some(a) = self.fixed_v4(port) {
            return Some(a);
        }
        let state = self.dynamic.get(&port);
        if let Some(a) = state.and_then(|d| d.address) {
            return Some(a);
        }
        let (first, last) = self.range.map(|(a, b)| (u32::from(a), u32::from(b)))?;
        let start = state
            .and_then(|d| d.cursor)
            .map_or(first, |c| u32::from(c).clamp(first, last));
        // Each step passes over an address that is leased or granted, so there are no more of them than
        // that.
        let found = (start..=last)
            .chain(first..start)
            .map(Ipv4Addr::from)
            .find(|&a| is_free(a))?;
        self.dynamic.entry(port).or_default().address = Some(found);
        Some(found)
    }

    /// Takes back the dynamic lease of `port`, and tells which address that was. After a decline the
    /// search goes on behind the refused address.
    pub(super) fn release(&mut self, port: PortId, declined: bool) -> Option<Ipv4Addr> {
        let state = self.dynamic.get_mut(&port)?;
        let address = state.address.take()?;
        if declined {
            state.cursor = Some(Ipv4Addr::from(u32::from(address).saturating_add(1)));
        }
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Leases of a range, and who has its addresses in the table of stations.
    struct Range {
        leases: Leases,
        granted: RefCell<BTreeMap<Ipv4Addr, PortId>>,
    }

    impl Range {
        fn new() -> Range {
            Range {
                leases: Leases::new(Some((host(15), host(18))), false),
                granted: RefCell::default(),
            }
        }

        fn ask(&mut self, port: u32, usable: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
            let port = PortId(port);
            let granted = &self.granted;
            self.leases.v4(port, |a| {
                usable(a) && *granted.borrow_mut().entry(a).or_insert(port) == port
            })
        }

        fn want(&mut self, port: u32, wants: Ipv4Addr) -> Option<Ipv4Addr> {
            let port = PortId(port);
            let granted = &self.granted;
            let given_back = self.leases.move_to(port, wants, |a| {
                *granted.borrow_mut().entry(a).or_insert(port) == port
            });
            given_back.map(|a| self.granted.borrow_mut().remove(&a));
            self.ask(port.0, |_| true)
        }

        fn release(&mut self, port: u32, declined: bool) {
            let released = self.leases.release(PortId(port), declined);
            self.granted.borrow_mut().remove(&released.unwrap());
        }
    }

    fn host(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, n)
    }

    #[test]
    fn a_port_has_one_dynamic_lease() {
        let mut r = Range::new();
        let usable = |a| a != host(16);
        for _ in 0..100 {
            assert_eq!(r.ask(1, usable), Some(host(15)));
        }
        assert_eq!(r.ask(2, usable), Some(host(17)));
        assert_eq!(r.ask(3, usable), Some(host(18)));
        assert_eq!(r.ask(4, usable), None);
        r.leases.remove_port(PortId(2));
        r.granted.borrow_mut().remove(&host(17));
        assert_eq!(r.ask(4, usable), Some(host(17)));
    }

    #[test]
    fn a_free_address_that_is_wanted_is_given_and_the_former_one_given_back() {
        let mut r = Range::new();
        assert_eq!(r.want(1, host(17)), Some(host(17)));
        assert_eq!(r.ask(2, |_| true), Some(host(15)));
        for taken in [15, 19, 100] {
            assert_eq!(r.want(1, host(taken)), Some(host(17)), "{taken}");
        }
        assert_eq!(r.want(1, host(17)), Some(host(17)));
        assert_eq!(r.want(1, host(16)), Some(host(16)));
        assert_eq!(r.want(3, host(17)), Some(host(17)));
    }

    #[test]
    fn a_holder_of_a_fixed_lease_gets_one_of_the_range_only_where_the_gateway_does_that() {
        for from_range in [false, true] {
            let mut r = Range::new();
            r.leases.from_range = from_range;
            r.leases.add(Lease {
                port: PortId(1),
                v4: Some(host(100)),
                v6: None,
                hostname: None,
            });
            let [first, moved] = if from_range { [15, 18] } else { [100, 100] };
            assert_eq!(r.ask(1, |_| true), Some(host(first)));
            assert_eq!(r.want(1, host(18)), Some(host(moved)));
        }
    }

    #[test]
    fn a_declined_address_is_not_offered_next() {
        let mut r = Range::new();
        assert_eq!(r.ask(1, |_| true), Some(host(15)));
        r.release(1, true);
        assert_eq!(r.ask(1, |_| true), Some(host(16)));
        r.release(1, false);
        assert_eq!(r.ask(2, |_| true), Some(host(15)));
        assert_eq!(r.ask(1, |_| true), Some(host(16)));
        for _ in 0..3 {
            r.release(1, true);
            assert_ne!(r.ask(1, |_| true), None);
        }
    }

    #[test]
    fn a_fixed_lease_is_its_ports_and_takes_the_address_from_a_dynamic_one() {
        let mut r = Range::new();
        assert_eq!(r.ask(1, |_| true), Some(host(15)));
        r.leases.add(Lease {
            port: PortId(2),
            v4: Some(host(15)),
            v6: None,
            hostname: None,
        });
        r.granted.borrow_mut().insert(host(15), PortId(2));
        assert_eq!(r.ask(2, |_| true), Some(host(15)));
        assert_eq!(r.ask(1, |_| true), Some(host(16)));
        let of = |leases: &Leases, port| leases.addresses_of(PortId(port)).collect::<Vec<_>>();
        assert_eq!(of(&r.leases, 1), [IpAddr::V4(host(16))]);
        assert_eq!(of(&r.leases, 2), [IpAddr::V4(host(15))]);
        r.leases.remove_port(PortId(2));
        assert!(of(&r.leases, 2).is_empty());
    }
}
