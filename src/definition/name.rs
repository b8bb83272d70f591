//! What networks and containers may be called.
//!
//! Docker's rule: a letter or a digit, then letters, digits, `_`, `.` and `-`. A name is a file
//! name and a DNS label at once, hence at most 63 bytes (RFC 1035 section 2.3.4).

/// The network that exists without being made.
pub const DEFAULT_NETWORK: &str = "cnet";

/// The longest name, in bytes.
const MAX_LEN: usize = 63;

/// Words that mean something else where a network's name may stand, and what they mean.
const RESERVED: [(&str, &str); 5] = [
    ("none", "means no network but loopback"),
    ("host", "means the host's own network"),
    ("private", "means a network of the container's own"),
    (
        "container",
        "starts `container:NAME`, another container's network",
    ),
    ("default", "means the network `cnet`"),
];

/// Why a text is no name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty, or with a character that names do not have.
    #[error(
        "`{0}` is not a name: it starts with a letter or a digit, and goes on with letters, digits, `_`, `.` and `-`"
    )]
    Syntax(String),
    /// More than 63 bytes.
    #[error("the name `{0}` has {len} bytes, and a name at most {MAX_LEN}", len = .0.len())]
    Length(String),
    /// It could not be asked for.
    #[error("no container or network can be called `{0}`: {1}")]
    Unreachable(String, &'static str),
    /// It means something else.
    #[error("no network can be called `{0}`, which {1}")]
    Reserved(String, &'static str),
}

/// Names that mean the host or the gateway on every network.
const OF_THE_HOST: [&str; 3] = [
    "host.containers.internal",
    "gateway.containers.internal",
    "host.docker.internal",
];

/// Why a name could not be asked for, though it is one.
fn unreachable(name: &str) -> Option<&'static str> {
    let is_or_ends_in = |domain: &str| {
        let (before, last) = name.rsplit_once('.').unwrap_or(("x", name));
        !before.is_empty() && last.eq_ignore_ascii_case(domain)
    };
    if name.split('.').any(str::is_empty) {
        return Some("DNS has no names with an empty part");
    }
    if is_or_ends_in("localhost") {
        return Some("the name stands for the loopback address everywhere (RFC 6761)");
    }
    if is_or_ends_in("invalid") {
        return Some("the name stands for nothing everywhere (RFC 6761)");
    }
    if name.parse::<std::net::Ipv4Addr>().is_ok() {
        return Some("resolvers take it for an address");
    }
    OF_THE_HOST
        .iter()
        .any(|host| host.eq_ignore_ascii_case(name))
        .then_some("the name stands for the host on every network")
}

/// Checks a name for `/etc/hosts`, which may have several labels.
///
/// # Errors
///
/// [`NameError::Syntax`] and [`NameError::Length`].
pub fn check_host_name(name: &str) -> Result<(), NameError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    match is_domain(name) && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(NameError::Syntax(name.to_owned())),
    }
}

/// Whether `text` is a domain name that can stand in a `search` line (RFC 1035 section 2.3.4).
pub fn is_domain(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    let labels = text.split('.').all(|label| (1..=63).contains(&label.len()));
    plain && labels && text.len() <= 253
}

/// Checks the name of a container, an alias or a network.
///
/// # Errors
///
/// [`NameError::Syntax`], [`NameError::Length`] and [`NameError::Unreachable`].
pub fn check_name(name: &str) -> Result<(), NameError> {
    let ordinary = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let bytes = name.as_bytes();
    if !bytes.first().is_some_and(u8::is_ascii_alphanumeric) || !bytes.iter().all(|b| ordinary(*b))
    {
        return Err(NameError::Syntax(name.to_owned()));
    }
    if name.len() > MAX_LEN {
        return Err(NameError::Length(name.to_owned()));
    }
    match unreachable(name) {
        Some(why) => Err(NameError::Unreachable(name.to_owned(), why)),
        None => Ok(()),
    }
}

/// Checks the name of a network.
///
/// # Errors
///
/// Those of [`check_name`], and [`NameError::Reserved`].
pub fn check_network_name(name: &str) -> Result<(), NameError> {
    check_name(name)?;
    match RESERVED.iter().find(|(word, _)| *word == name) {
        Some((_, meaning)) => Err(NameError::Reserved(name.to_owned(), meaning)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names_and_labels() {
        let longest = "a".repeat(63);
        for name in ["a", "0", "Web_1.x-y", "cnet", &longest] {
            assert_eq!(check_network_name(name), Ok(()), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "é", &long] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(
            check_name(&long)
                .unwrap_err()
                .to_string()
                .contains("64 bytes")
        );
    }

    #[test]
    fn names_that_could_not_be_asked_for_are_refused() {
        for name in [
            "localhost",
            "LocalHost",
            "web.localhost",
            "x.invalid",
            "a..b",
            "a.",
            "10.0.0.1",
            "Host.Docker.Internal",
        ] {
            let error = check_name(name).unwrap_err();
            assert!(
                matches!(error, NameError::Unreachable(..)),
                "{name}: {error}"
            );
        }
        for name in ["localhost.x", "mylocalhost", "1", "docker.internal"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        assert_eq!(check_host_name("db.corp.example"), Ok(()));
        for name in ["", "a b", "a..b", "a#b"] {
            assert!(check_host_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn reserved_words_say_what_they_mean() {
        let error = check_network_name("host").unwrap_err().to_string();
        assert!(error.contains("the host's own network"), "{error}");
        assert_eq!(check_name("host"), Ok(()), "a container may be called so");
    }
}
