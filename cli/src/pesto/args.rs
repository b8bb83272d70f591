//! pesto's command line.

use std::ffi::OsString;
use std::path::PathBuf;

use cnet_wire::Protocol;

use crate::getopt::{Spec, SyntaxError, Word, Words, flag, valued};
use crate::pasta::ports::{self, PortRule, SpecError};
use crate::pasta::wire::Side;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    Help,
    Version,
    Debug,
    Show,
    Add,
    Delete,
    Clear,
    TcpPorts,
    UdpPorts,
    TcpNs,
    UdpNs,
}

const SPECS: [Spec<Key>; 11] = [
    flag(Key::Help, "help", Some(b'h')),
    flag(Key::Version, "version", None),
    flag(Key::Debug, "debug", Some(b'd')),
    flag(Key::Show, "show", Some(b's')),
    flag(Key::Add, "add", Some(b'A')),
    flag(Key::Delete, "delete", Some(b'D')),
    flag(Key::Clear, "clear", Some(b'C')),
    valued(Key::TcpPorts, "tcp-ports", Some(b't')),
    valued(Key::UdpPorts, "udp-ports", Some(b'u')),
    valued(Key::TcpNs, "tcp-ns", Some(b'T')),
    valued(Key::UdpNs, "udp-ns", Some(b'U')),
];

/// The usage, for a program that was called as `program`.
pub(super) fn usage(program: &str) -> String {
    format!("Usage: {program} [OPTION]... SOCKET\n\n{HELP}")
}

const HELP: &str = "\
Shows and changes the ports of a running pasta, by the socket of its --conf-path.

  -s, --show               show the ports, after a change if there is one
  -A, --add                add the ports
  -D, --delete             take them away
  -C, --clear              take all ports of the same tables away, then add these
                           (without any of them: they take the place of all of their tables)
  -t, --tcp-ports SPEC     ports of the host that lead into the namespace
  -u, --udp-ports SPEC     the same for UDP
  -T, --tcp-ns SPEC        ports of the namespace's loopback that lead to the host's
  -U, --udp-ns SPEC        the same for UDP
  -h, --help               show this help and exit
  --version                show the version and exit

A rule that cannot be had is told with the reason, and the exit code is 1; the others stay.
";

/// What is to become of the ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Change {
    /// They are all that their tables have, for their protocols.
    #[default]
    Replace,
    Add,
    Delete,
}

/// Ports of one table and protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ports {
    pub(super) side: Side,
    pub(super) protocol: Protocol,
    pub(super) rules: Vec<PortRule>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Options {
    pub(super) socket: PathBuf,
    pub(super) show: bool,
    pub(super) change: Change,
    /// Whether all ports are to go although none are named.
    pub(super) clear: bool,
    pub(super) ports: Vec<Ports>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Invocation {
    Help,
    Version,
    Run(Options),
}

/// What is wrong with a command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ArgsError {
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error("the socket of a running pasta (its --conf-path) is needed")]
    NoSocket,
    #[error("more than one socket: {0}")]
    TooMany(String),
    #[error("--add, --delete and --clear exclude each other")]
    Conflict,
    #[error("--add and --delete need ports (-t, -u, -T or -U)")]
    NoPorts,
    #[error("{0} {1}: {2}")]
    Ports(&'static str, String, SpecError),
}

/// Reads a command line, the program's name left out.
pub(super) fn parse(args: impl Iterator<Item = OsString>) -> Result<Invocation, ArgsError> {
    let (mut options, mut flags, mut operands) = (Vec::new(), Vec::new(), Vec::new());
    for word in Words::new(args, &SPECS) {
        match word? {
            Word::Option(Key::Help, _) => return Ok(Invocation::Help),
            Word::Option(Key::Version, _) => return Ok(Invocation::Version),
            Word::Option(key @ (Key::TcpPorts | Key::UdpPorts | Key::TcpNs | Key::UdpNs), spec) => {
                options.push((key, spec.to_string_lossy().into_owned()));
            }
            Word::Option(flag, _) => flags.push(flag),
            Word::Operand(operand) => operands.push(operand),
        }
    }
    let mut operands = operands.into_iter();
    let socket = operands.next().ok_or(ArgsError::NoSocket)?;
    if let Some(more) = operands.next() {
        return Err(ArgsError::TooMany(more.to_string_lossy().into_owned()));
    }
    let has = |flag| flags.contains(&flag);
    let change = match (has(Key::Add), has(Key::Delete), has(Key::Clear)) {
        (true, false, false) => Change::Add,
        (false, true, false) => Change::Delete,
        (false, false, _) => Change::Replace,
        _ => return Err(ArgsError::Conflict),
    };
    if change != Change::Replace && options.is_empty() {
        return Err(ArgsError::NoPorts);
    }
    let ports = options.into_iter().map(|(key, spec)| ports_of(key, spec));
    Ok(Invocation::Run(Options {
        socket: socket.into(),
        show: has(Key::Show),
        change,
        clear: has(Key::Clear),
        ports: ports.collect::<Result<_, _>>()?,
    }))
}

fn ports_of(key: Key, spec: String) -> Result<Ports, ArgsError> {
    let (option, side, protocol) = match key {
        Key::UdpPorts => ("-u", Side::Host, Protocol::Udp),
        Key::TcpNs => ("-T", Side::Splice, Protocol::Tcp),
        Key::UdpNs => ("-U", Side::Splice, Protocol::Udp),
        _ => ("-t", Side::Host, Protocol::Tcp),
    };
    match ports::parse(protocol, &spec) {
        Ok(rules) => Ok(Ports {
            side,
            protocol,
            rules,
        }),
        Err(error) => Err(ArgsError::Ports(option, spec, error)),
    }
}
