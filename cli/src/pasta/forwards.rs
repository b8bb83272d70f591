//! The ports that are open: those of the rules, and, for rules that scan, those that something listens
//! on, looked for each second.
//!
//! # Theory of operation
//!
//! Ports of the host are the dataplane's ([`Control::set_forwards`]), which changes them by
//! difference: what stays is not opened again. Ports of the namespace's loopback are [`Outwards`]'.
//! A scan asks the kernel of either side which ports programs have there. What this program has
//! opened itself does not count, or each side would follow the other.
//!
//! # Invariants
//!
//! - A rule of which one port cannot be opened has none open, and is no rule any more. One that is
//!   weak, or scans, does without such ports, and they are tried again with each scan.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::bail;
use cnet_dataplane::{ContainerEnd, Control, OpenForward, Rule};
use cnet_tap::socket::{BoundSocket, Diagnostics};
use cnet_wire::Protocol;

use super::args::Options;
use super::outwards::Outwards;
use super::ports::PortRule;
use super::wire::{Results, Side, Table};

/// How often it is looked for what listens, as with the original.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// A port of one protocol.
type Port = (Protocol, u16);

/// The addresses of each interface of the host.
pub(super) type Interfaces = HashMap<String, Vec<IpAddr>>;

/// What both sides' ports are opened by.
pub(super) struct Sides {
    pub(super) control: Control,
    pub(super) outwards: Outwards,
    /// What tells of the host's sockets, and of the namespace's.
    pub(super) host: Option<Diagnostics>,
    pub(super) inside: Option<Diagnostics>,
    /// Ports that the kernel chooses for clients: UDP sockets there are no servers.
    pub(super) ephemeral: RangeInclusive<u16>,
}

/// The open ports.
pub(super) struct Forwards {
    sides: Sides,
    /// The namespace's addresses.
    own: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    to_loopback: bool,
    /// The addresses of the host's interfaces when the program started.
    interfaces: Interfaces,
    inwards: Vec<PortRule>,
    outwards: Vec<PortRule>,
    /// What the last scan has found: in the namespace, and on the host.
    found: [HashSet<Port>; 2],
    open: Vec<OpenForward>,
    /// Whether a port could not be opened that is to be tried again.
    failed: bool,
}

impl Forwards {
    /// Opens the ports of the command line.
    ///
    /// # Errors
    ///
    /// Which port of a rule cannot be opened, and why.
    pub(super) async fn open(
        options: &Options,
        sides: Sides,
        own: (Option<Ipv4Addr>, Option<Ipv6Addr>),
        interfaces: Interfaces,
    ) -> anyhow::Result<Forwards> {
        let mut forwards = Forwards {
            sides,
            own,
            to_loopback: options.to_loopback,
            interfaces,
            inwards: Vec::new(),
            outwards: Vec::new(),
            found: Default::default(),
            open: Vec::new(),
            failed: false,
        };
        let tables = vec![
            (Side::Host, options.ports.inwards.clone()),
            (Side::Splice, options.ports.outwards.clone()),
        ];
        let wanted = tables.clone();
        for ((_, rules), (_, texts)) in wanted.iter().zip(forwards.change(tables).await) {
            let mut results = rules.iter().zip(texts);
            if let Some((rule, text)) = results.find(|(_, text)| !text.is_empty()) {
                bail!("cannot forward port {rule}: {text}");
            }
        }
        Ok(forwards)
    }

    /// The rules in force.
    pub(super) fn tables(&self) -> Vec<Table> {
        vec![
            (Side::Host, self.inwards.clone()),
            (Side::Splice, self.outwards.clone()),
        ]
    }

    /// Whether any rule follows what listens.
    pub(super) fn scans(&self) -> bool {
        self.inwards
            .iter()
            .chain(&self.outwards)
            .any(|rule| rule.scan)
    }

    /// Has `tables` take the place of those of their sides, and tells what became of each rule.
    pub(super) async fn change(&mut self, tables: Vec<Table>) -> Vec<Results> {
        let mut all = Vec::new();
        for (side, rules) in tables {
            let texts = match side {
                Side::Host => {
                    self.inwards = rules;
                    self.find();
                    self.open_inwards().await
                }
                Side::Splice => {
                    self.outwards = rules;
                    self.find();
                    self.open_outwards().await
                }
            };
            all.push((side, texts));
        }
        all
    }

    /// Looks for what listens, and follows it.
    pub(super) async fn scan(&mut self) {
        let before = self.found.clone();
        self.find();
        if self.failed || before[0] != self.found[0] {
            self.open_inwards().await;
        }
        if self.failed || before[1] != self.found[1] {
            self.open_outwards().await;
        }
    }

    /// Asks both sides.
    fn find(&mut self) {
        let opened = self.open.iter();
        let opened = opened.map(|open| (open.rule.protocol, open.bound.port()));
        let opened: HashSet<Port> = opened.collect();
        let sides = &self.sides;
        if self.inwards.iter().any(|rule| rule.scan) {
            let own = sides.outwards.ports();
            let (v4, v6) = self.own;
            let own_addresses = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
            let loopback = LOOPBACK.into_iter().filter(|_| self.to_loopback);
            let addresses: Vec<IpAddr> = own_addresses.chain(loopback).collect();
            self.found[0] = served(sides.inside.as_ref(), &addresses, &sides.ephemeral, &own);
        }
        if self.outwards.iter().any(|rule| rule.scan) {
            self.found[1] = served(sides.host.as_ref(), &LOOPBACK, &sides.ephemeral, &opened);
        }
    }

    /// Opens the host's ports; why each rule is not in force.
    async fn open_inwards(&mut self) -> Vec<String> {
        let mut texts = vec![String::new(); self.inwards.len()];
        loop {
            let (mut rules, mut of) = (Vec::new(), Vec::new());
            for (index, rule) in self.inwards.iter().enumerate() {
                if !texts[index].is_empty() {
                    continue;
                }
                let hosts = match self.hosts(rule) {
                    Ok(hosts) => hosts,
                    Err(text) => {
                        texts[index] = text;
                        continue;
                    }
                };
                for pair in pairs(rule, &self.found[0]) {
                    let opened = hosts.iter().map(|at| self.inward(rule, *at, pair));
                    of.extend(hosts.iter().map(|_| index));
                    rules.extend(opened);
                }
            }
            let results = match self.sides.control.set_forwards(rules).await {
                Ok(results) => results,
                Err(error) => return vec![error.to_string(); texts.len()],
            };
            self.open = results.iter().flatten().copied().collect();
            let failures = of.iter().zip(&results);
            let failures =
                failures.filter_map(|(index, result)| Some((*index, result.as_ref().err()?)));
            let (mut again, mut failed) = (false, false);
            for (index, error) in failures {
                let rule = &self.inwards[index];
                if rule.weak || rule.scan {
                    tracing::debug!(%error, "a port is left out");
                    failed = true;
                } else if texts[index].is_empty() {
                    texts[index] = error.to_string();
                    again = true;
                }
            }
            self.failed |= failed;
            if !again {
                break;
            }
            // What a rule has opened is closed without it.
        }
        keep_those_in_force(&mut self.inwards, &texts);
        texts
    }

    /// Opens the ports of the namespace's loopback; why each rule is not in force.
    async fn open_outwards(&mut self) -> Vec<String> {
        let found = &self.found[1];
        let wanted: Vec<(&PortRule, Vec<(u16, u16)>)> = (self.outwards.iter())
            .map(|rule| (rule, pairs(rule, found)))
            .collect();
        let (texts, failed) = self.sides.outwards.set(&wanted).await;
        drop(wanted);
        self.failed |= failed;
        keep_those_in_force(&mut self.outwards, &texts);
        texts
    }

    /// Where the ports of a rule are opened; `None` for all addresses of both families.
    ///
    /// # Errors
    ///
    /// Why there is no such place.
    fn hosts(&self, rule: &PortRule) -> Result<Vec<Option<IpAddr>>, String> {
        let name = &rule.interface;
        if name.is_empty() {
            let (ipv4, ipv6) = self.own;
            return Ok(vec![match (rule.address, ipv4, ipv6) {
                (None, Some(_), None) => Some(Ipv4Addr::UNSPECIFIED.into()),
                (None, None, Some(_)) => Some(Ipv6Addr::UNSPECIFIED.into()),
                (address, ..) => address,
            }]);
        }
        let all = self.interfaces.get(name);
        let all = all.ok_or_else(|| format!("the host has no interface {name}"))?;
        let wanted = |at: &IpAddr| rule.address.is_none_or(|address| address == *at);
        let hosts: Vec<_> = all.iter().copied().filter(wanted).map(Some).collect();
        match hosts.is_empty() {
            true => Err(format!("interface {name} has no such address")),
            false => Ok(hosts),
        }
    }

    /// The dataplane's rule for one port of `rule`.
    fn inward(&self, rule: &PortRule, host: Option<IpAddr>, (port, to): (u16, u16)) -> Rule {
        let (ipv4, ipv6) = self.own;
        let own = ContainerEnd {
            ipv4,
            ipv6,
            port: to,
        };
        let end = match rule.target {
            Some(target) => SocketAddr::new(target, to).into(),
            None => own,
        };
        let mut opened = match host {
            None => Rule::on_all(rule.protocol, port, end),
            Some(address) => Rule::new(rule.protocol, SocketAddr::new(address, port), end),
        };
        opened.to_loopback = self.to_loopback && rule.target.is_none();
        opened
    }
}

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Leaves the rules in force.
fn keep_those_in_force(rules: &mut Vec<PortRule>, texts: &[String]) {
    let mut texts = texts.iter();
    rules.retain(|_| texts.next().is_none_or(String::is_empty));
}

/// The ports of a rule that are to be open, each with the one that it leads to.
fn pairs(rule: &PortRule, found: &HashSet<Port>) -> Vec<(u16, u16)> {
    if !rule.scan {
        return rule.pairs().collect();
    }
    let found = found
        .iter()
        .filter(|(protocol, _)| *protocol == rule.protocol);
    let pair = |&(_, to): &Port| {
        let port = rule.first.checked_add(to.checked_sub(rule.to)?)?;
        (port <= rule.last).then_some((port, to))
    };
    let mut pairs: Vec<(u16, u16)> = found.filter_map(pair).collect();
    pairs.sort_unstable();
    pairs
}

/// The ports that programs serve at one of `addresses`, without those of `own`.
fn served(
    asked: Option<&Diagnostics>,
    addresses: &[IpAddr],
    ephemeral: &RangeInclusive<u16>,
    own: &HashSet<Port>,
) -> HashSet<Port> {
    let Some(asked) = asked else {
        return HashSet::new();
    };
    let is_served = |socket: &BoundSocket| addresses.iter().any(|at| socket.takes(*at));
    let tcp = asked.listeners().unwrap_or_default();
    let tcp = tcp.iter().filter(|socket| is_served(socket));
    let tcp = tcp.map(|socket| (Protocol::Tcp, socket.at.port()));
    let udp = asked.udp_holders().unwrap_or_default();
    let udp = udp.iter().filter(|socket| is_served(socket));
    let udp = udp.map(|socket| (Protocol::Udp, socket.at.port()));
    let udp = udp.filter(|(_, port)| !ephemeral.contains(port));
    tcp.chain(udp).filter(|port| !own.contains(port)).collect()
}
