//! What the kernel does by itself: the host's own sockets, and a container as a rootful engine
//! makes it.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::{Arena, Inside, Setup};
use crate::bench::namespace::Namespace;
use crate::bench::way::Way;

/// The MTU of the cable between the hosts.
const CABLE_MTU: u32 = 1500;

/// Lets the entries of closed connections go at once, so that a run of many short ones does not
/// fill the table, whose size namespaces cannot set.
const CONNTRACK: &[(&str, &str)] = &[("netfilter/nf_conntrack_tcp_timeout_time_wait", "1")];

/// The host's own sockets.
pub fn host(setup: &Setup<'_>) -> anyhow::Result<Arena> {
    Ok(arena(
        vec![Inside {
            namespace: setup.request.hosts.host.clone(),
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
        }],
        None,
    ))
}

/// Containers on a bridge, behind network address translation.
pub fn rootful(setup: &Setup<'_>) -> anyhow::Result<Arena> {
    let request = setup.request;
    let host = &request.hosts.host;
    let (count, mtu) = match request.way {
        Way::Neighbour => (2, request.mtu),
        _ => (1, CABLE_MTU),
    };
    // Before the first command: what a failure leaves behind goes with the guard.
    let mut bridge = Bridge {
        host: host.clone(),
        veths: 0,
    };
    host.ip("link add cnb0 type bridge\n\
         addr add 10.88.0.1/16 dev cnb0\n\
         addr add fd88::1/64 dev cnb0 nodad\n\
         link set cnb0 up")?;
    let mut containers = Vec::new();
    for index in 0..count {
        containers.push(attach(host, index, mtu)?);
        bridge.veths += 1;
    }
    host.nft(&rules(request.published))?;
    host.sysctl(&[("ipv4/conf/cnb0/route_localnet", "1")])?;
    if Path::new("/proc/sys/net/netfilter").exists() {
        host.sysctl(CONNTRACK)?;
    }
    Ok(arena(containers, Some(bridge)))
}

fn attach(host: &Namespace, index: u16, mtu: u32) -> anyhow::Result<Inside> {
    let namespace = Namespace::create(&format!("c{index}"))?;
    let last = index + 2;
    let inside = Inside {
        v4: Ipv4Addr::new(10, 88, 0, last.to_be_bytes()[1]),
        v6: Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, last),
        namespace,
    };
    host.ip(&format!(
        "link add veth{index} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
         link set veth{index} master cnb0 up",
        inside.namespace.path().display()
    ))?;
    inside.namespace.ip(&format!(
        "addr add {}/16 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 10.88.0.1\n\
         route add default via fd88::1",
        inside.v4, inside.v6
    ))?;
    Ok(inside)
}

/// Masquerade outwards; a published port from outside and from the host itself. The kernel has no
/// way from ::1 to another interface, so that one is IPv4's alone.
fn rules(published: Option<u16>) -> String {
    let mut rules = String::from(
        "table inet cnb {
            chain postrouting {
                type nat hook postrouting priority srcnat;
                ip saddr 10.88.0.0/16 oifname eth0 masquerade
                ip6 saddr fd88::/64 oifname eth0 masquerade
                ip saddr 127.0.0.0/8 oifname cnb0 masquerade
            }\n",
    );
    if let Some(port) = published {
        for (chain, priority) in [("prerouting", "dstnat"), ("output", "-100")] {
            // Writing to a string cannot fail.
            let _ = write!(
                rules,
                "chain {chain} {{
                    type nat hook {chain} priority {priority};
                    fib daddr type local tcp dport {port} meta nfproto ipv4 dnat ip to 10.88.0.2
                    fib daddr type local tcp dport {port} meta nfproto ipv6 dnat ip6 to fd88::2
                }}\n"
            );
        }
    }
    rules.push('}');
    rules
}

fn arena(containers: Vec<Inside>, bridge: Option<Bridge>) -> Arena {
    Arena {
        programs: Vec::new(),
        containers,
        startup: None,
        network: None,
        _holders: Vec::new(),
        _bridge: bridge,
    }
}

/// What a rootful arena adds to the host. Dropped, it is taken away: at once, where the kernel would
/// let an interface linger until its peer's namespace is gone.
pub struct Bridge {
    host: Namespace,
    veths: u16,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // What was not made cannot be deleted, and that is as well.
        for index in 0..self.veths {
            let _ = self.host.ip(&format!("link delete veth{index}"));
        }
        let _ = self.host.ip("link delete cnb0");
        let _ = self.host.nft("delete table inet cnb");
    }
}
