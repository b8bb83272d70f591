//! slirp4netns's command line.
//!
//! Callers were written against getopt_long(3), so its rules are kept to the letter: options and
//! operands in any order, values as the next word or after `=`, short options in clusters, long
//! ones cut short while they stay unique, the last of two winning, `--` ending the options. The
//! messages are slirp4netns's own where it has one, since callers show them to people.
//!
//! What this version does not do yet is refused by name, never ignored. `--help` names the options
//! that callers look for there, and not those that are refused: podman and rootlesskit pass
//! `--enable-sandbox` and `--enable-seccomp` only to a program whose help speaks of them.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use cnet_wire::MacAddr;

use cnet_dataplane::{DEFAULT_BUSY_POLL, MAX_BUSY_POLL_MICROS, MAX_WORKERS};
use cnet_wire::prefixes::{Subnet, SubnetError};

/// The text of `--help`.
pub const HELP: &str = "\
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
--disable-dns            do not answer DNS on 10.0.2.3 (or where --cidr puts it)
--macaddress=MAC         specify the MAC address of the TAP (only valid with -c)
--target-type=TYPE       specify the target type (netns)
--busy-poll=MICROSECONDS poll this long after the last packet before sleeping (default=50, 0=never)
--workers=N              carry TCP on N threads, each with a queue of the TAP (default=1, max=64)
-h, --help               show this help and exit
-v, --version            show version and exit
";

/// The largest MTU: with the Ethernet header it just fits a TAP (`drivers/net/tun.c`).
pub const MAX_MTU: u16 = 65521;

/// The MTU without `--mtu`.
pub const DEFAULT_MTU: u16 = 1500;

/// The interface's name without TAPNAME.
pub const DEFAULT_TAP: &str = "tap0";

/// What the command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Invocation {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// To bring up a network.
    Run(Box<Options>),
}

/// Whose network it is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// The namespaces of a process.
    Process(i32),
    /// A network namespace's file.
    Path(PathBuf),
}

/// The options of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whose network.
    pub target: Target,
    /// The user namespace to enter, when it is not the target process's own.
    pub userns: Option<PathBuf>,
    /// The interface's name.
    pub tap_name: String,
    /// Configure the interface.
    pub configure: bool,
    /// The descriptor whose events end the program.
    pub exit_fd: Option<i32>,
    /// The descriptor to report readiness on.
    pub ready_fd: Option<i32>,
    /// The MTU in bytes.
    pub mtu: u16,
    /// IPv6 beside IPv4.
    pub ipv6: bool,
    /// Where to serve the API.
    pub api_socket: Option<PathBuf>,
    /// The network's IPv4 subnet.
    pub subnet: Subnet,
    /// Keep the host's loopback out of reach.
    pub disable_host_loopback: bool,
    /// Do not answer DNS.
    pub disable_dns: bool,
    /// The IPv4 address to send from.
    pub outbound_v4: Option<Ipv4Addr>,
    /// The IPv6 address to send from.
    pub outbound_v6: Option<Ipv6Addr>,
    /// The interface's hardware address.
    pub mac: Option<MacAddr>,
    /// How long to poll on after the last packet; zero for never. Not an option of slirp4netns.
    pub busy_poll: Duration,
    /// Threads that move packets. Not an option of slirp4netns.
    pub workers: u16,
    /// What to tell the user without stopping.
    pub warnings: Vec<String>,
}

/// What is wrong with a command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArgsError {
    /// getopt_long(3) would not have it.
    #[error("cnet-slirp: {0}")]
    Syntax(String),
    /// Neither PID nor PATH.
    #[error("cnet-slirp: a PID or a PATH is needed")]
    NoTarget,
    /// A PID that is none.
    #[error("PID must be a positive integer")]
    Pid,
    /// A descriptor that is none; the option's name without dashes.
    #[error("{0} must be a non-negative integer")]
    Descriptor(&'static str),
    /// An MTU out of range.
    #[error("MTU must be a positive integer (< 65522)")]
    Mtu,
    /// A time to poll that is none, or too long.
    #[error("--busy-poll must be an integer from 0 to {MAX_BUSY_POLL_MICROS}, in microseconds")]
    BusyPoll,
    /// A number of workers that is none, or out of range.
    #[error("--workers must be an integer from 1 to {MAX_WORKERS}")]
    Workers,
    /// An unusable `--cidr`.
    #[error(transparent)]
    Cidr(#[from] SubnetError),
    /// An unknown `--netns-type`.
    #[error("--netns-type must be either \"path\" or \"pid\"")]
    NetnsType,
    /// An unknown `--target-type`.
    #[error("--target-type must be either \"netns\" or \"bess\"")]
    TargetType,
    /// `--macaddress` without `-c`.
    #[error("--macaddress cannot be specified when --configure or -c is not specified")]
    MacWithoutConfigure,
    /// A MAC address that is none, or that no interface can have.
    #[error(
        "\"{0}\" is an invalid MAC address.\nmacaddress has to be a valid MAC address (hex \
         string, 6 bytes, each byte separated by a ':', not a multicast address)."
    )]
    Mac(String),
    /// An outbound address that is none.
    #[error(
        "{option}: \"{value}\" is not a valid {family} address; interface names are not \
         supported yet, give the interface's address"
    )]
    Outbound {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// `--outbound-addr6` without `--enable-ipv6`.
    #[error("--outbound-addr6 needs --enable-ipv6")]
    OutboundWithoutIpv6,
    /// An option whose function is missing in this version.
    #[error("{option} is not supported by this version of cnet-slirp: {missing}")]
    Missing {
        /// As it was written.
        option: &'static str,
        /// What there is not, and what to do.
        missing: &'static str,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
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

struct Spec {
    key: Key,
    long: &'static str,
    short: Option<u8>,
    value: bool,
}

const fn flag(key: Key, long: &'static str, short: Option<u8>) -> Spec {
    Spec {
        key,
        long,
        short,
        value: false,
    }
}

const fn valued(key: Key, long: &'static str, short: Option<u8>) -> Spec {
    Spec {
        key,
        long,
        short,
        value: true,
    }
}

const SPECS: [Spec; 23] = [
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

/// Reads a command line, the program's name left out.
///
/// # Errors
///
/// See [`ArgsError`]. slirp4netns shows its usage on each of them.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, ArgsError> {
    let mut given = Given::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        let ended = match bytes {
            b"--" => {
                given.operands.extend(args.by_ref());
                None
            }
            [b'-', b'-', long @ ..] => given.long(long, &mut args)?,
            [b'-', cluster @ ..] if !cluster.is_empty() => given.cluster(cluster, &mut args)?,
            _ => {
                given.operands.push(arg);
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
    warnings: Vec<String>,
}

type Step = Result<Option<Invocation>, ArgsError>;

impl Given {
    fn long(&mut self, text: &[u8], rest: &mut impl Iterator<Item = OsString>) -> Step {
        let (name, attached) = match text.iter().position(|&b| b == b'=') {
            Some(at) => (
                &text[..at],
                Some(OsString::from_vec(text[at + 1..].to_vec())),
            ),
            None => (text, None),
        };
        let shown = String::from_utf8_lossy(name);
        let begins = |spec: &&Spec| spec.long.as_bytes().starts_with(name);
        let exact = SPECS.iter().find(|spec| spec.long.as_bytes() == name);
        let candidates: Vec<&Spec> = SPECS.iter().filter(begins).collect();
        let spec = match (exact, candidates.as_slice()) {
            (Some(spec), _) | (None, &[spec]) => spec,
            (None, []) => {
                return Err(ArgsError::Syntax(format!(
                    "unrecognized option '--{shown}'"
                )));
            }
            (None, several) => {
                let names: Vec<_> = several.iter().map(|s| format!("'--{}'", s.long)).collect();
                let names = names.join(" ");
                return Err(ArgsError::Syntax(format!(
                    "option '--{shown}' is ambiguous; possibilities: {names}"
                )));
            }
        };
        if attached.is_some() && !spec.value {
            let message = format!("option '--{}' doesn't allow an argument", spec.long);
            return Err(ArgsError::Syntax(message));
        }
        let value = match attached {
            None if spec.value => Some(rest.next().ok_or_else(|| {
                ArgsError::Syntax(format!("option '--{}' requires an argument", spec.long))
            })?),
            attached => attached,
        };
        self.take(spec.key, value.unwrap_or_default())
    }

    fn cluster(&mut self, cluster: &[u8], rest: &mut impl Iterator<Item = OsString>) -> Step {
        for (at, &letter) in cluster.iter().enumerate() {
            let shown = char::from(letter);
            let Some(spec) = SPECS.iter().find(|spec| spec.short == Some(letter)) else {
                return Err(ArgsError::Syntax(format!("invalid option -- '{shown}'")));
            };
            if !spec.value {
                if let Some(ended) = self.take(spec.key, OsString::new())? {
                    return Ok(Some(ended));
                }
                continue;
            }
            let value = match &cluster[at + 1..] {
                [] => rest.next().ok_or_else(|| {
                    ArgsError::Syntax(format!("option requires an argument -- '{shown}'"))
                })?,
                attached => OsString::from_vec(attached.to_vec()),
            };
            return self.take(spec.key, value);
        }
        Ok(None)
    }

    fn take(&mut self, key: Key, value: OsString) -> Step {
        let text = value.to_string_lossy();
        match key {
            Key::Help => return Ok(Some(Invocation::Help)),
            Key::Version => return Ok(Some(Invocation::Version)),
            Key::Configure => self.configure = true,
            Key::ExitFd => self.exit_fd = Some(descriptor("exit-fd", &text)?),
            Key::ReadyFd => self.ready_fd = Some(descriptor("ready-fd", &text)?),
            Key::Mtu => {
                let mtu = number(&text).and_then(|n| u16::try_from(n).ok());
                let mtu = mtu.filter(|mtu| (1..=MAX_MTU).contains(mtu));
                self.mtu = Some(mtu.ok_or(ArgsError::Mtu)?);
            }
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
            Key::EnableSandbox => return Err(no_sandbox("--enable-sandbox")),
            Key::CreateSandbox => return Err(no_sandbox("--create-sandbox")),
            Key::EnableSeccomp => {
                return Err(ArgsError::Missing {
                    option: "--enable-seccomp",
                    missing: "it has no filter of system calls; leave the option out",
                });
            }
            Key::OutboundV4 => {
                let address = text.parse().map_err(|_| ArgsError::Outbound {
                    option: "--outbound-addr",
                    value: text.to_string(),
                    family: "IPv4",
                })?;
                self.outbound_v4 = Some(address);
            }
            Key::OutboundV6 => {
                let address = text.parse().map_err(|_| ArgsError::Outbound {
                    option: "--outbound-addr6",
                    value: text.to_string(),
                    family: "IPv6",
                })?;
                self.outbound_v6 = Some(address);
            }
            Key::DisableDns => self.disable_dns = true,
            Key::Mac => {
                let mac = mac_address(&text).ok_or_else(|| ArgsError::Mac(text.to_string()))?;
                self.mac = Some(mac);
            }
            Key::TargetType => target_type(&text)?,
            Key::BusyPoll => {
                let micros = number(&text).and_then(|n| u32::try_from(n).ok());
                let micros = micros.filter(|n| *n <= MAX_BUSY_POLL_MICROS);
                let micros = micros.ok_or(ArgsError::BusyPoll)?;
                self.busy_poll = Some(Duration::from_micros(micros.into()));
            }
            Key::Workers => {
                let workers = number(&text).and_then(|n| u16::try_from(n).ok());
                let workers = workers.filter(|n| (1..=MAX_WORKERS).contains(n));
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
            warnings: self.warnings,
        })
    }
}

fn no_sandbox(option: &'static str) -> ArgsError {
    let missing = "it does not confine itself to a mount namespace; leave the option out";
    ArgsError::Missing { option, missing }
}

fn number(text: &str) -> Option<i32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
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
mod tests {
    use super::*;

    fn try_parse(line: &str) -> Result<Invocation, ArgsError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn options(line: &str) -> Options {
        match try_parse(line) {
            Ok(Invocation::Run(options)) => *options,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn error(line: &str) -> String {
        match try_parse(line) {
            Err(error) => error.to_string(),
            Ok(other) => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let options = options("4242");
        assert_eq!(
            options,
            Options {
                target: Target::Process(4242),
                userns: None,
                tap_name: "tap0".to_owned(),
                configure: false,
                exit_fd: None,
                ready_fd: None,
                mtu: 1500,
                ipv6: false,
                api_socket: None,
                subnet: Subnet::DEFAULT,
                disable_host_loopback: false,
                disable_dns: false,
                outbound_v4: None,
                outbound_v6: None,
                mac: None,
                busy_poll: DEFAULT_BUSY_POLL,
                workers: 1,
                warnings: vec![],
            }
        );
    }

    #[test]
    fn the_way_podman_calls() {
        let options = options(
            "--disable-host-loopback --mtu=65520 --enable-ipv6 --api-socket /run/a.sock \
             -c -e 3 -r 4 --netns-type=path /run/user/1000/netns/netns-1 tap0",
        );
        assert!(options.disable_host_loopback && options.configure && options.ipv6);
        assert_eq!((options.exit_fd, options.ready_fd), (Some(3), Some(4)));
        assert_eq!(options.mtu, 65520);
        assert_eq!(options.api_socket, Some("/run/a.sock".into()));
        let path = "/run/user/1000/netns/netns-1".into();
        assert_eq!(options.target, Target::Path(path));
    }

    #[test]
    fn the_way_rootlesskit_calls() {
        let options = options(
            "--mtu 65520 -r 3 --disable-host-loopback --cidr 10.33.0.0/16 \
             --userns-path=/proc/77/ns/user --netns-type=path /proc/77/ns/net tap0",
        );
        assert_eq!(options.ready_fd, Some(3));
        assert_eq!(options.subnet.to_string(), "10.33.0.0/16");
        assert_eq!(options.userns, Some("/proc/77/ns/user".into()));
        assert!(!options.configure);
    }

    #[test]
    fn getopt_order_and_clusters() {
        let expected = options("-c -6 -e 3 -r 4 -m 1400 77 eth0");
        for line in [
            "77 -c eth0 -6 -e 3 -m 1400 -r 4",
            "-c6e3 -r4 -m1400 77 eth0",
            "77 eth0 -6ce 3 --ready 4 --mtu 1400",
            "--conf --enable-i --exit=3 --ready-fd=4 -m 9000 -m 1400 -- 77 eth0",
        ] {
            assert_eq!(options(line), expected, "{line}");
        }
        assert_eq!(options("-- 77 -c").tap_name, "-c");
        let warned = options("77 tap0 more");
        assert_eq!(warned.warnings, ["too many arguments"]);
    }

    #[test]
    fn help_and_version_win_where_they_stand() {
        assert_eq!(try_parse("--help"), Ok(Invocation::Help));
        assert_eq!(try_parse("-hv --nonsense"), Ok(Invocation::Help));
        assert_eq!(try_parse("-vh"), Ok(Invocation::Version));
        assert_eq!(try_parse("--vers"), Ok(Invocation::Version));
        assert_eq!(
            error("--nonsense -h"),
            "cnet-slirp: unrecognized option '--nonsense'"
        );
        for option in [
            "--mtu",
            "--cidr",
            "--disable-host-loopback",
            "--enable-ipv6",
            "--outbound-addr",
            "--netns-type",
        ] {
            assert!(HELP.contains(option), "{option}");
        }
        for refused in ["--enable-sandbox", "--enable-seccomp"] {
            assert!(!HELP.contains(refused), "callers would pass {refused}");
        }
    }

    #[test]
    fn syntax_errors_read_as_getopt_writes_them() {
        for (line, message) in [
            ("--foo 1", "unrecognized option '--foo'"),
            ("-1", "invalid option -- '1'"),
            ("-ce", "option requires an argument -- 'e'"),
            ("--cidr", "option '--cidr' requires an argument"),
            (
                "--configure=1 5",
                "option '--configure' doesn't allow an argument",
            ),
            (
                "--enable 1",
                "option '--enable' is ambiguous; possibilities: '--enable-ipv6' \
                 '--enable-sandbox' '--enable-seccomp'",
            ),
        ] {
            assert_eq!(error(line), format!("cnet-slirp: {message}"));
        }
    }

    #[test]
    fn values_out_of_range() {
        for line in ["abc", "0", "-- -5", "1a", "99999999999", "-c ./ns"] {
            assert_eq!(error(line), "PID must be a positive integer", "{line}");
        }
        for mtu in ["0", "65522", "abc", "-1", "5x", "+5"] {
            assert_eq!(
                error(&format!("-m {mtu} 1")),
                "MTU must be a positive integer (< 65522)"
            );
        }
        for micros in ["x", "-1", "1000001"] {
            let error = error(&format!("--busy-poll={micros} 5"));
            assert_eq!(error, ArgsError::BusyPoll.to_string());
        }
        assert_eq!(options("--busy-poll 0 5").busy_poll, Duration::ZERO);
        for workers in ["0", "65", "x", "-1", "65537"] {
            let error = error(&format!("--workers={workers} 5"));
            assert_eq!(error, ArgsError::Workers.to_string());
        }
        assert_eq!(options("--workers 64 5").workers, 64);
        assert_eq!(error("-e -1 5"), "exit-fd must be a non-negative integer");
        assert_eq!(error("-r x 5"), "ready-fd must be a non-negative integer");
        assert_eq!(
            error("--cidr=10.0.2.0/26 5"),
            "prefix length needs to be 1-25"
        );
        assert_eq!(
            error("--netns-type=foo 5"),
            ArgsError::NetnsType.to_string()
        );
        assert_eq!(
            error("--target-type=foo 5"),
            ArgsError::TargetType.to_string()
        );
        assert_eq!(
            error("--outbound-addr6=::1 5"),
            ArgsError::OutboundWithoutIpv6.to_string()
        );
        assert!(error("--outbound-addr=eth0 5").contains("\"eth0\" is not a valid IPv4 address"));
        assert!(error("-6 --outbound-addr6=1.2.3.4 5").contains("IPv6 address"));
        assert_eq!(error(""), ArgsError::NoTarget.to_string());
    }

    #[test]
    fn mac_addresses() {
        let mac = options("-c --macaddress=02:0:aB:4:5:6 5").mac.unwrap();
        assert_eq!(mac.to_string(), "02:00:ab:04:05:06");
        for text in [
            "zz",
            "1:2:3:4:5:6",
            "2:3:4:5:6",
            "2:3:4:5:6:7:8",
            "0:0:0:0:0:0",
            "2::4:5:6:7",
        ] {
            let error = error(&format!("-c --macaddress={text} 5"));
            assert!(error.starts_with(&format!("\"{text}\" is an invalid MAC address.")));
        }
        assert!(error("--macaddress=02:0:0:4:5:6 5").contains("--configure"));
    }

    #[test]
    fn what_is_missing_is_refused_by_name() {
        for option in [
            "--enable-sandbox",
            "--create-sandbox",
            "--enable-seccomp",
            "--netns-type=tapfd",
            "--target-type=bess",
        ] {
            let error = error(&format!("{option} 5"));
            assert!(
                error.starts_with(&format!("{option} is not supported")),
                "{error}"
            );
        }
    }
}
