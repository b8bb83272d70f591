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
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cnet_tap::sandbox::Mode;
use cnet_wire::MacAddr;

use cnet_dataplane::{DEFAULT_BUSY_POLL, MAX_BUSY_POLL_MICROS, MAX_WORKERS};
use cnet_wire::prefixes::Subnet;

mod error;
mod options;

use crate::getopt::{Word, Words, between, number, station_mac};
pub(crate) use error::ArgsError;
use options::{Key, SPECS};

/// The usage line, for a program that was called as `program`.
pub(crate) fn usage(program: &str) -> String {
    format!("Usage: {program} [OPTION]... PID|PATH|FD [TAPNAME]\n{HELP}")
}

/// The text of `--help` below the usage line.
const HELP: &str = "\
User-mode networking for unprivileged network namespaces, as slirp4netns does it.

-c, --configure          bring up the interface
-e, --exit-fd=FD         specify the FD for terminating cnet-slirp
-r, --ready-fd=FD        specify the FD to write to when the network is configured
-m, --mtu=MTU            specify MTU (default=1500, max=65521)
-6, --enable-ipv6        enable IPv6
-a, --api-socket=PATH    specify API socket path
--cidr=CIDR              specify network address CIDR (default=10.0.2.0/24)
--disable-host-loopback  prohibit connecting to 127.0.0.1:* on the host namespace
--netns-type=TYPE        specify network namespace type ([path|pid|tapfd], default=pid)
--userns-path=PATH       specify user namespace path
--outbound-addr=IPv4     specify the IPv4 address to send from, or the interface that has it
--outbound-addr6=IPv6    specify the IPv6 address to send from, or the interface that has it
--enable-sandbox         stay in a sandbox (always so, unless --no-sandbox is given)
--enable-seccomp         keep few system calls (always so, unless --no-sandbox is given)
--require-sandbox        refuse to run where the host lacks a stage of the sandbox
--no-sandbox             stay outside the sandbox (for debugging only)
--disable-dns            do not answer DNS on 10.0.2.3 (or where --cidr puts it)
--macaddress=MAC         specify the MAC address of the TAP (only valid with -c)
--target-type=TYPE       specify the target type ([netns|bess], default=netns)
--busy-poll=MICROSECONDS poll this long after the last packet before sleeping (default=50, 0=never)
--workers=N              carry TCP on N threads, each with a queue of the TAP (default=1, max=64)
-h, --help               show this help and exit
-v, --version            show version and exit
";

/// The largest MTU: with the Ethernet header it just fits a TAP (`drivers/net/tun.c`).
pub(crate) const MAX_MTU: u16 = 65521;

/// The MTU without `--mtu`.
pub(crate) const DEFAULT_MTU: u16 = 1500;

/// Bytes of an interface's name (`IFNAMSIZ`, without the terminating zero). A longer one is cut, as
/// slirp4netns does it.
const MAX_TAP_NAME: usize = 15;

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
    /// A TAP that the caller has opened: the number of its descriptor.
    TapFd(i32),
    /// Where a machine of User Mode Linux connects to (`transport=bess`).
    Bess(PathBuf),
}

/// An address to send from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source<A> {
    /// This one.
    Address(A),
    /// The first one of an interface.
    Interface(String),
}

impl<A: FromStr> From<&str> for Source<A> {
    fn from(text: &str) -> Source<A> {
        match text.parse() {
            Ok(address) => Source::Address(address),
            Err(_) => Source::Interface(text.to_owned()),
        }
    }
}

/// The options of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    /// The container.
    pub(crate) target: Target,
    /// The user namespace to enter, when it is not the target process's own.
    pub(crate) userns: Option<PathBuf>,
    /// The interface's name; empty where the caller or the machine has it.
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
    pub(crate) outbound_v4: Option<Source<Ipv4Addr>>,
    /// The IPv6 address to send from.
    pub(crate) outbound_v6: Option<Source<Ipv6Addr>>,
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
    for word in Words::new(args.into_iter(), &SPECS) {
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
    netns_type: Option<NetnsType>,
    bess: bool,
    userns: Option<PathBuf>,
    outbound_v4: Option<Source<Ipv4Addr>>,
    outbound_v6: Option<Source<Ipv6Addr>>,
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
            Key::Cidr => self.subnet = Some(subnet(&text)?),
            Key::DisableHostLoopback => self.disable_host_loopback = true,
            Key::NoHostLoopback => {
                self.disable_host_loopback = true;
                self.warnings.push(
                    "--no-host-loopback is deprecated, please use --disable-host-loopback instead"
                        .to_owned(),
                );
            }
            Key::NetnsType => self.netns_type = Some(netns_type(&text)?),
            Key::UsernsPath => self.userns = Some(value.into()),
            // What is so by default.
            Key::EnableSandbox | Key::CreateSandbox | Key::EnableSeccomp => {
                if self.sandbox == Mode::Off {
                    self.sandbox = Mode::Offered;
                }
            }
            Key::RequireSandbox => self.sandbox = Mode::Required,
            Key::NoSandbox => self.sandbox = Mode::Off,
            Key::OutboundV4 => self.outbound_v4 = Some(Source::from(&*text)),
            Key::OutboundV6 => self.outbound_v6 = Some(Source::from(&*text)),
            Key::DisableDns => self.disable_dns = true,
            Key::Mac => {
                let mac = station_mac(&text).ok_or_else(|| ArgsError::Mac(text.to_string()))?;
                self.mac = Some(mac);
            }
            Key::TargetType => self.bess = is_bess(&text)?,
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

    fn target(&mut self, operand: OsString) -> Result<Target, ArgsError> {
        if self.bess {
            let conflict = [
                ("--configure", self.configure),
                ("--netns-type", self.netns_type.is_some()),
                ("--userns-path", self.userns.is_some()),
            ];
            return match conflict.iter().find(|(_, given)| *given) {
                Some((option, _)) => Err(ArgsError::BessConflict(option)),
                None => Ok(Target::Bess(operand.into())),
            };
        }
        match self.netns_type.unwrap_or(NetnsType::Pid) {
            NetnsType::Pid => process_id(&operand)
                .map(Target::Process)
                .ok_or(ArgsError::Pid),
            NetnsType::Path => Ok(Target::Path(operand.into())),
            NetnsType::TapFd => {
                if self.configure {
                    let text = "--configure does nothing for a TAP of the caller's".to_owned();
                    self.warnings.push(text);
                }
                let number = operand.to_str().and_then(number).filter(|&fd| fd >= 0);
                number.map(Target::TapFd).ok_or(ArgsError::TapFd)
            }
        }
    }

    fn finish(mut self) -> Result<Options, ArgsError> {
        if self.mac.is_some() && !self.configure {
            return Err(ArgsError::MacWithoutConfigure);
        }
        let mut operands = std::mem::take(&mut self.operands).into_iter();
        let target = operands.next().ok_or(ArgsError::NoTarget)?;
        let target = self.target(target)?;
        let tap_name = match target {
            Target::Process(_) | Target::Path(_) => {
                tap_name(&operands.next().ok_or(ArgsError::NoTapName)?)?
            }
            Target::TapFd(_) | Target::Bess(_) => String::new(),
        };
        match (&target, operands.next()) {
            (Target::Bess(_), Some(_)) => return Err(ArgsError::TooMany),
            (_, Some(_)) => self.warnings.push("too many arguments".to_owned()),
            (_, None) => {}
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

fn descriptor(option: &'static str, text: &str) -> Result<i32, ArgsError> {
    let number = number(text).filter(|&number| number >= 0);
    number.ok_or(ArgsError::Descriptor(option))
}

fn process_id(text: &OsStr) -> Option<i32> {
    number(text.to_str()?).filter(|&pid| pid > 0)
}

/// What the first operand names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NetnsType {
    Pid,
    Path,
    TapFd,
}

fn netns_type(text: &str) -> Result<NetnsType, ArgsError> {
    match text {
        "pid" => Ok(NetnsType::Pid),
        "path" => Ok(NetnsType::Path),
        "tapfd" => Ok(NetnsType::TapFd),
        _ => Err(ArgsError::NetnsType),
    }
}

fn is_bess(text: &str) -> Result<bool, ArgsError> {
    match text {
        "netns" => Ok(false),
        "bess" => Ok(true),
        _ => Err(ArgsError::TargetType),
    }
}

/// A subnet; not one of the loopback network, whose addresses no interface but `lo` can use.
fn subnet(text: &str) -> Result<Subnet, ArgsError> {
    let subnet: Subnet = text.parse()?;
    match subnet.container().is_loopback() {
        true => Err(ArgsError::LoopbackCidr(subnet)),
        false => Ok(subnet),
    }
}

/// An interface's name, cut to what the kernel takes.
fn tap_name(text: &OsStr) -> Result<String, ArgsError> {
    let bytes = text.as_bytes();
    let cut = &bytes[..bytes.len().min(MAX_TAP_NAME)];
    let name = String::from_utf8_lossy(cut).into_owned();
    match name.contains('%') {
        true => Err(ArgsError::TapName(name)),
        false => Ok(name),
    }
}

#[cfg(test)]
mod tests;
