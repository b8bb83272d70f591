//! pasta's command line.
//!
//! Options come first: the first operand, or `--`, ends them, since a command may follow. `--help` and
//! `--version` win over everything that getopt takes, wherever they stand, so that callers can ask
//! with any option beside them whether there is such an option. What values mean is looked at
//! afterwards.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use cnet_tap::sandbox::Mode;
use cnet_tap::unix;
use cnet_wire::{MacAddr, Protocol};

use crate::getopt::{Word, Words, between, number};
use crate::pasta::ports::{self, MAX_INTERFACE, PortRule};

mod error;
mod options;
#[cfg(test)]
mod tests;
mod values;

pub(crate) use error::ArgsError;
use options::{HELP, Key, SPECS};
use values::{mac_address, prefix_len, run_as};

/// The MTU without `--mtu`: the largest that is a multiple of four bytes beside an Ethernet header.
pub(crate) const DEFAULT_MTU: u16 = 65520;

/// The largest MTU: with the Ethernet header it just fits a TAP (`drivers/net/tun.c`).
const MAX_MTU: u16 = 65521;

/// The smallest (RFC 791 section 3.1).
const MIN_MTU: u16 = 68;

/// Where namespaces with a name are (ip-netns(8)).
const NAMED_NAMESPACES: &str = "/run/netns";

/// The usage, for a program that was called as `program`.
pub(crate) fn usage(program: &str) -> String {
    format!(
        "Usage: {program} [OPTION]... [COMMAND] [ARGS]...\n       {program} [OPTION]... PID\n       \
         {program} [OPTION]... --netns PATH|NAME\n\n{HELP}"
    )
}

/// What the command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Invocation {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// To connect a namespace.
    Run(Box<Options>),
}

/// The namespace that is connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// A new one, for this command; the shell if it is empty.
    Command(Vec<OsString>),
    /// That of a process.
    Process(i32),
    /// At a path.
    Path(PathBuf),
}

/// What stands for the host's loopback, or for its own address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mapped {
    /// Whether the option was given, so that the default does not count.
    pub(crate) given: bool,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// One address a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Pair {
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// How much is logged, and where.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Logging {
    pub(crate) debug: bool,
    pub(crate) trace: bool,
    pub(crate) quiet: bool,
    pub(crate) file: Option<PathBuf>,
    pub(crate) size: Option<u64>,
}

/// The four tables of ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ports {
    /// From the host into the namespace.
    pub(crate) inwards: Vec<PortRule>,
    /// From the namespace's loopback to the host's.
    pub(crate) outwards: Vec<PortRule>,
}

/// Protocols that are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Refused {
    pub(crate) tcp: bool,
    pub(crate) udp: bool,
    pub(crate) icmp: bool,
}

/// Services that do not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Silent {
    pub(crate) dhcp: bool,
    pub(crate) dhcpv6: bool,
    pub(crate) ndp: bool,
    pub(crate) ra: bool,
}

/// The options of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) userns: Option<PathBuf>,
    pub(crate) netns_only: bool,
    /// Whether to end when the namespace's path is gone.
    pub(crate) quit: bool,
    pub(crate) foreground: bool,
    pub(crate) logging: Logging,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) pcap: Option<PathBuf>,
    pub(crate) run_as: Option<(u32, u32)>,
    pub(crate) sandbox: Mode,
    pub(crate) ns_interface: Option<String>,
    pub(crate) ns_mac: Option<MacAddr>,
    pub(crate) config_net: bool,
    pub(crate) copy_routes: bool,
    pub(crate) copy_addresses: bool,
    pub(crate) mtu: u16,
    pub(crate) address: Pair,
    /// Of the address that was given.
    pub(crate) prefix_v4: Option<u8>,
    pub(crate) prefix_v6: Option<u8>,
    pub(crate) gateway: Pair,
    pub(crate) interface: Option<String>,
    pub(crate) outbound: Pair,
    pub(crate) outbound_if4: Option<String>,
    pub(crate) outbound_if6: Option<String>,
    pub(crate) gateway_mac: Option<MacAddr>,
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
    pub(crate) hostname: Option<String>,
    /// `None` for those of the host.
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) dns_forward: Pair,
    pub(crate) search: Vec<String>,
    pub(crate) refused: Refused,
    pub(crate) silent: Silent,
    pub(crate) map_gateway: bool,
    pub(crate) host_loopback: Mapped,
    pub(crate) host_own: Mapped,
    /// Clients of the host's loopback come to the namespace's.
    pub(crate) to_loopback: bool,
    pub(crate) splice_only: bool,
    pub(crate) splice: bool,
    pub(crate) ports: Ports,
    pub(crate) control: Option<PathBuf>,
}

/// Reads a command line, the program's name left out.
///
/// # Errors
///
/// See [`ArgsError`].
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, ArgsError> {
    let (mut options, mut operands) = (Vec::new(), Vec::new());
    for word in Words::options_first(args.into_iter(), &SPECS) {
        match word? {
            Word::Option(Key::Help, _) => return Ok(Invocation::Help),
            Word::Option(Key::Version, _) => return Ok(Invocation::Version),
            Word::Option(key, value) => options.push((key, value)),
            Word::Operand(operand) => operands.push(operand),
        }
    }
    let mut given = Given::default();
    for (key, value) in options {
        given.take(key, &value)?;
    }
    let options = given.finish(operands)?;
    Ok(Invocation::Run(Box::new(options)))
}

/// What was found so far.
#[derive(Default)]
struct Given {
    flags: Vec<Key>,
    texts: Vec<(Key, String)>,
    logging: Logging,
    netns: Option<PathBuf>,
    userns: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    pcap: Option<PathBuf>,
    control: Option<PathBuf>,
    run_as: Option<(u32, u32)>,
    ns_mac: Option<MacAddr>,
    gateway_mac: Option<MacAddr>,
    mtu: Option<u16>,
    address: Pair,
    prefix_v4: Option<u8>,
    prefix_v6: Option<u8>,
    gateway: Pair,
    outbound: Pair,
    dns: Vec<IpAddr>,
    dns_forward: Pair,
    search: Vec<String>,
    host_loopback: Mapped,
    host_own: Mapped,
    sandbox: Mode,
    /// `-t`, `-u`, `-T` and `-U`, once given.
    ports: [Option<Vec<PortRule>>; 4],
}

impl Given {
    fn take(&mut self, key: Key, value: &OsStr) -> Result<(), ArgsError> {
        let text = value.to_string_lossy().into_owned();
        match key {
            Key::LogFile => self.logging.file = Some(value.into()),
            Key::LogSize => {
                let size = text.parse().ok().filter(|size| *size > 0);
                self.logging.size = Some(size.ok_or(ArgsError::Value("log size", text))?);
            }
            Key::PidFile => self.pid_file = Some(value.into()),
            Key::Pcap => self.pcap = Some(value.into()),
            Key::Userns => self.userns = Some(value.into()),
            Key::Netns => self.netns = Some(namespace_path(value)),
            Key::Control => self.control = Some(socket_path(value)?),
            Key::RunAs => {
                let ids = run_as(&text).ok_or(ArgsError::Value("user for --runas", text))?;
                self.run_as = Some(ids);
            }
            Key::NsMac => self.ns_mac = Some(mac_address("MAC address", &text)?),
            Key::GatewayMac => self.gateway_mac = Some(mac_address("MAC address", &text)?),
            Key::Mtu => self.mtu = Some(mtu(&text)?),
            Key::Address => self.take_address(&text)?,
            Key::Netmask => {
                let len = prefix_len(&text).ok_or(ArgsError::Value("netmask", text))?;
                self.prefix_v4 = Some(len);
            }
            Key::Gateway => add(&mut self.gateway, "gateway address", &text)?,
            Key::Outbound => add(&mut self.outbound, "outbound address", &text)?,
            Key::DnsForward => add(&mut self.dns_forward, "DNS forward address", &text)?,
            Key::Dns | Key::DnsHost => match text.as_str() {
                "none" => self.dns.clear(),
                _ => self.dns.push(address("DNS address", &text)?),
            },
            Key::Search => match text.as_str() {
                "none" => self.search.clear(),
                _ => self
                    .search
                    .extend(text.split_whitespace().map(str::to_owned)),
            },
            Key::MapHostLoopback => {
                map(&mut self.host_loopback, "address to remap to host", &text)?
            }
            Key::MapGuestAddr => map(&mut self.host_own, "address to remap to host", &text)?,
            Key::TcpPorts => self.take_ports(0, Protocol::Tcp, "-t", &text)?,
            Key::UdpPorts => self.take_ports(1, Protocol::Udp, "-u", &text)?,
            Key::TcpNs => self.take_ports(2, Protocol::Tcp, "-T", &text)?,
            Key::UdpNs => self.take_ports(3, Protocol::Udp, "-U", &text)?,
            Key::Interface | Key::OutboundIf4 | Key::OutboundIf6 | Key::NsIfname => {
                let fits = !text.is_empty() && text.len() <= MAX_INTERFACE;
                if !fits || text.contains(['/', '%']) || text.contains(char::is_whitespace) {
                    return Err(ArgsError::Value("interface name", text));
                }
                self.texts.push((key, text));
            }
            Key::Hostname | Key::Fqdn => self.texts.push((key, text)),
            Key::RequireSandbox => self.sandbox = Mode::Required,
            Key::NoSandbox => self.sandbox = Mode::Off,
            flag => self.flags.push(flag),
        }
        Ok(())
    }

    fn has(&self, flag: Key) -> bool {
        self.flags.contains(&flag)
    }

    fn text(&self, key: Key) -> Option<String> {
        let last = self.texts.iter().rev().find(|(of, _)| *of == key);
        last.map(|(_, text)| text.clone())
    }

    /// An address, perhaps with a prefix length.
    fn take_address(&mut self, text: &str) -> Result<(), ArgsError> {
        let (bare, len) = match text.split_once('/') {
            Some((bare, len)) => (bare, Some(len)),
            None => (text, None),
        };
        let at = address("address", bare)?;
        add(&mut self.address, "address", bare)?;
        let Some(len) = len else { return Ok(()) };
        let most = if at.is_ipv4() { 32 } else { 128 };
        let len = between(len, 1, most).ok_or_else(|| ArgsError::Value("address", text.to_owned()));
        match at {
            IpAddr::V4(_) => self.prefix_v4 = Some(len? as u8),
            IpAddr::V6(_) => self.prefix_v6 = Some(len? as u8),
        }
        Ok(())
    }

    fn take_ports(
        &mut self,
        table: usize,
        protocol: Protocol,
        option: &'static str,
        text: &str,
    ) -> Result<(), ArgsError> {
        let wrong = |error| ArgsError::Ports(option, text.to_owned(), error);
        let rules = ports::parse(protocol, text).map_err(wrong)?;
        match (&mut self.ports[table], text) {
            (Some(before), "none") if !before.is_empty() => Err(wrong(ports::SpecError::None)),
            (Some(before), _) if before.is_empty() => Err(wrong(ports::SpecError::None)),
            (Some(before), _) => {
                before.extend(rules);
                Ok(())
            }
            (place @ None, _) => {
                *place = Some(rules);
                Ok(())
            }
        }
    }

    fn check(&self) -> Result<(), ArgsError> {
        let [v4, v6] = [Key::Ipv4Only, Key::Ipv6Only].map(|flag| self.has(flag));
        if v4 && v6 {
            return Err(ArgsError::Conflict("--ipv4-only", "--ipv6-only"));
        }
        if v6 && self.prefix_v4.is_some() {
            return Err(ArgsError::NoIpv4("--netmask"));
        }
        if self.has(Key::SpliceOnly) && self.has(Key::NoSplice) {
            return Err(ArgsError::Conflict("--splice-only", "--no-splice"));
        }
        if self.has(Key::NetnsOnly) && self.userns.is_some() {
            return Err(ArgsError::Conflict("--netns-only", "--userns"));
        }
        if self.logging.file.is_some() && self.has(Key::Stderr) {
            return Err(ArgsError::Conflict("--log-file", "--stderr"));
        }
        Ok(())
    }

    /// The namespace. A single operand that is a number is a PID.
    fn target(&mut self, operands: Vec<OsString>) -> Result<Target, ArgsError> {
        let pid = |text: &OsString| text.to_str().and_then(number).filter(|pid| *pid > 0);
        match (self.netns.take(), operands.as_slice()) {
            (Some(path), []) => Ok(Target::Path(path)),
            (Some(_), [_, ..]) => Err(ArgsError::Conflict("--netns", "a PID or a command")),
            (None, [only]) if pid(only).is_some() => {
                Ok(Target::Process(pid(only).unwrap_or_default()))
            }
            (None, [first, rest @ ..]) if pid(first).is_some() => {
                let rest: Vec<_> = rest.iter().map(|word| word.to_string_lossy()).collect();
                Err(ArgsError::TooMany(rest.join(" ")))
            }
            (None, _) if self.userns.is_some() => Err(ArgsError::Conflict("--userns", "a command")),
            (None, _) => Ok(Target::Command(operands)),
        }
    }

    // Longer than 60 lines: it names each option once.
    fn finish(mut self, operands: Vec<OsString>) -> Result<Options, ArgsError> {
        self.check()?;
        let target = self.target(operands)?;
        let only = self.has(Key::SpliceOnly);
        let [tcp, udp, tcp_ns, udp_ns] = &mut self.ports;
        let table = |rules: &mut Option<Vec<PortRule>>, protocol| {
            rules
                .take()
                .unwrap_or_else(|| vec![PortRule::auto(protocol)])
        };
        let mut inwards = table(tcp, Protocol::Tcp);
        inwards.extend(table(udp, Protocol::Udp));
        let mut outwards = table(tcp_ns, Protocol::Tcp);
        outwards.extend(table(udp_ns, Protocol::Udp));
        let refused = Refused {
            tcp: self.has(Key::NoTcp),
            udp: self.has(Key::NoUdp),
            icmp: self.has(Key::NoIcmp),
        };
        let allowed = |rule: &PortRule| match rule.protocol {
            Protocol::Tcp => !refused.tcp,
            Protocol::Udp => !refused.udp,
        };
        inwards.retain(allowed);
        outwards.retain(allowed);
        if self.has(Key::NoSplice) {
            outwards.clear();
        }
        self.logging.debug = self.has(Key::Debug);
        self.logging.trace = self.has(Key::Trace);
        self.logging.quiet = self.has(Key::Quiet);
        let verbose = self.logging.debug || self.logging.trace;
        Ok(Options {
            userns: self.userns.take(),
            netns_only: self.has(Key::NetnsOnly),
            quit: !self.has(Key::NoNetnsQuit),
            foreground: self.has(Key::Foreground) || verbose,
            pid_file: self.pid_file.take(),
            pcap: self.pcap.take(),
            run_as: self.run_as,
            sandbox: self.sandbox,
            ns_interface: self.text(Key::NsIfname),
            ns_mac: self.ns_mac,
            config_net: self.has(Key::ConfigNet),
            copy_routes: !self.has(Key::NoCopyRoutes),
            copy_addresses: !self.has(Key::NoCopyAddrs),
            mtu: self.mtu.unwrap_or(DEFAULT_MTU),
            address: self.address,
            prefix_v4: self.prefix_v4,
            prefix_v6: self.prefix_v6,
            gateway: self.gateway,
            interface: self.text(Key::Interface),
            outbound: self.outbound,
            outbound_if4: self.text(Key::OutboundIf4),
            outbound_if6: self.text(Key::OutboundIf6),
            gateway_mac: self.gateway_mac,
            ipv4: !self.has(Key::Ipv6Only),
            ipv6: !self.has(Key::Ipv4Only),
            hostname: self.text(Key::Hostname),
            dns_forward: self.dns_forward,
            refused,
            silent: Silent {
                dhcp: self.has(Key::NoDhcp),
                dhcpv6: self.has(Key::NoDhcpv6),
                ndp: self.has(Key::NoNdp),
                ra: self.has(Key::NoRa),
            },
            map_gateway: !self.has(Key::NoMapGw),
            host_loopback: self.host_loopback,
            host_own: self.host_own,
            to_loopback: self.has(Key::HostLoToNsLo) || only,
            splice_only: only,
            splice: !self.has(Key::NoSplice),
            ports: Ports { inwards, outwards },
            control: self.control.take(),
            logging: self.logging,
            dns: self.dns,
            search: self.search,
            target,
        })
    }
}

/// A path, or a name of ip-netns(8).
fn namespace_path(value: &OsStr) -> PathBuf {
    let path = PathBuf::from(value);
    match path.components().count() {
        1 if path.is_relative() => PathBuf::from(NAMED_NAMESPACES).join(path),
        _ => path,
    }
}

fn socket_path(value: &OsStr) -> Result<PathBuf, ArgsError> {
    match value.len() <= unix::MAX_PATH && !value.is_empty() {
        true => Ok(value.into()),
        false => {
            let text = value.to_string_lossy().into_owned();
            Err(ArgsError::SocketPath("--conf-path", text))
        }
    }
}

/// 0 leaves the interface with the MTU that every one begins with.
fn mtu(text: &str) -> Result<u16, ArgsError> {
    if number(text) == Some(0) {
        return Ok(1500);
    }
    let mtu = between(text, MIN_MTU, MAX_MTU);
    mtu.ok_or_else(|| ArgsError::Value("MTU", text.to_owned()))
}

/// An address that one machine can have.
fn address(what: &'static str, text: &str) -> Result<IpAddr, ArgsError> {
    let usable = |at: &IpAddr| {
        let broadcast = matches!(at, IpAddr::V4(v4) if v4.is_broadcast());
        !at.is_unspecified() && !at.is_multicast() && !broadcast
    };
    let at = text.parse().ok().filter(usable);
    at.ok_or_else(|| ArgsError::Value(what, text.to_owned()))
}

/// Adds an address of a family that has none yet.
fn add(pair: &mut Pair, what: &'static str, text: &str) -> Result<(), ArgsError> {
    let twice = || ArgsError::Twice(what, text.to_owned());
    match address(what, text)? {
        IpAddr::V4(_) if pair.ipv4.is_some() => Err(twice()),
        IpAddr::V6(_) if pair.ipv6.is_some() => Err(twice()),
        IpAddr::V4(v4) => {
            pair.ipv4 = Some(v4);
            Ok(())
        }
        IpAddr::V6(v6) => {
            pair.ipv6 = Some(v6);
            Ok(())
        }
    }
}

/// Adds an address that stands for another; `none` for no such address.
fn map(mapped: &mut Mapped, what: &'static str, text: &str) -> Result<(), ArgsError> {
    mapped.given = true;
    if text == "none" {
        (mapped.ipv4, mapped.ipv6) = (None, None);
        return Ok(());
    }
    match address(what, text)? {
        IpAddr::V4(v4) => mapped.ipv4 = Some(v4),
        IpAddr::V6(v6) => mapped.ipv6 = Some(v6),
    }
    Ok(())
}
