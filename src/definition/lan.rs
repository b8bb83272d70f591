//! The host's LAN, for networks whose containers are stations on it: the part of a definition that the
//! driver [`MACVLAN`](super::MACVLAN) has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The longest name of an interface, in bytes (`IFNAMSIZ` less its NUL).
const MAX_INTERFACE: usize = 15;
/// Docker's options of the driver.
const PARENT: &str = "parent";
const MODE: &str = "macvlan_mode";
const BRIDGE_MODE: &str = "bridge";

/// Where the LAN is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Lan {
    /// The interface of the host that leads to it.
    pub parent: String,
}

/// Why there can be no such network.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LanError {
    /// No interface.
    #[error(
        "a network of the driver `macvlan` needs an interface of the host: give -o parent=eth0"
    )]
    NoParent,
    /// No name of an interface.
    #[error("`{0}` is no name of an interface; interfaces with VLAN tags are not there yet")]
    Parent(String),
    /// A mode that is not there.
    #[error("there is no macvlan_mode `{0}`: the one mode is `bridge`")]
    Mode(String),
    /// An option that is not there.
    #[error("there is no option `{0}`: of the driver `macvlan` there are parent and macvlan_mode")]
    Option(String),
    /// No subnet.
    #[error(
        "containers have addresses of the LAN: give its --subnet and --gateway, and an --ip-range that nothing else gives out"
    )]
    NoSubnet,
    /// The driver is another one.
    #[error("-o {0} is for the driver `macvlan`: give --driver macvlan as well")]
    NotLan(String),
}

impl Lan {
    /// What the driver's `options` ask for.
    pub(super) fn new(options: &BTreeMap<String, String>) -> Result<Lan, LanError> {
        let known = |key: &&String| ![PARENT, MODE].contains(&key.as_str());
        if let Some(unknown) = options.keys().find(known) {
            return Err(LanError::Option(unknown.clone()));
        }
        match options.get(MODE) {
            Some(mode) if mode != BRIDGE_MODE => return Err(LanError::Mode(mode.clone())),
            _ => {}
        }
        let parent = options.get(PARENT).ok_or(LanError::NoParent)?.clone();
        let lan = Lan { parent };
        lan.check().map(|()| lan)
    }

    /// Checks the name of the interface.
    pub(super) fn check(&self) -> Result<(), LanError> {
        let plain = |c: char| c.is_ascii_graphic() && !['/', ':', '.'].contains(&c);
        let parent = &self.parent;
        match !parent.is_empty() && parent.len() <= MAX_INTERFACE && parent.chars().all(plain) {
            true => Ok(()),
            false => Err(LanError::Parent(parent.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_dockers() {
        let lan = |options: &[(&str, &str)]| {
            let owned = options.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            Lan::new(&owned.collect())
        };
        let eth0 = lan(&[("parent", "eth0"), ("macvlan_mode", "bridge")]);
        assert_eq!(eth0.unwrap().parent, "eth0");
        assert_eq!(lan(&[]), Err(LanError::NoParent));
        for parent in ["", "eth0.5", "a/b", "sixteen-bytes-no"] {
            let told = lan(&[("parent", parent)]);
            assert_eq!(told, Err(LanError::Parent(parent.into())));
        }
        let vepa = lan(&[("parent", "eth0"), ("macvlan_mode", "vepa")]);
        assert_eq!(vepa, Err(LanError::Mode("vepa".into())));
        let other = lan(&[("parent", "eth0"), ("speed", "1")]);
        assert_eq!(other, Err(LanError::Option("speed".into())));
    }
}
