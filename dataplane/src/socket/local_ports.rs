//! The ports that the host gives to programs that ask for none in particular.
//!
//! A mapping takes the host's port of its container's number only where the host might have given it
//! that one anyway: no service of the host's waits for such a port, so a container cannot take a
//! service's place by sending from its port, and none that starts later finds it taken.

use std::fs;
use std::ops::RangeInclusive;

/// Where the kernel tells the range (`ip_local_port_range` in Documentation/networking/ip-sysctl.rst);
/// it serves IPv6 as well.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Where it tells the ports in it that an administrator keeps for services.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// The range of a kernel that was told nothing.
const USUAL_RANGE: RangeInclusive<u16> = 32768..=60999;

/// The host's local ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPorts {
    range: RangeInclusive<u16>,
    reserved: Vec<RangeInclusive<u16>>,
}

impl Default for LocalPorts {
    /// Those of a kernel that was told nothing.
    fn default() -> Self {
        LocalPorts {
            range: USUAL_RANGE,
            reserved: Vec::new(),
        }
    }
}

impl LocalPorts {
    /// Those of the network namespace that this runs in. Where `/proc` tells nothing, the usual ones.
    pub fn read() -> LocalPorts {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        LocalPorts::parse(&text(RANGE), &text(RESERVED))
    }

    fn parse(range: &str, reserved: &str) -> LocalPorts {
        let mut ends = range.split_whitespace().map(str::parse);
        let range = match (ends.next(), ends.next()) {
            (Some(Ok(first)), Some(Ok(last))) => first..=last,
            _ => USUAL_RANGE,
        };
        let reserved = reserved.trim().split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        LocalPorts {
            range,
            reserved: reserved.collect(),
        }
    }

    /// Whether the host gives `port` to programs that ask for none in particular.
    pub(crate) fn contains(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|ports| ports.contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_services_are_not_among_them() {
        let usual = LocalPorts::default();
        let told = LocalPorts::parse("10000\t20000\n", "10500,11000-11999\n");
        for (port, in_usual, in_told) in [
            (0, false, false),
            (1023, false, false),
            (5353, false, false),
            (10_000, false, true),
            (10_500, false, false),
            (10_999, false, true),
            (11_000, false, false),
            (11_999, false, false),
            (20_000, false, true),
            (32_768, true, false),
            (60_999, true, false),
            (61_000, false, false),
        ] {
            assert_eq!(usual.contains(port), in_usual, "{port}");
            assert_eq!(told.contains(port), in_told, "{port}");
        }
        assert_eq!(LocalPorts::parse("", ""), usual);
        assert_eq!(LocalPorts::parse("x y", "-"), usual);
    }
}
