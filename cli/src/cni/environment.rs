//! What an engine says in the environment (specification, section 2).

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{Code, Error};

/// Bytes of an interface's name (netdevice(7), IFNAMSIZ without its NUL).
const MAX_INTERFACE: usize = 15;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Verb {
    pub(super) fn parse(text: &str) -> Result<Verb, Error> {
        Ok(match text {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "STATUS" => Verb::Status,
            "GC" => Verb::Gc,
            "VERSION" => Verb::Version,
            other => {
                let message = format!("CNI_COMMAND is `{other}`, which is no verb of CNI");
                return Err(Error::new(Code::Environment, message));
            }
        })
    }
}

/// The attachment that is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Environment {
    /// Given and checked for ADD, DEL and CHECK.
    pub(super) container: String,
    /// The same.
    pub(super) interface: String,
    /// Given for ADD and CHECK.
    pub(super) netns: Option<PathBuf>,
    pub(super) arguments: BTreeMap<String, String>,
}

impl Environment {
    /// What `verb` needs; `variable` reads the environment.
    pub(super) fn read(
        verb: Verb,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Environment, Error> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let needed = |name: &str, is_needed: bool| match (set(name), is_needed) {
            (None, true) => {
                let message = format!("the variable {name} is missing");
                Err(Error::new(Code::Environment, message))
            }
            (value, _) => Ok(value.unwrap_or_default()),
        };
        let is_of_one = matches!(verb, Verb::Add | Verb::Del | Verb::Check);
        let container = needed("CNI_CONTAINERID", is_of_one)?;
        let interface = needed("CNI_IFNAME", is_of_one)?;
        needed("CNI_NETNS", matches!(verb, Verb::Add | Verb::Check))?;
        if is_of_one && !is_name(&container) {
            return Err(wrong("CNI_CONTAINERID", &container));
        }
        if is_of_one && !is_interface(&interface) {
            return Err(wrong("CNI_IFNAME", &interface));
        }
        Ok(Environment {
            container,
            interface,
            netns: set("CNI_NETNS").map(PathBuf::from),
            arguments: arguments(&set("CNI_ARGS").unwrap_or_default())?,
        })
    }

    /// An argument of CNI_ARGS.
    pub(super) fn argument(&self, name: &str) -> Option<&str> {
        self.arguments.get(name).map(String::as_str)
    }
}

fn wrong(variable: &str, value: &str) -> Error {
    let message = format!("the variable {variable} is `{value}`, which makes no sense");
    Error::new(Code::Environment, message)
}

/// Whether it starts with a letter or digit and goes on with those, `_`, `.` and `-`, as the ids of
/// containers and the names of networks have to.
pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_interface(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    text.len() <= MAX_INTERFACE && !matches!(text, "." | "..") && text.bytes().all(plain)
}

/// `KEY=VALUE;KEY=VALUE`. Those that are not known are left alone: engines add their own.
fn arguments(text: &str) -> Result<BTreeMap<String, String>, Error> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(wrong("CNI_ARGS", text)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(verb: Verb, set: &[(&str, &str)]) -> Result<Environment, Error> {
        let set: BTreeMap<&str, &str> = set.iter().copied().collect();
        Environment::read(verb, |name| Some((*set.get(name)?).to_owned()))
    }

    const ALL: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "abc"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;"),
    ];

    #[test]
    fn each_verb_needs_what_it_needs() {
        let environment = read(Verb::Add, &ALL).unwrap();
        assert_eq!(environment.argument("K8S_POD_NAME"), Some("web"));
        for missing in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            let rest: Vec<_> = ALL
                .into_iter()
                .filter(|(name, _)| *name != missing)
                .collect();
            let error = read(Verb::Add, &rest).unwrap_err();
            assert_eq!(error.code, Code::Environment);
            assert!(error.message.contains(missing), "{error:?}");
            assert_eq!(read(Verb::Del, &rest).is_ok(), missing == "CNI_NETNS");
            assert!(read(Verb::Gc, &rest).is_ok() && read(Verb::Status, &rest).is_ok());
        }
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for (name, value) in [
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "eth%d"),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_IFNAME", ".."),
            ("CNI_ARGS", "x"),
        ] {
            let mut set = ALL;
            for pair in &mut set {
                if pair.0 == name {
                    pair.1 = value;
                }
            }
            let error = read(Verb::Add, &set).unwrap_err();
            assert_eq!(error.code, Code::Environment, "{name}={value}");
        }
    }
}
