//! Routes by source in a container's network namespace: what answers by an address leaves by that
//! address's interface.
//!
//! # Theory of operation
//!
//! A container on several networks has a default route for each, of which the kernel takes the first.
//! A client of a port that is published on another network would be answered by the first network,
//! whose process knows nothing of it. So each interface that joins others gets a routing table of its
//! own with one route, the default one by its gateway, and rules that lead there:
//!
//! - what has one of the interface's addresses as its source. That is all of TCP, and UDP where the
//!   program says by which address it answers;
//! - UDP from a port that is published on the interface's network. A server that is bound to the
//!   wildcard address and answers by sendto(2) has no source yet when the kernel looks for the route,
//!   and gets the address of the interface that the route leads to.
//!
//! In front of each of these rules stands one for the same packets that asks the main table for
//! everything but its default routes (`suppress_prefixlength 0`). So on-link neighbours and all routes
//! that the container has set itself are found as before.
//!
//! [`apply`] brings an interface's rules to what is asked for, whatever there is: it finds again what a
//! process that was killed has left, and removes what was left for interfaces that are gone.
//!
//! # What is ours
//!
//! Only this module sets rules in containers' namespaces. Of numbers it owns:
//!
//! | | |
//! |---|---|
//! | routing tables | 880000 to 884999: 880000 and the interface's index |
//! | priorities of rules | 9000 to 29999. From 10000 the rules by address, from 20000 those by UDP port, two for each interface's index. Below 10000 none is in use |
//! | marks | 0x636e0000 to 0x636effff; none is in use |
//! | protocol of rules and routes | 99, by which they are told from those of others |
//!
//! # Limits
//!
//! - The interface that was there first has no rules: the main table is its own. A default route that
//!   the container puts in front of it takes its answers too.
//! - Where the container, or another program in it, has rules of its own, none are made: it knows better.
//! - An interface with an index of 5,000 or more, and ports of UDP beyond [`MAX_UDP_RANGES`] ranges, get
//!   none.
//! - A UDP server that does not say by which address it answers, at a port that is published on several
//!   networks, answers by one of them.
//!
//! Source: `include/uapi/linux/fib_rules.h`, `net/core/fib_rules.c`, ip-rule(8).

use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::rtnetlink::{MAIN, Rtnetlink, family};
use crate::error::TapError;

/// The routing table of the interface of index 0, as it were.
const TABLES: u32 = 880_000;
/// All priorities that are ours.
const PRIORITIES: RangeInclusive<u32> = 9_000..=29_999;
/// The first priority of rules by address.
const BY_ADDRESS: u32 = 10_000;
/// The first priority of rules by UDP port.
const BY_PORT: u32 = 20_000;
/// Indexes above this would lead out of the range.
const MAX_INDEX: u32 = 4_999;
/// What our rules and routes have as their protocol (`FRA_PROTOCOL`): not one of
/// `/etc/iproute2/rt_protos`.
const PROTOCOL: u8 = 99;
/// Ranges of UDP ports of one interface, at most: each costs the container two rules a family.
pub const MAX_UDP_RANGES: usize = 64;

/// What is to leave by an interface.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesBySource {
    /// The interface's addresses; none for no rules.
    pub addresses: Vec<IpAddr>,
    /// Where its default routes lead.
    pub gateways: Vec<IpAddr>,
    /// Ports of UDP that are published there, in ranges.
    pub udp_ports: Vec<(u16, u16)>,
}

/// What became of the rules of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// There are none, since no other interface has a default route.
    Needless,
    /// They are as asked for.
    Made,
    /// There are none, since the container has rules of its own.
    LeftToContainer,
}

/// Brings the rules of the interface `ifindex` to `wanted`, in the current network namespace, and
/// removes those of interfaces that are gone. Without rules yet none are made unless another interface
/// has a default route.
///
/// # Errors
///
/// [`TapError::Netlink`]: what the kernel refused; rules before it are made.
pub fn apply(ifindex: u32, wanted: &RoutesBySource) -> Result<Outcome, TapError> {
    let mut rtnetlink = Rtnetlink::open()?;
    let mut outcome = Outcome::Needless;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let done = apply_family(&mut rtnetlink, ifindex, family, wanted);
        match done.map_err(|source| TapError::Netlink { source })? {
            Outcome::Needless => {}
            done => outcome = done,
        }
    }
    Ok(outcome)
}

/// Removes all rules of the interface `ifindex`, which may be gone already. Its routes go with it.
///
/// # Errors
///
/// As [`apply`].
pub fn remove(ifindex: u32) -> Result<(), TapError> {
    apply(ifindex, &RoutesBySource::default()).map(drop)
}

/// Whether the interface `ifindex` has rules, which a process before this one has made.
///
/// # Errors
///
/// As [`apply`].
pub fn has_rules(ifindex: u32) -> Result<bool, TapError> {
    let mut rtnetlink = Rtnetlink::open()?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let found = rules(&mut rtnetlink, family);
        let found = found.map_err(|source| TapError::Netlink { source })?;
        let mut ours = found.into_iter().flatten().filter(is_ours);
        if ours.any(|rule| index_of(&rule) == Some(ifindex)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sorts and merges ports to ranges.
pub fn port_ranges(mut ports: Vec<u16>) -> Vec<(u16, u16)> {
    ports.sort_unstable();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if port <= last.saturating_add(1) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    ranges
}

fn apply_family(
    rtnetlink: &mut Rtnetlink,
    ifindex: u32,
    family: AddressFamily,
    wanted: &RoutesBySource,
) -> io::Result<Outcome> {
    let Some(present) = rules(rtnetlink, family)? else {
        // The kernel has no rules, or none of this family.
        return Ok(Outcome::Needless);
    };
    let (ours, others): (Vec<_>, Vec<_>) = present.into_iter().partition(is_ours);
    for stale in ours.iter().filter(|rule| !interface_exists(rule)) {
        delete(rtnetlink, stale)?;
    }
    let of_interface = |rule: &&RuleMessage| index_of(rule) == Some(ifindex);
    let present: Vec<&RuleMessage> = ours.iter().filter(of_interface).collect();
    let gateway = wanted.gateways.iter().find(|g| is_of(**g, family));
    let (wanted, outcome) = match gateway {
        _ if ifindex > MAX_INDEX => (Vec::new(), Outcome::Needless),
        None => (Vec::new(), Outcome::Needless),
        Some(_) if others.iter().any(is_containers_own) => (Vec::new(), Outcome::LeftToContainer),
        Some(_) if present.is_empty() && !others_have_default(rtnetlink, ifindex, family)? => {
            (Vec::new(), Outcome::Needless)
        }
        Some(&gateway) => {
            // Before the rules that lead to it.
            rtnetlink.set_default_route(ifindex, gateway, TABLES + ifindex, None)?;
            (rules_for(ifindex, family, wanted), Outcome::Made)
        }
    };
    for &rule in &present {
        if !wanted.iter().any(|wanted| is_same(wanted, rule)) {
            delete(rtnetlink, rule)?;
        }
    }
    for rule in &wanted {
        if !present.iter().any(|present| is_same(rule, present)) {
            add(rtnetlink, rule)?;
        }
    }
    Ok(outcome)
}

/// All rules of a family; `None` where the kernel has none.
fn rules(rtnetlink: &mut Rtnetlink, family: AddressFamily) -> io::Result<Option<Vec<RuleMessage>>> {
    let mut question = RuleMessage::default();
    question.header.family = family;
    let listed = match rtnetlink.list(RouteNetlinkMessage::GetRule(question)) {
        Err(error) if is_unsupported(&error) => return Ok(None),
        listed => listed?,
    };
    let rules = listed.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRule(rule) => Some(rule),
        _ => None,
    });
    // A kernel without the family answers for all of them.
    Ok(Some(
        rules.filter(|rule| rule.header.family == family).collect(),
    ))
}

fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::OPNOTSUPP, Errno::AFNOSUPPORT];
    Errno::from_io_error(error).is_some_and(|errno| unsupported.contains(&errno))
}

/// Whether an interface other than `ifindex` has a default route in the main table.
fn others_have_default(
    rtnetlink: &mut Rtnetlink,
    ifindex: u32,
    family: AddressFamily,
) -> io::Result<bool> {
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    let listed = rtnetlink.list(RouteNetlinkMessage::GetRoute(question))?;
    let is_default = |message: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewRoute(route) = message else {
            return false;
        };
        let header = &route.header;
        let own = route.attributes.contains(&RouteAttribute::Oif(ifindex));
        header.address_family == family
            && header.destination_prefix_length == 0
            && header.kind == RouteType::Unicast
            && u32::from(header.table) == MAIN
            && !own
    };
    Ok(listed.iter().any(is_default))
}

/// The rules of an interface, in the order of their making.
fn rules_for(ifindex: u32, family: AddressFamily, wanted: &RoutesBySource) -> Vec<RuleMessage> {
    let by_address = wanted.addresses.iter().filter(|a| is_of(**a, family));
    let by_address = by_address.map(|address| (BY_ADDRESS, Selector::Address(*address)));
    let ranges = wanted.udp_ports.iter().take(MAX_UDP_RANGES);
    let by_port =
        ranges.map(|&(start, end)| (BY_PORT, Selector::Udp(RulePortRange { start, end })));
    let pairs = by_address.chain(by_port).flat_map(|(first, selector)| {
        let priority = first + 2 * ifindex;
        let specific = rule(family, priority, MAIN, &selector);
        [
            specific,
            rule(family, priority + 1, TABLES + ifindex, &selector),
        ]
    });
    pairs.collect()
}

/// What a rule is about.
enum Selector {
    Address(IpAddr),
    Udp(RulePortRange),
}

fn rule(family: AddressFamily, priority: u32, table: u32, selector: &Selector) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.header.table = u8::try_from(table).unwrap_or_default();
    rule.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    if table == MAIN {
        rule.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    match selector {
        Selector::Address(address) => {
            rule.header.src_len = if address.is_ipv4() { 32 } else { 128 };
            rule.attributes.push(RuleAttribute::Source(*address));
        }
        Selector::Udp(ports) => rule.attributes.extend([
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            RuleAttribute::SourcePortRange(*ports),
        ]),
    }
    rule
}

fn add(rtnetlink: &mut Rtnetlink, rule: &RuleMessage) -> io::Result<()> {
    let new = RouteNetlinkMessage::NewRule(rule.clone());
    match rtnetlink.request(new, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done.map(drop),
    }
}

fn delete(rtnetlink: &mut Rtnetlink, rule: &RuleMessage) -> io::Result<()> {
    match rtnetlink.request(RouteNetlinkMessage::DelRule(rule.clone()), 0) {
        // The container was quicker.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map(drop),
    }
}

fn is_of(address: IpAddr, of: AddressFamily) -> bool {
    family(address) == of
}

fn priority(rule: &RuleMessage) -> u32 {
    let priority = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
    // Those of priority 0 come without it.
    priority.unwrap_or(0)
}

fn protocol(rule: &RuleMessage) -> Option<RouteProtocol> {
    rule.attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Protocol(protocol) => Some(*protocol),
            _ => None,
        })
}

fn is_ours(rule: &RuleMessage) -> bool {
    protocol(rule) == Some(RouteProtocol::from(PROTOCOL)) && PRIORITIES.contains(&priority(rule))
}

/// Whether it is not one of those that the kernel makes in each namespace: of the tables local, main
/// and default.
fn is_containers_own(rule: &RuleMessage) -> bool {
    !matches!(priority(rule), 0 | 32_766 | 32_767)
}

/// The interface that one of our rules is about.
fn index_of(rule: &RuleMessage) -> Option<u32> {
    let priority = priority(rule);
    let place = priority
        .checked_sub(BY_PORT)
        .or_else(|| priority.checked_sub(BY_ADDRESS));
    place.map(|place| place / 2)
}

fn interface_exists(rule: &RuleMessage) -> bool {
    let Some(index) = index_of(rule) else {
        // Of a later version.
        return true;
    };
    // An error that is not its absence says nothing.
    !matches!(super::mac_of(index), Err(TapError::NoSuchInterface { .. }))
}

/// Whether a rule that was listed, with what the kernel adds, is this one of ours.
fn is_same(ours: &RuleMessage, listed: &RuleMessage) -> bool {
    let is_told = |attribute: &RuleAttribute| listed.attributes.contains(attribute);
    ours.header.src_len == listed.header.src_len && ours.attributes.iter().all(is_told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> RoutesBySource {
        RoutesBySource {
            addresses: vec!["10.2.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            gateways: vec!["10.2.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            udp_ports: vec![(53, 53), (5000, 5009)],
        }
    }

    #[test]
    fn rules_stay_in_their_range_and_tell_whose_they_are() {
        for index in [2, 77, MAX_INDEX] {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let rules = rules_for(index, family, &wanted());
                assert_eq!(rules.len(), 6, "two each for an address and two ranges");
                for rule in &rules {
                    assert!(is_ours(rule) && is_containers_own(rule));
                    assert_eq!(index_of(rule), Some(index));
                }
                let priorities: Vec<u32> = rules.iter().map(priority).collect();
                assert!(priorities.iter().all(|p| PRIORITIES.contains(p)));
            }
        }
    }

    #[test]
    fn a_rule_is_known_by_what_it_says_though_the_kernel_says_more() {
        let rules = rules_for(3, AddressFamily::Inet, &wanted());
        let mut listed = rules[1].clone();
        listed.attributes.reverse();
        listed.attributes.push(RuleAttribute::L3MDev(false));
        assert!(is_same(&rules[1], &listed));
        assert!(!is_same(&rules[0], &listed) && !is_same(&rules[3], &listed));
        let others = rules_for(4, AddressFamily::Inet, &wanted());
        assert!(!others.iter().any(|other| is_same(other, &listed)));
    }

    #[test]
    fn ports_become_ranges() {
        assert_eq!(port_ranges(vec![]), []);
        assert_eq!(port_ranges(vec![7]), [(7, 7)]);
        assert_eq!(
            port_ranges(vec![65_535, 3, 1, 2, 2, 9, 65_534]),
            [(1, 3), (9, 9), (65_534, 65_535)]
        );
    }
}
