//! What `-p` takes: ports, or `auto`.

use std::str::FromStr;

use cnet::{AutoPublish, PublishSpec};

/// One `-p` of a command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PublishOption {
    /// These ports.
    Ports(PublishSpec),
    /// What the container listens on.
    Auto(AutoPublish),
}

impl PublishOption {
    /// The ports of several.
    pub(crate) fn specs(options: &[PublishOption]) -> Vec<PublishSpec> {
        let spec = |option: &PublishOption| match option {
            PublishOption::Ports(spec) => Some(spec.clone()),
            PublishOption::Auto(_) => None,
        };
        options.iter().filter_map(spec).collect()
    }

    /// Whether what the container listens on is published, as the last of several says.
    pub(crate) fn auto(options: &[PublishOption]) -> Option<AutoPublish> {
        let auto = |option: &PublishOption| match option {
            PublishOption::Ports(_) => None,
            PublishOption::Auto(auto) => Some(auto.clone()),
        };
        options.iter().rev().find_map(auto)
    }
}

impl FromStr for PublishOption {
    type Err = String;

    fn from_str(text: &str) -> Result<PublishOption, String> {
        match text.starts_with("auto") {
            true => text
                .parse()
                .map(PublishOption::Auto)
                .map_err(|e: cnet::AutoPublishError| e.to_string()),
            false => text
                .parse()
                .map(PublishOption::Ports)
                .map_err(|e: cnet::publish::PublishSyntax| e.to_string()),
        }
    }
}
