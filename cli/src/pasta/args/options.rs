//! How pasta's options are written.

use crate::getopt::{Spec, flag, valued};

/// An option, whichever way it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Debug,
    Trace,
    Quiet,
    Foreground,
    Stderr,
    LogFile,
    LogSize,
    RunAs,
    Help,
    Version,
    Pcap,
    PidFile,
    Mtu,
    Address,
    Netmask,
    GatewayMac,
    Gateway,
    Interface,
    Outbound,
    OutboundIf4,
    OutboundIf6,
    Dns,
    Search,
    DhcpDns,
    NoDhcpDns,
    DhcpSearch,
    NoDhcpSearch,
    DnsForward,
    DnsHost,
    NoTcp,
    NoUdp,
    NoIcmp,
    NoDhcp,
    NoNdp,
    NoDhcpv6,
    NoRa,
    NoMapGw,
    MapGw,
    MapHostLoopback,
    MapGuestAddr,
    Ipv4Only,
    Ipv6Only,
    Hostname,
    Fqdn,
    NsIfname,
    TcpPorts,
    UdpPorts,
    TcpNs,
    UdpNs,
    HostLoToNsLo,
    SpliceOnly,
    NoSplice,
    Userns,
    Netns,
    NetnsOnly,
    NoNetnsQuit,
    ConfigNet,
    NoCopyRoutes,
    NoCopyAddrs,
    NsMac,
    Control,
    RequireSandbox,
    NoSandbox,
}

/// All of them. The last two are not options of pasta.
pub(super) const SPECS: [Spec<Key>; 63] = [
    flag(Key::Debug, "debug", Some(b'd')),
    flag(Key::Trace, "trace", None),
    flag(Key::Quiet, "quiet", Some(b'q')),
    flag(Key::Foreground, "foreground", Some(b'f')),
    flag(Key::Stderr, "stderr", Some(b'e')),
    valued(Key::LogFile, "log-file", Some(b'l')),
    valued(Key::LogSize, "log-size", None),
    valued(Key::RunAs, "runas", None),
    flag(Key::Help, "help", Some(b'h')),
    flag(Key::Version, "version", None),
    valued(Key::Pcap, "pcap", Some(b'p')),
    valued(Key::PidFile, "pid", Some(b'P')),
    valued(Key::Mtu, "mtu", Some(b'm')),
    valued(Key::Address, "address", Some(b'a')),
    valued(Key::Netmask, "netmask", Some(b'n')),
    valued(Key::GatewayMac, "mac-addr", Some(b'M')),
    valued(Key::Gateway, "gateway", Some(b'g')),
    valued(Key::Interface, "interface", Some(b'i')),
    valued(Key::Outbound, "outbound", Some(b'o')),
    valued(Key::OutboundIf4, "outbound-if4", None),
    valued(Key::OutboundIf6, "outbound-if6", None),
    valued(Key::Dns, "dns", Some(b'D')),
    valued(Key::Search, "search", Some(b'S')),
    flag(Key::DhcpDns, "dhcp-dns", None),
    flag(Key::NoDhcpDns, "no-dhcp-dns", None),
    flag(Key::DhcpSearch, "dhcp-search", None),
    flag(Key::NoDhcpSearch, "no-dhcp-search", None),
    valued(Key::DnsForward, "dns-forward", None),
    valued(Key::DnsHost, "dns-host", None),
    flag(Key::NoTcp, "no-tcp", None),
    flag(Key::NoUdp, "no-udp", None),
    flag(Key::NoIcmp, "no-icmp", None),
    flag(Key::NoDhcp, "no-dhcp", None),
    flag(Key::NoNdp, "no-ndp", None),
    flag(Key::NoDhcpv6, "no-dhcpv6", None),
    flag(Key::NoRa, "no-ra", None),
    flag(Key::NoMapGw, "no-map-gw", None),
    flag(Key::MapGw, "map-gw", None),
    valued(Key::MapHostLoopback, "map-host-loopback", None),
    valued(Key::MapGuestAddr, "map-guest-addr", None),
    flag(Key::Ipv4Only, "ipv4-only", Some(b'4')),
    flag(Key::Ipv6Only, "ipv6-only", Some(b'6')),
    valued(Key::Hostname, "hostname", Some(b'H')),
    valued(Key::Fqdn, "fqdn", None),
    valued(Key::NsIfname, "ns-ifname", Some(b'I')),
    valued(Key::TcpPorts, "tcp-ports", Some(b't')),
    valued(Key::UdpPorts, "udp-ports", Some(b'u')),
    valued(Key::TcpNs, "tcp-ns", Some(b'T')),
    valued(Key::UdpNs, "udp-ns", Some(b'U')),
    flag(Key::HostLoToNsLo, "host-lo-to-ns-lo", None),
    flag(Key::SpliceOnly, "splice-only", None),
    flag(Key::NoSplice, "no-splice", None),
    valued(Key::Userns, "userns", None),
    valued(Key::Netns, "netns", None),
    flag(Key::NetnsOnly, "netns-only", None),
    flag(Key::NoNetnsQuit, "no-netns-quit", None),
    flag(Key::ConfigNet, "config-net", None),
    flag(Key::NoCopyRoutes, "no-copy-routes", None),
    flag(Key::NoCopyAddrs, "no-copy-addrs", None),
    valued(Key::NsMac, "ns-mac-addr", None),
    valued(Key::Control, "conf-path", Some(b'c')),
    flag(Key::RequireSandbox, "require-sandbox", None),
    flag(Key::NoSandbox, "no-sandbox", None),
];

/// The text of `--help`, below the usage lines.
pub(super) const HELP: &str = "\
Connects a network namespace to the host's network, as passt's pasta does it.

Without PID and --netns a command, or the shell, is run in new namespaces.

  -f, --foreground         stay in the foreground
  -d, --debug, --trace     log more, and stay in the foreground
  -q, --quiet              log errors alone
  -e, --stderr             log to standard error (always so until it goes to the background)
  -l, --log-file PATH      log to this file
  --log-size BYTES         bytes of the log file at most (default: 1048576)
  -P, --pid FILE           write the process's ID to this file
  -p, --pcap FILE          write the packets of the namespace to this file
  --runas UID[:GID]        become this user (default: nobody inside the sandbox, if started as root)
  --require-sandbox        refuse to run where the host lacks a stage of the sandbox
  --no-sandbox             stay outside the sandbox (for debugging only)

  --netns PATH|NAME        the network namespace
  --userns PATH            the user namespace to enter first
  --netns-only             enter no user namespace
  --no-netns-quit          stay when the path of --netns is gone
  -I, --ns-ifname NAME     name of the interface (default: that of the host's interface)
  --ns-mac-addr ADDR       its hardware address (default: a random one)
  --config-net             configure it (otherwise by DHCP, DHCPv6 and router advertisements)
  --no-copy-routes         with --config-net, only the default route
  --no-copy-addrs          with --config-net, only the first address of a family

  -m, --mtu MTU            MTU in bytes (default: 65520)
  -a, --address ADDR[/LEN] address (default: those of the host's interface)
  -n, --netmask MASK       netmask of IPv4, in either form
  -g, --gateway ADDR       default gateway (default: the host's)
  -i, --interface NAME     the host's interface whose addresses and routes count
                           (default: the one with the default route)
  -o, --outbound ADDR      address to send from
  --outbound-if4 NAME, --outbound-if6 NAME
                           interface whose first address to send from
  -M, --mac-addr ADDR      hardware address of the gateway
  -4, --ipv4-only          no IPv6
  -6, --ipv6-only          no IPv4
  -H, --hostname NAME      host name that DHCP tells

  -D, --dns ADDR|none      DNS server that DHCP tells, and that is asked
  --dns-forward ADDR       DNS is answered at this address
  --dns-host ADDR          the server that is asked (default: those of /etc/resolv.conf)
  -S, --search LIST|none   search domains that DHCP tells
  --no-tcp, --no-udp, --no-icmp
                           refuse the protocol
  --no-dhcp, --no-dhcpv6, --no-ndp, --no-ra
                           do not serve it
  --no-map-gw              the gateway's address does not lead to the host's loopback
  --map-host-loopback ADDR|none
                           this address does (default: the gateway's)
  --map-guest-addr ADDR|none
                           this address leads to the host, under the address that the namespace has
  --host-lo-to-ns-lo       bring clients of the host's loopback to the namespace's
  --splice-only            carry connections between the loopback interfaces, and no packets
  --no-splice              carry packets, and join no loopback connections

  -t, --tcp-ports SPEC     ports of the host that lead into the namespace (default: auto)
  -u, --udp-ports SPEC     the same for UDP
  -T, --tcp-ns SPEC        ports of the namespace's loopback that lead to the host's (default: auto)
  -U, --udp-ns SPEC        the same for UDP
                           SPEC: none, auto, all, or [ADDR][%IFACE]/PORTS[:[TARGET/]PORTS],...
                           with ranges FIRST-LAST and, to leave some out, ~PORTS
  -c, --conf-path SOCKET   have `pesto` change ports by this socket

  -h, --help               show this help and exit
  --version                show the version and exit
";
