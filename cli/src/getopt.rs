//! getopt_long(3)'s rules for taking a command line apart, for programs that take another one's place
//! and are called by its callers: values as the next word or after `=`, short options in clusters,
//! long ones cut short while they stay unique, `--` ending the options.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use cnet_wire::MacAddr;

/// An option: what it is called in the program, and how it is written.
#[derive(Debug)]
pub(crate) struct Spec<K> {
    key: K,
    long: &'static str,
    short: Option<u8>,
    value: bool,
}

/// An option without a value.
pub(crate) const fn flag<K>(key: K, long: &'static str, short: Option<u8>) -> Spec<K> {
    Spec {
        key,
        long,
        short,
        value: false,
    }
}

/// An option with a value.
pub(crate) const fn valued<K>(key: K, long: &'static str, short: Option<u8>) -> Spec<K> {
    Spec {
        key,
        long,
        short,
        value: true,
    }
}

/// A part of the command line.
pub(crate) enum Word<K> {
    /// An option with its value, which is empty where it takes none.
    Option(K, OsString),
    /// Anything else.
    Operand(OsString),
}

/// What getopt_long(3) refuses, in its own words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SyntaxError(pub(crate) String);

/// The parts of a command line, in order. They are read one by one, so an option that ends the
/// program wins over mistakes that follow it.
pub(crate) struct Words<I, K: 'static> {
    args: I,
    specs: &'static [Spec<K>],
    /// Whether the first operand ends the options, as `+` does it in getopt's own list: the rest is
    /// another program's command line.
    operand_ends: bool,
    /// Whether `--`, or an operand that ends them, was read.
    options_ended: bool,
    /// What is left of a cluster of short options.
    cluster: VecDeque<u8>,
}

impl<I: Iterator<Item = OsString>, K: Copy> Words<I, K> {
    /// Options and operands in any order.
    pub(crate) fn new(args: I, specs: &'static [Spec<K>]) -> Words<I, K> {
        Words {
            args,
            specs,
            operand_ends: false,
            options_ended: false,
            cluster: VecDeque::new(),
        }
    }

    /// Options first: the first operand ends them.
    pub(crate) fn options_first(args: I, specs: &'static [Spec<K>]) -> Words<I, K> {
        Words {
            operand_ends: true,
            ..Words::new(args, specs)
        }
    }

    fn long(&mut self, text: &[u8]) -> Result<Word<K>, SyntaxError> {
        let (name, attached) = match text.iter().position(|&b| b == b'=') {
            Some(at) => (
                &text[..at],
                Some(OsString::from_vec(text[at + 1..].to_vec())),
            ),
            None => (text, None),
        };
        let spec = self.long_spec(name)?;
        if attached.is_some() && !spec.value {
            let message = format!("option '--{}' doesn't allow an argument", spec.long);
            return Err(SyntaxError(message));
        }
        let value = match attached {
            None if spec.value => Some(self.args.next().ok_or_else(|| {
                SyntaxError(format!("option '--{}' requires an argument", spec.long))
            })?),
            attached => attached,
        };
        Ok(Word::Option(spec.key, value.unwrap_or_default()))
    }

    /// The option of that name, or of the one name that begins so.
    fn long_spec(&self, name: &[u8]) -> Result<&'static Spec<K>, SyntaxError> {
        let begins = |spec: &&Spec<K>| spec.long.as_bytes().starts_with(name);
        let exact = self.specs.iter().find(|spec| spec.long.as_bytes() == name);
        let candidates: Vec<&Spec<K>> = self.specs.iter().filter(begins).collect();
        let shown = String::from_utf8_lossy(name);
        match (exact, candidates.as_slice()) {
            (Some(spec), _) | (None, &[spec]) => Ok(spec),
            (None, []) => Err(SyntaxError(format!("unrecognized option '--{shown}'"))),
            (None, several) => {
                let names: Vec<_> = several.iter().map(|s| format!("'--{}'", s.long)).collect();
                let names = names.join(" ");
                Err(SyntaxError(format!(
                    "option '--{shown}' is ambiguous; possibilities: {names}"
                )))
            }
        }
    }

    /// The next letter of a cluster. What follows an option that takes a value is its value.
    fn short(&mut self, letter: u8) -> Result<Word<K>, SyntaxError> {
        let shown = char::from(letter);
        let spec = self.specs.iter().find(|spec| spec.short == Some(letter));
        let spec = spec.ok_or_else(|| SyntaxError(format!("invalid option -- '{shown}'")))?;
        let value = match (spec.value, self.cluster.is_empty()) {
            (false, _) => OsString::new(),
            (true, true) => self
                .args
                .next()
                .ok_or_else(|| SyntaxError(format!("option requires an argument -- '{shown}'")))?,
            (true, false) => OsString::from_vec(self.cluster.drain(..).collect()),
        };
        Ok(Word::Option(spec.key, value))
    }
}

impl<I: Iterator<Item = OsString>, K: Copy> Iterator for Words<I, K> {
    type Item = Result<Word<K>, SyntaxError>;

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
            _ => {
                self.options_ended = self.operand_ends;
                Some(Ok(Word::Operand(arg)))
            }
        }
    }
}

/// A number as strtol(3) reads it: blanks before it and a sign are skipped, nothing may follow it.
pub(crate) fn number(text: &str) -> Option<i32> {
    let blank = |c: char| c.is_ascii_whitespace() || c == '\u{b}';
    let text = text.trim_start_matches(blank);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// A number from `first` to `last`.
pub(crate) fn between<N: TryFrom<i32> + PartialOrd>(text: &str, first: N, last: N) -> Option<N> {
    let number = N::try_from(number(text)?).ok()?;
    (first <= number && number <= last).then_some(number)
}

/// A hardware address that one interface can have.
pub(crate) fn station_mac(text: &str) -> Option<MacAddr> {
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
