//! The targets. Those that are given frames run on [`network`], a whole network of two containers.

mod control;
mod dns;
pub(crate) mod frames;
mod network;
mod services;
mod tunnel;
mod vm;

use crate::{Layout, Target};

const fn frames(name: &'static str, description: &'static str, run: fn(&[u8])) -> Target {
    Target {
        name,
        description,
        layout: Layout::Records,
        run,
    }
}

const fn plain(name: &'static str, description: &'static str, run: fn(&[u8])) -> Target {
    Target {
        name,
        description,
        layout: Layout::Plain,
        run,
    }
}

/// All targets, in the order of a frame's way.
pub const TARGETS: &[Target] = &[
    frames(
        "switch",
        "frames between containers, and to all of them",
        frames::switch,
    ),
    frames(
        "gateway",
        "frames to the gateway's own addresses, DNS over TCP among them",
        frames::any,
    ),
    frames(
        "tcp",
        "segments of connections that are open, both ways",
        frames::any,
    ),
    frames("udp", "datagrams to the world and back", frames::any),
    frames("icmp", "echo requests and errors", frames::any),
    frames(
        "fragments",
        "fragments of IPv4 and IPv6, in any order",
        frames::any,
    ),
    plain(
        "dhcp",
        "DHCPv4 messages of clients with and without a lease",
        services::dhcp,
    ),
    plain("dhcpv6", "DHCPv6 messages", services::dhcpv6),
    plain(
        "ndp",
        "ICMPv6 messages with hop limit 255",
        services::neighbour_discovery,
    ),
    plain(
        "dns-query",
        "what clients send to the DNS service, over UDP and TCP",
        dns::query,
    ),
    plain("dns-answer", "what DNS servers answer", dns::answer),
    plain(
        "control-json",
        "bodies of requests to the control API",
        control::action,
    ),
    plain("network-file", "definitions of networks", control::network),
    plain(
        "qemu",
        "the byte stream of a virtual machine's socket",
        vm::stream,
    ),
    plain(
        "tunnel",
        "VXLAN datagrams whose frames are joined to super-frames",
        tunnel::datagrams_joined,
    ),
];
