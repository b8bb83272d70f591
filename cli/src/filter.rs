//! The options that say which far ends a container may talk with.

use std::net::IpAddr;

use clap::Args;
use cnet::{Filter, HostAccess};
use ipnet::IpNet;

/// For `cnet run`, `cnet attach` and `cnet network create`.
#[derive(Args, Debug, Default)]
pub(crate) struct FilterOptions {
    /// Let nothing be reached but these addresses, or make an exception to `--deny`; may be given
    /// several times.
    ///
    /// Of the prefixes that contain an address the longest decides. Names are resolved all the same,
    /// and other containers of the network are not concerned.
    #[arg(long, value_name = "CIDR", value_parser = parse_prefix)]
    allow: Vec<IpNet>,

    /// Refuse these addresses, for TCP, UDP and ICMP, and clients that come from them to published
    /// ports; may be given several times.
    #[arg(long, value_name = "CIDR", value_parser = parse_prefix)]
    deny: Vec<IpNet>,

    /// Refuse all addresses that the host has itself, as they change.
    #[arg(long)]
    no_host: bool,

    /// Let these ports of the host's loopback be reached at `host.containers.internal`, over TCP and
    /// UDP; without ports, all.
    ///
    /// The name is the gateway's address then, and other ports there are closed. `--no-host` and `--allow`
    /// do not refuse them; `--deny` with a prefix that contains the gateway's address or 127.0.0.1 does.
    #[arg(
        long,
        value_name = "PORT,…",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all"
    )]
    host_access: Option<HostAccess>,
}

impl FilterOptions {
    /// What was asked for.
    pub(crate) fn filter(&self) -> Filter {
        let mut filter = Filter::new();
        filter.allow.clone_from(&self.allow);
        filter.deny.clone_from(&self.deny);
        filter.no_host = self.no_host;
        filter.host_access = self.host_access.clone().unwrap_or_default();
        filter
    }
}

/// A prefix, or a single address. Bits behind the prefix mean nothing.
fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().map(|net| net.trunc());
    net.or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| {
            "it is an address, or one with a prefix length, such as 10.0.0.0/8 or fd00::/8"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_addresses_are_read() {
        let read = |text| parse_prefix(text).map(|net| net.to_string());
        assert_eq!(read("10.1.2.3/8").as_deref(), Ok("10.0.0.0/8"));
        assert_eq!(read("192.0.2.1").as_deref(), Ok("192.0.2.1/32"));
        assert_eq!(read("2001:db8::1").as_deref(), Ok("2001:db8::1/128"));
        assert!(read("10.0.0.0/33").is_err() && read("example.org").is_err());
    }
}
