//! How the options of slirp4netns are written.

use crate::getopt::{Spec, flag, valued};

/// An option, whichever way it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Configure,
    ExitFd,
    ReadyFd,
    Mtu,
    Ipv6,
    ApiSocket,
    Cidr,
    DisableHostLoopback,
    NoHostLoopback,
    NetnsType,
    UsernsPath,
    EnableSandbox,
    CreateSandbox,
    EnableSeccomp,
    RequireSandbox,
    NoSandbox,
    OutboundV4,
    OutboundV6,
    DisableDns,
    Mac,
    TargetType,
    BusyPoll,
    Workers,
    Help,
    Version,
}

/// All of them.
pub(super) const SPECS: [Spec<Key>; 25] = [
    flag(Key::Configure, "configure", Some(b'c')),
    valued(Key::ExitFd, "exit-fd", Some(b'e')),
    valued(Key::ReadyFd, "ready-fd", Some(b'r')),
    valued(Key::Mtu, "mtu", Some(b'm')),
    flag(Key::Ipv6, "enable-ipv6", Some(b'6')),
    valued(Key::ApiSocket, "api-socket", Some(b'a')),
    valued(Key::Cidr, "cidr", None),
    flag(Key::DisableHostLoopback, "disable-host-loopback", None),
    flag(Key::NoHostLoopback, "no-host-loopback", None),
    valued(Key::NetnsType, "netns-type", None),
    valued(Key::UsernsPath, "userns-path", None),
    flag(Key::EnableSandbox, "enable-sandbox", None),
    flag(Key::CreateSandbox, "create-sandbox", None),
    flag(Key::EnableSeccomp, "enable-seccomp", None),
    flag(Key::RequireSandbox, "require-sandbox", None),
    flag(Key::NoSandbox, "no-sandbox", None),
    valued(Key::OutboundV4, "outbound-addr", None),
    valued(Key::OutboundV6, "outbound-addr6", None),
    flag(Key::DisableDns, "disable-dns", None),
    valued(Key::Mac, "macaddress", None),
    valued(Key::TargetType, "target-type", None),
    valued(Key::BusyPoll, "busy-poll", None),
    valued(Key::Workers, "workers", None),
    flag(Key::Help, "help", Some(b'h')),
    flag(Key::Version, "version", Some(b'v')),
];
