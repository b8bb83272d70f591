//! Which far ends a container may talk with, as a person or a runtime asks for it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::host_access::HostAccess;

/// The far ends outside of its networks that a container, or each container of a network, may talk
/// with over TCP, UDP and ICMP. The longest prefix that contains an address decides; of two equal ones
/// `deny` does. Prefixes in `allow` and none in `deny` mean that nothing else can be reached.
///
/// `deny` works both ways: clients with such an address are refused at published ports, too.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Filter {
    /// What may be reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// What may not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<IpNet>,
    /// Whether the host's own addresses are out of reach: all that it has at any time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_host: bool,
    /// Ports of the host's loopback that are reached behind `host.containers.internal`, whatever `allow`
    /// and `no_host` say.
    #[serde(skip_serializing_if = "HostAccess::is_none")]
    pub host_access: HostAccess,
}

impl Filter {
    /// A filter that refuses nothing.
    pub fn new() -> Filter {
        Filter::default()
    }

    /// Whether it refuses nothing.
    pub fn is_empty(&self) -> bool {
        let prefixes = self.allow.is_empty() && self.deny.is_empty();
        prefixes && !self.no_host && self.host_access.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_not_written() {
        let text = |filter: &Filter| serde_json::to_string(filter).unwrap();
        let mut filter = Filter::new();
        assert!(filter.is_empty());
        assert_eq!(text(&filter), "{}");
        filter.deny.push("10.0.0.0/8".parse().unwrap());
        filter.no_host = true;
        assert!(!filter.is_empty());
        assert_eq!(
            text(&filter),
            "{\"deny\":[\"10.0.0.0/8\"],\"no_host\":true}"
        );
        assert_eq!(
            serde_json::from_str::<Filter>(&text(&filter)).unwrap(),
            filter
        );
        filter.host_access = "80,8000-8010".parse().unwrap();
        assert!(text(&filter).ends_with(",\"host_access\":\"80,8000-8010\"}"));
        assert!(serde_json::from_str::<Filter>("{\"allow\":[\"x\"]}").is_err());
    }
}
