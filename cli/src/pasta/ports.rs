//! Which ports lead from one side to the other: pasta's and pesto's `SPEC`.
//!
//! A specification is `none`, or a list of items with commas between: `auto` and `all`, a range of
//! ports with where it leads to (`FIRST-LAST[:[TARGET/]FIRST-LAST]`), and ranges that are left out
//! (`~FIRST-LAST`), which alone mean that all others are taken. `[ADDRESS][%INTERFACE]/` before the
//! list says where the ports are opened.
//!
//! `auto` follows what listens on the other side. So does `all`: a port that nothing listens on would
//! refuse its clients anyway, and takes no socket this way.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use cnet_wire::Protocol;

/// Bytes of an interface's name (`IFNAMSIZ`, without the terminating zero).
pub(crate) const MAX_INTERFACE: usize = 15;

/// A range of ports, and where it leads to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PortRule {
    pub(crate) protocol: Protocol,
    /// The address that they are opened at; `None` for all of both families.
    pub(crate) address: Option<IpAddr>,
    /// The interface that they are opened at; empty for all.
    pub(crate) interface: String,
    /// Where they lead to; `None` for the other side's own address.
    pub(crate) target: Option<IpAddr>,
    pub(crate) first: u16,
    pub(crate) last: u16,
    /// Where the first one leads to.
    pub(crate) to: u16,
    /// Whether one that cannot be opened is passed over.
    pub(crate) weak: bool,
    /// Whether only those are open that something listens on.
    pub(crate) scan: bool,
}

impl PortRule {
    /// A rule for all ports that something listens on.
    pub(crate) fn auto(protocol: Protocol) -> PortRule {
        PortRule {
            protocol,
            address: None,
            interface: String::new(),
            target: None,
            first: 1,
            last: u16::MAX,
            to: 1,
            weak: true,
            scan: true,
        }
    }

    /// Each port with the one that it leads to.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let (first, to) = (self.first, self.to);
        (self.first..=self.last).map(move |port| (port, to + (port - first)))
    }
}

/// As in a specification.
impl fmt::Display for PortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(v6)) => write!(f, "[{v6}]")?,
            Some(address) => write!(f, "{address}")?,
            None => {}
        }
        if !self.interface.is_empty() {
            write!(f, "%{}", self.interface)?;
        }
        if self.address.is_some() || !self.interface.is_empty() {
            write!(f, "/")?;
        }
        range_text(f, self.first, self.last)?;
        let moved = self.to != self.first;
        if moved || self.target.is_some() {
            write!(f, ":")?;
        }
        match self.target {
            Some(IpAddr::V6(v6)) => write!(f, "[{v6}]/")?,
            Some(target) => write!(f, "{target}/")?,
            None => {}
        }
        if moved || self.target.is_some() {
            range_text(f, self.to, self.to + (self.last - self.first))?;
        }
        Ok(())
    }
}

fn range_text(f: &mut fmt::Formatter<'_>, first: u16, last: u16) -> fmt::Result {
    match first == last {
        true => write!(f, "{first}"),
        false => write!(f, "{first}-{last}"),
    }
}

/// What is wrong with a specification.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// Nothing.
    #[error("no port is named")]
    Empty,
    /// Not a port.
    #[error("`{0}` is no port from 1 to 65535")]
    Port(String),
    /// A range that ends before it begins.
    #[error("`{0}` ends before it begins")]
    Backwards(String),
    /// Ranges of different lengths.
    #[error("`{0}` leads to another number of ports")]
    Lengths(String),
    /// Not an address.
    #[error("`{0}` is no address with or without an interface")]
    Address(String),
    /// An interface's name that none can have.
    #[error("`{0}` is no name of an interface")]
    Interface(String),
    /// `none` beside others.
    #[error("`none` stands alone")]
    None,
    /// Addresses of different families.
    #[error("{0} and {1} are of different families")]
    Families(IpAddr, IpAddr),
}

/// The rules of a specification; none of them for `none`.
pub(crate) fn parse(protocol: Protocol, spec: &str) -> Result<Vec<PortRule>, SpecError> {
    if spec == "none" {
        return Ok(Vec::new());
    }
    if spec.is_empty() {
        return Err(SpecError::Empty);
    }
    let (place, list) = split_place(spec)?;
    let base = PortRule {
        address: place.0,
        interface: place.1,
        ..PortRule::auto(protocol)
    };
    let mut left_out: Vec<RangeInclusive<u16>> = Vec::new();
    let mut taken: Vec<PortRule> = Vec::new();
    for item in list.split(',') {
        match item.strip_prefix('~') {
            Some(range) => left_out.push(ports(range)?),
            None => taken.push(rule(&base, item)?),
        }
    }
    if taken.is_empty() {
        taken.push(base);
    }
    let rules = taken.iter().flat_map(|rule| without(rule, &left_out));
    let rules: Vec<PortRule> = rules.collect();
    match rules.is_empty() {
        true => Err(SpecError::Empty),
        false => Ok(rules),
    }
}

/// `[ADDRESS][%INTERFACE]/` before a list, if it is there. A slash may also be one of a target.
fn split_place(spec: &str) -> Result<((Option<IpAddr>, String), &str), SpecError> {
    let Some((before, after)) = spec.split_once('/') else {
        return Ok(((None, String::new()), spec));
    };
    let (text, interface) = match before.split_once('%') {
        Some((text, interface)) => (text, Some(interface)),
        None => (before, None),
    };
    let address = address(text);
    if address.is_none() && interface.is_none() && !text.is_empty() {
        // The first slash is one of a target if a port stands before it.
        return match before.split_once(':').map(|(port, _)| ports(port)) {
            Some(Ok(_)) => Ok(((None, String::new()), spec)),
            _ => Err(SpecError::Address(before.to_owned())),
        };
    }
    if address.is_none() && !text.is_empty() {
        return Err(SpecError::Address(before.to_owned()));
    }
    let interface = interface.unwrap_or_default();
    if interface.len() > MAX_INTERFACE || before.ends_with('%') {
        return Err(SpecError::Interface(interface.to_owned()));
    }
    Ok(((address, interface.to_owned()), after))
}

fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    match bare {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// An item that is not left out.
fn rule(base: &PortRule, item: &str) -> Result<PortRule, SpecError> {
    match item {
        "auto" | "all" => return Ok(base.clone()),
        "none" => return Err(SpecError::None),
        _ => {}
    }
    let (from, to) = match item.split_once(':') {
        Some((from, to)) => (from, Some(to)),
        None => (item, None),
    };
    let from = ports(from)?;
    let (target, to) = match to.map(|to| to.rsplit_once('/').ok_or(to)) {
        None => (None, from.clone()),
        Some(Err(to)) => (None, ports(to)?),
        Some(Ok((target, to))) => {
            let at = address(target).ok_or_else(|| SpecError::Address(target.to_owned()))?;
            (Some(at), ports(to)?)
        }
    };
    if let (Some(at), Some(target)) = (base.address, target)
        && at.is_ipv4() != target.is_ipv4()
    {
        return Err(SpecError::Families(at, target));
    }
    if to.len() != from.len() {
        return Err(SpecError::Lengths(item.to_owned()));
    }
    Ok(PortRule {
        target,
        first: *from.start(),
        last: *from.end(),
        to: *to.start(),
        weak: false,
        scan: false,
        ..base.clone()
    })
}

/// `PORT` or `FIRST-LAST`.
fn ports(text: &str) -> Result<RangeInclusive<u16>, SpecError> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let port = text.parse::<u16>().ok().filter(|port| digits && *port > 0);
        port.ok_or_else(|| SpecError::Port(text.to_owned()))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    match first <= last {
        true => Ok(first..=last),
        false => Err(SpecError::Backwards(text.to_owned())),
    }
}

/// What is left of `rules` without the ports of `gone`, where those lead from and to the same place;
/// `None` if no port of it is there.
pub(crate) fn subtract(rules: &[PortRule], gone: &PortRule) -> Option<Vec<PortRule>> {
    let mut found = false;
    let each = rules.iter().flat_map(|rule| {
        let same = rule.protocol == gone.protocol
            && rule.address == gone.address
            && rule.interface == gone.interface
            && rule.target == gone.target
            && rule.to.wrapping_sub(rule.first) == gone.to.wrapping_sub(gone.first);
        let touches = gone.first <= rule.last && rule.first <= gone.last;
        found |= same && touches;
        match same {
            true => without(rule, &[gone.first..=gone.last]),
            false => vec![rule.clone()],
        }
    });
    let left = each.collect();
    found.then_some(left)
}

/// What is left of a rule without some ports. A part that has lost some may lose others as well.
fn without(rule: &PortRule, left_out: &[RangeInclusive<u16>]) -> Vec<PortRule> {
    let mut parts = vec![rule.clone()];
    for gone in left_out {
        let cut = |part: PortRule| {
            let below = (gone.start().checked_sub(1))
                .filter(|&last| part.first <= last)
                .map(|last| (part.first, last.min(part.last)));
            let above = (gone.end().checked_add(1))
                .filter(|&first| first <= part.last)
                .map(|first| (first.max(part.first), part.last));
            let left = below.into_iter().chain(above);
            // A range that the part does not touch leaves it as it is, once.
            let touches = *gone.start() <= part.last && part.first <= *gone.end();
            let left: Vec<(u16, u16)> = match touches {
                true => left.collect(),
                false => vec![(part.first, part.last)],
            };
            left.into_iter().map(move |(first, last)| PortRule {
                first,
                last,
                to: part.to + (first - part.first),
                ..part.clone()
            })
        };
        parts = parts.into_iter().flat_map(cut).collect();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(spec: &str) -> Vec<String> {
        let rules = parse(Protocol::Tcp, spec).unwrap();
        let mark = |rule: &PortRule| if rule.scan { "auto " } else { "" };
        let texts = rules.iter().map(|rule| format!("{}{rule}", mark(rule)));
        texts.collect()
    }

    #[test]
    fn the_examples_of_the_manual_page() {
        for (spec, rules) in [
            ("none", &[][..]),
            ("22", &["22"]),
            ("22:23", &["22:23"]),
            ("22,25", &["22", "25"]),
            ("22-80:32-90", &["22-80:32-90"]),
            ("192.0.2.1/22", &["192.0.2.1/22"]),
            ("192.0.2.1%eth0/22", &["192.0.2.1%eth0/22"]),
            ("%eth0/22", &["%eth0/22"]),
            ("2000-5000,~3000-3010", &["2000-2999", "3011-5000"]),
            (
                "192.0.2.1/20-30,~25",
                &["192.0.2.1/20-24", "192.0.2.1/26-30"],
            ),
            ("~20000-20010", &["auto 1-19999", "auto 20011-65535"]),
            ("auto", &["auto 1-65535"]),
            ("all,~1-65534", &["auto 65535"]),
            ("22-25:32-35,~23", &["22:32", "24-25:34-35"]),
            ("::1/80-81:8080-8081", &["[::1]/80-81:8080-8081"]),
            ("[::1]/80", &["[::1]/80"]),
            (
                "127.0.0.1/80:10.0.2.7/8080",
                &["127.0.0.1/80:10.0.2.7/8080"],
            ),
            ("80:10.0.2.7/80", &["80:10.0.2.7/80"]),
        ] {
            assert_eq!(shown(spec), rules, "{spec}");
        }
    }

    #[test]
    fn rules_lose_ports_that_lead_from_and_to_the_same_place() {
        let of = |spec: &str| parse(Protocol::Tcp, spec).unwrap();
        let rules = of("80-90:8080-8090,443");
        let left = |gone: &str| -> Option<Vec<String>> {
            let left = subtract(&rules, &of(gone)[0])?;
            Some(left.iter().map(PortRule::to_string).collect())
        };
        let expected = ["80-84:8080-8084", "86-90:8086-8090", "443"];
        assert_eq!(left("85:8085").unwrap(), expected);
        assert_eq!(left("443").unwrap(), ["80-90:8080-8090"]);
        for other in ["85", "85:8086", "127.0.0.1/443", "444"] {
            assert_eq!(left(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (spec, error) in [
            ("", "no port is named"),
            ("0", "`0` is no port from 1 to 65535"),
            ("65536", "`65536` is no port from 1 to 65535"),
            ("+1", "`+1` is no port from 1 to 65535"),
            ("80-", "`` is no port from 1 to 65535"),
            ("90-80", "`90-80` ends before it begins"),
            ("1-2:1-3", "`1-2:1-3` leads to another number of ports"),
            (
                "host/80",
                "`host` is no address with or without an interface",
            ),
            ("1.2.3.4%/80", "`` is no name of an interface"),
            ("80,none", "`none` stands alone"),
            ("80,~80", "no port is named"),
            (
                "127.0.0.1/80:[::1]/80",
                "127.0.0.1 and ::1 are of different families",
            ),
        ] {
            let got = parse(Protocol::Udp, spec).unwrap_err();
            assert_eq!(got.to_string(), error, "{spec}");
        }
    }
}
