//! Which ports of the host's loopback a container reaches under the host's name, as a person or a runtime
//! asks for it.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most ranges of ports in one.
const MAX_RANGES: usize = 256;

/// Ports of the host's loopback that a container reaches behind `host.containers.internal`, of TCP and UDP
/// alike. As text, and in JSON, it is `all`, or ports and ranges with commas between: `5432,8000-8010`.
///
/// Port 53, and port 67 of UDP, stay those of the network's own services.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostAccess(Ports);

#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Ports {
    #[default]
    None,
    Some(Vec<RangeInclusive<u16>>),
    All,
}

/// Why a text is no [`HostAccess`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not a port: it is a number from 1 to 65535, or a range such as 8000-8010")]
pub struct HostAccessError(String);

impl HostAccess {
    /// To all ports.
    pub fn all() -> HostAccess {
        HostAccess(Ports::All)
    }

    /// To these ports, or none.
    pub fn to_ports(ports: impl IntoIterator<Item = RangeInclusive<u16>>) -> HostAccess {
        let ports: Vec<_> = ports
            .into_iter()
            .filter(|range| !range.is_empty())
            .collect();
        HostAccess(match ports.is_empty() {
            true => Ports::None,
            false => Ports::Some(ports),
        })
    }

    /// Whether it opens nothing, which is the default.
    pub fn is_none(&self) -> bool {
        self.0 == Ports::None
    }

    /// The ports that it opens; `None` for all.
    pub fn ports(&self) -> Option<&[RangeInclusive<u16>]> {
        match &self.0 {
            Ports::None => Some(&[]),
            Ports::Some(ports) => Some(ports),
            Ports::All => None,
        }
    }
}

impl FromStr for HostAccess {
    type Err = HostAccessError;

    fn from_str(text: &str) -> Result<HostAccess, HostAccessError> {
        if text == "all" {
            return Ok(HostAccess::all());
        }
        let wrong = |text: &str| HostAccessError(text.to_owned());
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|&port: &u16| plain && port > 0)
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let ends = number(first).zip(number(last));
            let ends = ends.filter(|(first, last)| first <= last);
            ends.map(|(first, last)| first..=last)
                .ok_or_else(|| wrong(part))
        };
        let ranges: Vec<_> = text.split(',').map(range).collect::<Result<_, _>>()?;
        match ranges.len() <= MAX_RANGES {
            true => Ok(HostAccess::to_ports(ranges)),
            false => Err(wrong(text)),
        }
    }
}

impl fmt::Display for HostAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ports::Some(ports) = &self.0 else {
            return f.write_str(if self.is_none() { "" } else { "all" });
        };
        for (n, range) in ports.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for HostAccess {
    type Error = HostAccessError;

    fn try_from(text: String) -> Result<HostAccess, HostAccessError> {
        text.parse()
    }
}

impl From<HostAccess> for String {
    fn from(access: HostAccess) -> String {
        access.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_ranges_and_all_are_read_and_written() {
        for text in ["all", "5432", "53,8000-8010", "1-65535"] {
            let access: HostAccess = text.parse().unwrap();
            assert_eq!(access.to_string(), text);
            assert!(!access.is_none());
        }
        assert_eq!(HostAccess::all().ports(), None);
        assert!(HostAccess::default().is_none() && HostAccess::to_ports([]).is_none());
        for (text, wrong) in [
            ("", ""),
            ("0", "0"),
            ("80,", ""),
            ("+80", "+80"),
            ("90-80", "90-80"),
            ("http", "http"),
            ("65536", "65536"),
        ] {
            assert_eq!(
                text.parse::<HostAccess>(),
                Err(HostAccessError(wrong.into())),
                "{text}"
            );
        }
    }
}
