//! The options of slirp4netns, and getopt_long(3)'s rules for taking a command line apart.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::ArgsError;

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

/// How an option is written.
#[derive(Debug)]
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

const SPECS: [Spec; 25] = [
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

/// A part of the command line.
pub(super) enum Word {
    /// An option with its value, which is empty where it takes none.
    Option(Key, OsString),
    /// Anything else.
    Operand(OsString),
}

/// The parts of a command line, in order. They are read one by one, so an option that ends the
/// program wins over mistakes that follow it.
pub(super) struct Words<I> {
    args: I,
    /// Whether `--` was read.
    options_ended: bool,
    /// What is left of a cluster of short options.
    cluster: VecDeque<u8>,
}

impl<I: Iterator<Item = OsString>> Words<I> {
    pub(super) fn new(args: I) -> Words<I> {
        Words {
            args,
            options_ended: false,
            cluster: VecDeque::new(),
        }
    }

    fn long(&mut self, text: &[u8]) -> Result<Word, ArgsError> {
        let (name, attached) = match text.iter().position(|&b| b == b'=') {
            Some(at) => (
                &text[..at],
                Some(OsString::from_vec(text[at + 1..].to_vec())),
            ),
            None => (text, None),
        };
        let spec = long_spec(name)?;
        if attached.is_some() && !spec.value {
            let message = format!("option '--{}' doesn't allow an argument", spec.long);
            return Err(ArgsError::Syntax(message));
        }
        let value = match attached {
            None if spec.value => Some(self.args.next().ok_or_else(|| {
                ArgsError::Syntax(format!("option '--{}' requires an argument", spec.long))
            })?),
            attached => attached,
        };
        Ok(Word::Option(spec.key, value.unwrap_or_default()))
    }

    /// The next letter of a cluster. What follows an option that takes a value is its value.
    fn short(&mut self, letter: u8) -> Result<Word, ArgsError> {
        let shown = char::from(letter);
        let spec = SPECS.iter().find(|spec| spec.short == Some(letter));
        let spec = spec.ok_or_else(|| ArgsError::Syntax(format!("invalid option -- '{shown}'")))?;
        let value = match (spec.value, self.cluster.is_empty()) {
            (false, _) => OsString::new(),
            (true, true) => self.args.next().ok_or_else(|| {
                ArgsError::Syntax(format!("option requires an argument -- '{shown}'"))
            })?,
            (true, false) => OsString::from_vec(self.cluster.drain(..).collect()),
        };
        Ok(Word::Option(spec.key, value))
    }
}

impl<I: Iterator<Item = OsString>> Iterator for Words<I> {
    type Item = Result<Word, ArgsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(letter) = self.cluster.pop_front() {
            return Some(self.short(letter));
        }
        let arg = self.args.next()?;
        if self.options_ended {
            return Some(Ok(Word::Operand(arg)));
        }
        match arg.as_bytes() {
            b"--" => {
                self.options_ended = true;
                self.next()
            }
            [b'-', b'-', long @ ..] => Some(self.long(long)),
            [b'-', cluster @ ..] if !cluster.is_empty() => {
                self.cluster.extend(cluster);
                self.next()
            }
            _ => Some(Ok(Word::Operand(arg))),
        }
    }
}

/// The option of that name, or of the one name that begins so.
fn long_spec(name: &[u8]) -> Result<&'static Spec, ArgsError> {
    let begins = |spec: &&Spec| spec.long.as_bytes().starts_with(name);
    let exact = SPECS.iter().find(|spec| spec.long.as_bytes() == name);
    let candidates: Vec<&Spec> = SPECS.iter().filter(begins).collect();
    let shown = String::from_utf8_lossy(name);
    match (exact, candidates.as_slice()) {
        (Some(spec), _) | (None, &[spec]) => Ok(spec),
        (None, []) => Err(ArgsError::Syntax(format!(
            "unrecognized option '--{shown}'"
        ))),
        (None, several) => {
            let names: Vec<_> = several.iter().map(|s| format!("'--{}'", s.long)).collect();
            let names = names.join(" ");
            Err(ArgsError::Syntax(format!(
                "option '--{shown}' is ambiguous; possibilities: {names}"
            )))
        }
    }
}
