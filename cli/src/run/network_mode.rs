//! What `--network` means: which namespaces the command gets, and which network.
//!
//! | `--network` | namespaces | network |
//! |---|---|---|
//! | not given | new ones | one of its own, which ends with the command |
//! | `none` | new ones | loopback alone |
//! | `host` | the caller's | the host's |
//! | `container:NAME` | that container's | that container's |
//! | a name | new ones | that network, beside its other containers |

use std::str::FromStr;

/// What `--network` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NetworkMode {
    /// Loopback alone.
    None,
    /// The host's own network.
    Host,
    /// With the container of that name.
    Container(String),
    /// On the network of that name.
    Network(String),
}

/// Why a text is no network mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}: it is `none`, `host`, a network or `container:NAME`")]
pub(crate) struct NoMode(&'static str);

impl FromStr for NetworkMode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<NetworkMode, NoMode> {
        Ok(match (text, text.strip_prefix("container:")) {
            ("", _) => return Err(NoMode("the name of a network is empty")),
            (_, Some("")) => return Err(NoMode("the name of the container is empty")),
            ("none", _) => NetworkMode::None,
            ("host", _) => NetworkMode::Host,
            (_, Some(name)) => NetworkMode::Container(name.to_owned()),
            (name, None) => NetworkMode::Network(name.to_owned()),
        })
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
            assert_eq!(text.parse::<NetworkMode>().unwrap(), mode);
            assert_eq!(mode.to_string(), text);
        }
    }
}
