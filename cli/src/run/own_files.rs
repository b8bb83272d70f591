//! What stands in the command's own `resolv.conf` and `hosts`.
//!
//! # Theory of operation
//!
//! `resolv.conf` has one `nameserver` line, since all of the network's DNS addresses are one
//! service: with two, a resolver would wait twice for the same silence. The host's search list stands
//! in it, and `ndots:0`, so that a container's name is asked for as it is before anything is
//! appended. `timeout` and `attempts` are as long as the service may take
//! ([`ResolvConf::patience`]); the other options are the host's.
//!
//! `hosts` is the host's, with the names that were asked for.
//!
//! Sources: resolv.conf(5), hosts(5).

use std::net::IpAddr;

use cnet_dataplane::NetworkConfig;
use cnet_netd::dns::resolv_conf::ResolvConf;

use super::args::NameOptions;

/// Where the host keeps its `hosts`.
pub(super) const HOSTS: &str = "/etc/hosts";

/// The search list that means none, as with Docker.
const NO_SEARCH: &str = ".";

/// Options that are about several servers, or that the service follows in the container's place.
const OF_THE_SERVICE: [&str; 4] = ["ndots", "timeout", "attempts", "rotate"];

/// The text of `resolv.conf`. `host` is the host's, `asked` tells of the servers that the service
/// asks, and `search` is the network's search list, if it has one.
pub(super) fn resolv_conf(
    (host, asked): (&ResolvConf, &ResolvConf),
    search: &[String],
    config: &NetworkConfig,
    options: &NameOptions,
) -> String {
    let mut text = String::from("# made by cnet run\n");
    let mut line = |key: &str, words: &[String]| {
        if !words.is_empty() {
            text.push_str(&format!("{key} {}\n", words.join(" ")));
        }
    };
    let ipv4 = config.ipv4.and_then(|plan| plan.dns).map(IpAddr::V4);
    let ipv6 = config.ipv6.and_then(|plan| plan.dns).map(IpAddr::V6);
    let server = ipv4.or(ipv6).map(|server| server.to_string());
    line("nameserver", server.as_slice());
    let lists = [&options.dns_search[..], search, &host.search];
    let search = lists.into_iter().find(|list| !list.is_empty());
    match search.unwrap_or_default() {
        [none] if none == NO_SEARCH => {}
        search => line("search", search),
    }
    line("options", &resolver_options(host, asked, options));
    text
}

fn resolver_options(host: &ResolvConf, asked: &ResolvConf, options: &NameOptions) -> Vec<String> {
    fn key(option: &str) -> &str {
        option.split_once(':').map_or(option, |(key, _)| key)
    }
    let of_host = host.options.iter();
    let kept = of_host.filter(|option| !OF_THE_SERVICE.contains(&key(option)));
    let mut all: Vec<String> = kept.cloned().collect();
    all.push("ndots:0".to_owned());
    all.extend(asked.patience().options());
    all.retain(|option| {
        let mut given = options.dns_option.iter();
        !given.any(|given| key(given) == key(option))
    });
    all.extend(options.dns_option.iter().cloned());
    all
}

/// The text of `hosts`, if it is not to be the host's: `host`, in which the names that were asked
/// for have these addresses and no others. `hostname` is the command's host name and its address.
pub(super) fn hosts(
    host: &str,
    hostname: Option<(&str, IpAddr)>,
    names: &[(String, IpAddr)],
) -> Option<String> {
    let hostname = hostname.map(|(name, address)| (name.to_owned(), address));
    let own: Vec<(String, IpAddr)> = names.iter().cloned().chain(hostname).collect();
    if own.is_empty() {
        return None;
    }
    let is_own = |word: &&str| own.iter().any(|(name, _)| name.eq_ignore_ascii_case(word));
    let mut text = String::new();
    for line in host.lines() {
        let entry = line.split('#').next().unwrap_or_default();
        let mut words = entry.split_whitespace();
        let address = words.next();
        let (own, others): (Vec<&str>, Vec<&str>) = words.partition(|word| is_own(word));
        match address {
            Some(address) if !own.is_empty() => {
                if !others.is_empty() {
                    text.push_str(&format!("{address}\t{}\n", others.join(" ")));
                }
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    for (name, address) in own {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnet_wire::prefixes::{Subnet, ipv6_plan};

    fn config() -> NetworkConfig {
        NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), Some(ipv6_plan()))
    }

    #[test]
    fn one_server_and_the_hosts_search_and_options_that_fit() {
        let host = ResolvConf::parse(
            "nameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch example.org lan\n\
             options edns0 trust-ad ndots:5 rotate timeout:3 attempts:4\n",
        );
        let text = |host: &ResolvConf, options: &NameOptions| {
            resolv_conf((host, host), &[], &config(), options)
        };
        assert_eq!(
            text(&host, &NameOptions::default()),
            "# made by cnet run\nnameserver 10.0.2.3\nsearch example.org lan\n\
             options edns0 trust-ad ndots:0 timeout:3 attempts:4\n"
        );
        let unknown = ResolvConf::parse("");
        assert_eq!(
            text(&unknown, &NameOptions::default()),
            "# made by cnet run\nnameserver 10.0.2.3\noptions ndots:0\n"
        );
        let mut only_ipv6 = config();
        only_ipv6.ipv4 = None;
        let given = resolv_conf((&host, &unknown), &[], &only_ipv6, &NameOptions::default());
        assert!(given.contains("nameserver fd00::3\n"), "{given}");
        assert!(
            given.ends_with("options edns0 trust-ad ndots:0\n"),
            "{given}"
        );
    }

    #[test]
    fn options_take_the_place_of_the_hosts() {
        let host = ResolvConf::parse("search example.org\noptions edns0 ndots:5 timeout:9\n");
        let options = NameOptions {
            dns_search: vec!["a.example".into(), "b.example".into()],
            dns_option: vec!["ndots:2".into(), "timeout:1".into(), "use-vc".into()],
            ..NameOptions::default()
        };
        let network = ["net.example".to_owned()];
        let text =
            |options: &NameOptions| resolv_conf((&host, &host), &network, &config(), options);
        assert_eq!(
            text(&options),
            "# made by cnet run\nnameserver 10.0.2.3\nsearch a.example b.example\n\
             options edns0 ndots:2 timeout:1 use-vc\n"
        );
        assert!(text(&NameOptions::default()).contains("search net.example\n"));
        let none = NameOptions {
            dns_search: vec![".".into()],
            ..NameOptions::default()
        };
        assert!(!text(&none).contains("search"));
    }

    #[test]
    fn hosts_has_the_names_that_were_asked_for() {
        let host = "127.0.0.1 localhost\n127.0.1.1\tBox.lan box # this one\n192.0.2.9 db other\n";
        assert_eq!(hosts(host, None, &[]), None);
        let names = [("db".to_owned(), "10.1.1.1".parse().unwrap())];
        let own = Some(("box", "10.0.2.100".parse().unwrap()));
        assert_eq!(
            hosts(host, own, &names).unwrap(),
            "127.0.0.1 localhost\n127.0.1.1\tBox.lan\n192.0.2.9\tother\n10.1.1.1\tdb\n10.0.2.100\tbox\n"
        );
    }
}
