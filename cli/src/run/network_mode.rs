//! What `--network` means: which namespaces the command gets, and which network.
//!
//! | `--network` | namespaces | network |
//! |---|---|---|
//! | not given | new ones | one of its own, which ends with the command |
//! | `none` | new ones | loopback alone |
//! | `host` | the caller's | the host's |
//! | `container:NAME` or `container:PID` | that container's | that container's |
//! | a name | new ones | that network, beside its other containers |
//!
//! Behind a name stands what concerns the command on that network alone: `NAME:alias=db,ip=10.88.0.7`
//! as podman has it, or `name=NAME,alias=db,ip=10.88.0.7` as Docker has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use cnet_wire::MacAddr;

/// Where the command is put, or one of the networks that it is put on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NetworkChoice {
    /// The network mode.
    pub(crate) mode: NetworkMode,
    /// What concerns that network alone.
    pub(crate) own: OwnOptions,
}

/// What a command is on one network.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct OwnOptions {
    /// Further names.
    pub(crate) aliases: Vec<String>,
    /// Its IPv4 address.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Its hardware address.
    pub(crate) mac: Option<MacAddr>,
    /// The name of its interface.
    pub(crate) interface: Option<String>,
}

/// What `--network` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NetworkMode {
    /// Loopback alone.
    None,
    /// The host's own network.
    Host,
    /// With the container of that name, or that process.
    Container(String),
    /// On the network of that name.
    Network(String),
}

/// Why a text is no network mode.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoMode(String);

impl FromStr for NetworkMode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<NetworkMode, NoMode> {
        let no = |why: &str| Err(NoMode(why.to_owned()));
        Ok(match (text, text.strip_prefix("container:")) {
            ("", _) => return no("the name of the network is missing"),
            (_, Some("")) => return no("the name of the container is missing"),
            ("none", _) => NetworkMode::None,
            ("host", _) => NetworkMode::Host,
            (_, Some(name)) => NetworkMode::Container(name.to_owned()),
            (name, None) => NetworkMode::Network(name.to_owned()),
        })
    }
}

impl FromStr for NetworkChoice {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<NetworkChoice, NoMode> {
        let (mode, options) = match text.strip_prefix("name=") {
            Some(rest) => rest.split_once(',').unwrap_or((rest, "")),
            None if text.starts_with("container:") => (text, ""),
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let mode: NetworkMode = mode.parse()?;
        let mut own = OwnOptions::default();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            own.read(option)?;
        }
        if own != OwnOptions::default() && !matches!(mode, NetworkMode::Network(_)) {
            let text = format!("`{mode}` takes no options: it is no network");
            return Err(NoMode(text));
        }
        Ok(NetworkChoice { mode, own })
    }
}

impl OwnOptions {
    fn read(&mut self, option: &str) -> Result<(), NoMode> {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let invalid = || NoMode(format!("`{value}` is no value of `{key}`"));
        match key {
            "alias" => self.aliases.push(value.to_owned()),
            "ip" | "ip6" => match value.parse().map_err(|_| invalid())? {
                IpAddr::V4(address) => self.ipv4 = Some(address),
                IpAddr::V6(address) => self.ipv6 = Some(address),
            },
            "mac" | "mac-address" => self.mac = Some(value.parse().map_err(|_| invalid())?),
            "interface_name" | "ifname" => self.interface = Some(value.to_owned()),
            _ => {
                return Err(NoMode(format!(
                    "`{option}` is no option of a network, as in NET:alias=db,ip=10.88.0.7; there are alias, ip, ip6, mac and interface_name"
                )));
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NetworkMode::None => f.write_str("none"),
            NetworkMode::Host => f.write_str("host"),
            NetworkMode::Container(name) => write!(f, "container:{name}"),
            NetworkMode::Network(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_and_print_alike() {
        for (text, mode) in [
            ("none", NetworkMode::None),
            ("host", NetworkMode::Host),
            ("container:web", NetworkMode::Container("web".to_owned())),
            ("lan", NetworkMode::Network("lan".to_owned())),
        ] {
            let choice: NetworkChoice = text.parse().unwrap();
            assert_eq!(choice.mode, mode);
            assert_eq!(choice.own, OwnOptions::default());
            assert_eq!(mode.to_string(), text);
        }
    }

    #[test]
    fn options_of_one_network_stand_behind_it_as_podman_and_docker_have_them() {
        for text in [
            "lan:alias=db,alias=store,ip=10.88.0.7,ip6=fd00::7,mac=02:00:00:00:00:07,interface_name=net1",
            "name=lan,alias=db,alias=store,ip=10.88.0.7,ip6=fd00::7,mac-address=02:00:00:00:00:07,ifname=net1",
        ] {
            let choice: NetworkChoice = text.parse().unwrap();
            assert_eq!(choice.mode.to_string(), "lan");
            let own = choice.own;
            assert_eq!(own.aliases, ["db", "store"]);
            assert_eq!(own.ipv4, Some([10, 88, 0, 7].into()));
            assert_eq!(own.ipv6.unwrap().to_string(), "fd00::7");
            assert_eq!(own.mac.unwrap().to_string(), "02:00:00:00:00:07");
            assert_eq!(own.interface.as_deref(), Some("net1"));
        }
        for wrong in ["lan:x", "lan:ip=x", "none:ip=10.0.0.1", "", "container:"] {
            assert!(wrong.parse::<NetworkChoice>().is_err(), "{wrong}");
        }
    }
}
