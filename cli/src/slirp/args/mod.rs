//! slirp4netns's command line.
//!
//! Callers were written against getopt_long(3), so its rules are kept to the letter: options and
//! operands in any order, values as the next word or after `=`, short options in clusters, long
//! ones cut short while they stay unique, the last of two winning, `--` ending the options. The
//! messages are slirp4netns's own where it has one, since callers show them to people.
//!
//! What this program cannot do is refused by name, never ignored. `--help` names the options
//! that callers look for there: podman and rootlesskit pass `--enable-sandbox` and
//! `--enable-seccomp` only to a program whose help speaks of them. Here they ask for what is the
//! default.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cnet_tap::sandbox::Mode;
use cnet_wire::MacAddr;

use cnet_dataplane::{DEFAULT_BUSY_POLL, MAX_BUSY_POLL_MICROS, MAX_WORKERS};
use cnet_wire::prefixes::Subnet;

mod error;
mod getopt;

pub(crate) use error::ArgsError;
use getopt::{Key, Word, Words};

/// The text of `--help`.
pub(crate) const HELP: &str = "\
Usage: cnet-slirp [OPTION]... PID|PATH [TAPNAME]
User-mode networking for unprivileged network namespaces, as slirp4netns does it.

-c, --configure          bring up the interface
-e, --exit-fd=FD         specify the FD for terminating cnet-slirp
-r, --ready-fd=FD        specify the FD to write to when the network is configured
-m, --mtu=MTU            specify MTU (default=1500, max=65521)
-6, --enable-ipv6        enable IPv6
-a, --api-socket=PATH    specify API socket path
--cidr=CIDR              specify network address CIDR (default=10.0.2.0/24)
--disable-host-loopback  prohibit connecting to 127.0.0.1:* on the host namespace
--netns-type=TYPE        specify network namespace type ([path|pid], default=pid)
--userns-path=PATH       specify user namespace path
--outbound-addr=IPv4     specify the IPv4 address to send from
--outbound-addr6=IPv6    specify the IPv6 address to send from
--enable-sandbox         stay in a sandbox (always so, unless --no-sandbox is given)
--enable-seccomp         keep few system calls (always so, unless --no-sandbox is given)
--require-sandbox        refuse to run where the host lacks a stage of the sandbox
--no-sandbox             stay outside the sandbox (for debugging only)
--disable-dns            do not answer DNS on 10.0.2.3 (or where --cidr puts it)
--macaddress=MAC         specify the MAC address of the TAP (only valid with -c)
--target-type=TYPE       specify the target type (netns)
--busy-poll=MICROSECONDS poll this long after the last packet before sleeping (default=50, 0=never)
--workers=N              carry TCP on N threads, each with a queue of the TAP (default=1, max=64)
-h, --help               show this help and exit
-v, --version            show version and exit
";

/// The largest MTU: with the Ethernet header it just fits a TAP (`drivers/net/tun.c`).
pub(crate) const MAX_MTU: u16 = 65521;

/// The MTU without `--mtu`.
pub(crate) const DEFAULT_MTU: u16 = 1500;

/// The interface's name without TAPNAME.
pub(crate) const DEFAULT_TAP: &str = "tap0";

/// What the command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Invocation {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// To bring up a network.
    Run(Box<Options>),
}

/// The container whose network it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// The namespaces of a process.
    Process(i32),
    /// A network namespace's file.
    Path(PathBuf),
}

/// The options of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    /// The container.
    pub(crate) target: Target,
    /// The user namespace to enter, when it is not the target process's own.
    pub(crate) userns: Option<PathBuf>,
    /// The interface's name.
    pub(crate) tap_name: String,
    /// Configure the interface.
    pub(crate) configure: bool,
    /// The descriptor whose events end the program.
    pub(crate) exit_fd: Option<i32>,
    /// The descriptor to report readiness on.
    pub(crate) ready_fd: Option<i32>,
    /// The MTU in bytes.
    pub(crate) mtu: u16,
    /// IPv6 beside IPv4.
    pub(crate) ipv6: bool,
    /// Where to serve the API.
    pub(crate) api_socket: Option<PathBuf>,
    /// The network's IPv4 subnet.
    pub(crate) subnet: Subnet,
    /// Keep the host's loopback out of reach.
    pub(crate) disable_host_loopback: bool,
    /// Do not answer DNS.
    pub(crate) disable_dns: bool,
    /// The IPv4 address to send from.
    pub(crate) outbound_v4: Option<Ipv4Addr>,
    /// The IPv6 address to send from.
    pub(crate) outbound_v6: Option<Ipv6Addr>,
    /// The interface's hardware address.
    pub(crate) mac: Option<MacAddr>,
    /// How long to poll on after the last packet; zero for never. Not an option of slirp4netns.
    pub(crate) busy_poll: Duration,
    /// Threads that move packets. Not an option of slirp4netns.
    pub(crate) workers: u16,
    /// How much of the sandbox is insisted upon.
    pub(crate) sandbox: Mode,
    /// What to tell the user without stopping.
    pub(crate) warnings: Vec<String>,
}

/// Reads a command line, the program's name left out.
///
/// # Errors
///
/// See [`ArgsError`]. slirp4netns shows its usage on each of them.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, ArgsError> {
    let mut given = Given::default();
    for word in Words::new(args.into_iter()) {
        let ended = match word? {
            Word::Option(key, value) => given.take(key, value)?,
            Word::Operand(operand) => {
                given.operands.push(operand);
                None
            }
        };
        if let Some(ended) = ended {
            return Ok(ended);
        }
    }
    given
        .finish()
        .map(|options| Invocation::Run(Box::new(options)))
}

/// What was found so far.
#[derive(Default)]
struct Given {
    operands: Vec<OsString>,
    configure: bool,
    exit_fd: Option<i32>,
    ready_fd: Option<i32>,
    mtu: Option<u16>,
    ipv6: bool,
    api_socket: Option<PathBuf>,
    subnet: Option<Subnet>,
    disable_host_loopback: bool,
    by_path: bool,
    userns: Option<PathBuf>,
    outbound_v4: Option<Ipv4Addr>,
    outbound_v6: Option<Ipv6Addr>,
    disable_dns: bool,
    mac: Option<MacAddr>,
    busy_poll: Option<Duration>,
    workers: Option<u16>,
    sandbox: Mode,
    warnings: Vec<String>,
}

impl Given {
    fn take(&mut self, key: Key, value: OsString) -> Result<Option<Invocation>, ArgsError> {
        let text = value.to_string_lossy();
        match key {
            Key::Help => return Ok(Some(Invocation::Help)),
            Key::Version => return Ok(Some(Invocation::Version)),
            Key::Configure => self.configure = true,
            Key::ExitFd => self.exit_fd = Some(descriptor("exit-fd", &text)?),
            Key::ReadyFd => self.ready_fd = Some(descriptor("ready-fd", &text)?),
            Key::Mtu => self.mtu = Some(between(&text, 1, MAX_MTU).ok_or(ArgsError::Mtu)?),
            Key::Ipv6 => self.ipv6 = true,
            Key::ApiSocket => self.api_socket = Some(value.into()),
            Key::Cidr => self.subnet = Some(text.parse()?),
            Key::DisableHostLoopback => self.disable_host_loopback = true,
            Key::NoHostLoopback => {
                self.disable_host_loopback = true;
                self.warnings.push(
                    "--no-host-loopback is deprecated, please use --disable-host-loopback instead"
                        .to_owned(),
                );
            }
            Key::NetnsType => self.by_path = netns_type(&text)?,
            Key::UsernsPath => self.userns = Some(value.into()),
            // What is so by default.
            Key::EnableSandbox | Key::CreateSandbox | Key::EnableSeccomp => {
                if self.sandbox == Mode::Off {
                    self.sandbox = Mode::Offered;
                }
            }
            Key::RequireSandbox => self.sandbox = Mode::Required,
            Key::NoSandbox => self.sandbox = Mode::Off,
            Key::OutboundV4 => {
                self.outbound_v4 = Some(outbound("--outbound-addr", &text, "IPv4")?);
            }
            Key::OutboundV6 => {
                self.outbound_v6 = Some(outbound("--outbound-addr6", &text, "IPv6")?);
            }
            Key::DisableDns => self.disable_dns = true,
            Key::Mac => {
                let mac = mac_address(&text).ok_or_else(|| ArgsError::Mac(text.to_string()))?;
                self.mac = Some(mac);
            }
            Key::TargetType => target_type(&text)?,
            Key::BusyPoll => {
                let micros = between(&text, 0, MAX_BUSY_POLL_MICROS);
                let micros = micros.ok_or(ArgsError::BusyPoll)?;
                self.busy_poll = Some(Duration::from_micros(micros.into()));
            }
            Key::Workers => {
                let workers = between(&text, 1, MAX_WORKERS);
                self.workers = Some(workers.ok_or(ArgsError::Workers)?);
            }
        }
        Ok(None)
    }

    fn finish(mut self) -> Result<Options, ArgsError> {
        if self.mac.is_some() && !self.configure {
            return Err(ArgsError::MacWithoutConfigure);
        }
        if self.outbound_v6.is_some() && !self.ipv6 {
            return Err(ArgsError::OutboundWithoutIpv6);
        }
        let mut operands = self.operands.into_iter();
        let target = operands.next().ok_or(ArgsError::NoTarget)?;
        let target = match self.by_path {
            true => Target::Path(target.into()),
            false => Target::Process(process_id(&target).ok_or(ArgsError::Pid)?),
        };
        let tap_name = operands.next().map_or_else(
            || DEFAULT_TAP.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        if operands.next().is_some() {
            self.warnings.push("too many arguments".to_owned());
        }
        Ok(Options {
            target,
            userns: self.userns,
            tap_name,
            configure: self.configure,
            exit_fd: self.exit_fd,
            ready_fd: self.ready_fd,
            mtu: self.mtu.unwrap_or(DEFAULT_MTU),
            ipv6: self.ipv6,
            api_socket: self.api_socket,
            subnet: self.subnet.unwrap_or(Subnet::DEFAULT),
            disable_host_loopback: self.disable_host_loopback,
            disable_dns: self.disable_dns,
            outbound_v4: self.outbound_v4,
            outbound_v6: self.outbound_v6,
            mac: self.mac,
            busy_poll: self.busy_poll.unwrap_or(DEFAULT_BUSY_POLL),
            workers: self.workers.unwrap_or(1),
            sandbox: self.sandbox,
            warnings: self.warnings,
        })
    }
}

fn number(text: &str) -> Option<i32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// A number from `first` to `last`.
fn between<N: TryFrom<i32> + PartialOrd>(text: &str, first: N, last: N) -> Option<N> {
    let number = N::try_from(number(text)?).ok()?;
    (first <= number && number <= last).then_some(number)
}

fn outbound<A: FromStr>(
    option: &'static str,
    text: &str,
    family: &'static str,
) -> Result<A, ArgsError> {
    text.parse().map_err(|_| ArgsError::Outbound {
        option,
        value: text.to_owned(),
        family,
    })
}

fn descriptor(option: &'static str, text: &str) -> Result<i32, ArgsError> {
    number(text).ok_or(ArgsError::Descriptor(option))
}

fn process_id(text: &OsStr) -> Option<i32> {
    number(text.to_str()?).filter(|&pid| pid > 0)
}

fn netns_type(text: &str) -> Result<bool, ArgsError> {
    match text {
        "pid" => Ok(false),
        "path" => Ok(true),
        "tapfd" => Err(ArgsError::Missing {
            option: "--netns-type=tapfd",
            missing: "it cannot take over a TAP opened by somebody else; use \"pid\" or \"path\"",
        }),
        _ => Err(ArgsError::NetnsType),
    }
}

fn target_type(text: &str) -> Result<(), ArgsError> {
    match text {
        "netns" => Ok(()),
        "bess" => Err(ArgsError::Missing {
            option: "--target-type=bess",
            missing: "it does not serve User Mode Linux; use \"netns\"",
        }),
        _ => Err(ArgsError::TargetType),
    }
}

fn mac_address(text: &str) -> Option<MacAddr> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let part = parts.next()?;
        let hex = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
        *octet = u8::from_str_radix(part, 16).ok().filter(|_| hex)?;
    }
    let mac = MacAddr(octets);
    (parts.next().is_none() && !mac.is_multicast() && !mac.is_zero()).then_some(mac)
}

#[cfg(test)]
mod tests;
