//! What `pasta` and `pesto` say to each other on the socket of `--conf-path`: version 2 of pesto's own
//! protocol, and a result for each rule after it.
//!
//! All numbers are big-endian, without padding. The server begins: a greeting of 20 bytes (the text
//! `basil:s` and a zero, the version, the bytes of a table's name and of an interface's name), then a
//! table each of [`Side`]: its number, its name, its capabilities, the number of its rules, and the
//! rules; then a zero. To change them the client sends whole tables in the same form without name and
//! capabilities, then a zero, and ends its side. A rule has 56 bytes.
//!
//! Beyond that protocol, the server then answers with a text for each rule of each table that was
//! sent, empty where the rule is in force. A server that closes without an answer is another one.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr};

use cnet_wire::Protocol;

use super::ports::{MAX_INTERFACE, PortRule};

/// The first bytes of a server.
const MAGIC: [u8; 8] = *b"basil:s\0";
const VERSION: u32 = 2;
/// Bytes of a table's name.
const NAME: usize = 128;
/// Bytes of an interface's name, with its terminating zero.
const INTERFACE: usize = MAX_INTERFACE + 1;
/// Bytes of a rule.
const RULE: usize = 56;
/// The most rules of a table.
const MAX_RULES: u32 = 16 * 1024;

/// Flags of a rule.
const BOTH_FAMILIES: u8 = 1;
const WEAK: u8 = 2;
const SCAN: u8 = 4;

/// Where the ports of a table are opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Side {
    /// On the host: they lead into the namespace.
    Host,
    /// On the namespace's loopback: they lead to the host's.
    Splice,
}

impl Side {
    /// Both, in their order.
    pub(crate) const ALL: [Side; 2] = [Side::Host, Side::Splice];

    fn number(self) -> u8 {
        match self {
            Side::Host => 1,
            Side::Splice => 3,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Side::Host => "HOST",
            Side::Splice => "SPLICE",
        }
    }

    fn of(number: u8) -> io::Result<Side> {
        let mut all = Side::ALL.into_iter();
        let side = all.find(|side| side.number() == number);
        side.ok_or_else(|| invalid("a table of an unknown kind"))
    }
}

/// The rules of one side.
pub(crate) type Table = (Side, Vec<PortRule>);

/// What became of the rules of one side: why each is not in force, empty if it is.
pub(crate) type Results = (Side, Vec<String>);

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The server's greeting and its tables.
pub(crate) fn greeting(tables: &[Table]) -> Vec<u8> {
    let mut bytes = Vec::from(MAGIC);
    for number in [VERSION, NAME as u32, INTERFACE as u32] {
        bytes.extend(number.to_be_bytes());
    }
    for (side, rules) in tables {
        bytes.push(side.number());
        let mut name = side.name().as_bytes().to_vec();
        name.resize(NAME, 0);
        bytes.extend(name);
        // Nothing is known of any capability but the protocol's own.
        bytes.extend(0_u32.to_be_bytes());
        put_rules(&mut bytes, rules);
    }
    bytes.push(0);
    bytes
}

/// What a client sends to change tables.
pub(crate) fn change(tables: &[Table]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (side, rules) in tables {
        bytes.push(side.number());
        put_rules(&mut bytes, rules);
    }
    bytes.push(0);
    bytes
}

/// The server's answer to a change.
pub(crate) fn answer(results: &[Results]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (side, texts) in results {
        bytes.push(side.number());
        bytes.extend((texts.len() as u32).to_be_bytes());
        for text in texts {
            let cut = &text.as_bytes()[..text.len().min(u16::MAX.into())];
            bytes.extend((cut.len() as u16).to_be_bytes());
            bytes.extend(cut);
        }
    }
    bytes.push(0);
    bytes
}

/// Reads a server's greeting.
///
/// # Errors
///
/// As read(2); `InvalidData` for anything else than a server of that version.
pub(crate) fn read_greeting(from: &mut impl Read) -> io::Result<Vec<Table>> {
    let magic: [u8; 8] = take(from)?;
    if magic != MAGIC {
        return Err(invalid("this is no socket of pasta's"));
    }
    let numbers = [number(from)?, number(from)?, number(from)?];
    if numbers != [VERSION, NAME as u32, INTERFACE as u32] {
        return Err(invalid("pasta speaks another version of the protocol"));
    }
    read_tables(from, |from| {
        take::<NAME>(from)?;
        number(from).map(drop)
    })
}

/// Reads a client's change. `None` if it has ended without one.
///
/// # Errors
///
/// As [`read_greeting`].
pub(crate) fn read_change(from: &mut impl Read) -> io::Result<Option<Vec<Table>>> {
    match read_tables(from, |_| Ok(())) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(Some),
    }
}

/// Reads a server's answer. `None` from one that gives none.
///
/// # Errors
///
/// As [`read_greeting`].
pub(crate) fn read_answer(from: &mut impl Read) -> io::Result<Option<Vec<Results>>> {
    let mut results = Vec::new();
    loop {
        let side = match take::<1>(from) {
            Ok([0]) => return Ok(Some(results)),
            Ok([side]) => Side::of(side)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut texts = Vec::new();
        for _ in 0..count(from)? {
            let mut text = vec![0; u16::from_be_bytes(take(from)?).into()];
            from.read_exact(&mut text)?;
            texts.push(String::from_utf8_lossy(&text).into_owned());
        }
        results.push((side, texts));
    }
}

fn read_tables<R: Read>(
    from: &mut R,
    header: impl Fn(&mut R) -> io::Result<()>,
) -> io::Result<Vec<Table>> {
    let mut tables: Vec<Table> = Vec::new();
    loop {
        let [kind] = take(from)?;
        if kind == 0 {
            return Ok(tables);
        }
        let side = Side::of(kind)?;
        if tables.iter().any(|(before, _)| *before == side) {
            return Err(invalid("the same table twice"));
        }
        header(from)?;
        let rules = (0..count(from)?).map(|_| read_rule(&take(from)?));
        tables.push((side, rules.collect::<io::Result<_>>()?));
    }
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(from: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_be_bytes(take(from)?))
}

fn count(from: &mut impl Read) -> io::Result<u32> {
    let count = number(from)?;
    match count <= MAX_RULES {
        true => Ok(count),
        false => Err(invalid("too many rules")),
    }
}

fn put_rules(bytes: &mut Vec<u8>, rules: &[PortRule]) {
    bytes.extend((rules.len() as u32).to_be_bytes());
    for rule in rules {
        bytes.extend(address_bytes(rule.address));
        bytes.extend(address_bytes(rule.target));
        let mut interface = rule.interface.as_bytes().to_vec();
        interface.resize(INTERFACE, 0);
        bytes.extend(interface);
        for port in [rule.first, rule.last, rule.to] {
            bytes.extend(port.to_be_bytes());
        }
        bytes.push(match rule.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        });
        let mut flags = 0;
        for (flag, on) in [
            (BOTH_FAMILIES, rule.address.is_none()),
            (WEAK, rule.weak),
            (SCAN, rule.scan),
        ] {
            flags |= if on { flag } else { 0 };
        }
        bytes.push(flags);
    }
}

/// IPv4 is mapped into IPv6; none is the unspecified address.
fn address_bytes(address: Option<IpAddr>) -> [u8; 16] {
    match address {
        None => [0; 16],
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
        Some(IpAddr::V6(v6)) => v6.octets(),
    }
}

fn read_rule(bytes: &[u8; RULE]) -> io::Result<PortRule> {
    let address = |at: usize| -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        Ipv6Addr::from(octets).to_canonical()
    };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let interface = &bytes[32..48];
    let end = interface.iter().position(|b| *b == 0);
    let end = end.ok_or_else(|| invalid("an interface's name without an end"))?;
    let interface = String::from_utf8_lossy(&interface[..end]).into_owned();
    let flags = bytes[55];
    let at = address(0);
    let both = flags & BOTH_FAMILIES != 0;
    if both && !at.is_unspecified() {
        return Err(invalid("an address of both families"));
    }
    let rule = PortRule {
        protocol: match bytes[54] {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => return Err(invalid("a protocol that is neither TCP nor UDP")),
        },
        address: (!both).then_some(at),
        interface,
        target: Some(address(16)).filter(|target| !target.is_unspecified()),
        first: port(48),
        last: port(50),
        to: port(52),
        weak: flags & WEAK != 0,
        scan: flags & SCAN != 0,
    };
    let fits = rule.first > 0
        && rule.first <= rule.last
        && rule.to > 0
        && rule.to.checked_add(rule.last - rule.first).is_some();
    match fits {
        true => Ok(rule),
        false => Err(invalid("a range of ports that is none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pasta::ports::parse;

    fn rules(spec: &str) -> Vec<PortRule> {
        parse(Protocol::Tcp, spec).unwrap()
    }

    /// Byte by byte as the protocol of version 2 has it.
    #[test]
    fn a_greeting_is_what_pesto_of_passt_reads() {
        let table = rules("127.0.0.1%lo/8080-8081:10.0.2.100/80-81");
        let bytes = greeting(&[(Side::Host, table), (Side::Splice, rules("auto"))]);
        assert_eq!(bytes[..8], *b"basil:s\0");
        assert_eq!(bytes[8..20], [0, 0, 0, 2, 0, 0, 0, 128, 0, 0, 0, 16]);
        let host = &bytes[20..];
        assert_eq!(host[0], 1);
        assert_eq!(host[1..6], *b"HOST\0");
        assert_eq!(host[1 + 128 + 4..1 + 136], [0, 0, 0, 1]);
        let rule = &host[137..137 + 56];
        assert_eq!(rule[10..16], [0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!(rule[26..32], [0xff, 0xff, 10, 0, 2, 100]);
        assert_eq!(rule[32..48], *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(rule[48..56], [0x1f, 0x90, 0x1f, 0x91, 0, 80, 6, 0]);
        let splice = &host[137 + 56..];
        assert_eq!(splice[0], 3);
        let rule = &splice[137..137 + 56];
        // All ports, both families, weak, by scanning.
        assert_eq!(rule[48..56], [0, 1, 0xff, 0xff, 0, 1, 6, 7]);
        assert_eq!(splice[137 + 56..], [0]);
    }

    #[test]
    fn what_was_written_is_read() {
        let tables = vec![
            (Side::Host, rules("[::1]/22,80:8080,~22")),
            (Side::Splice, Vec::new()),
        ];
        assert_eq!(read_greeting(&mut &*greeting(&tables)).unwrap(), tables);
        assert_eq!(read_change(&mut &*change(&tables)).unwrap(), Some(tables));
        assert_eq!(read_change(&mut &[][..]).unwrap(), None);
        let results = vec![(Side::Host, vec![String::new(), "in use".to_owned()])];
        let read = read_answer(&mut &*answer(&results)).unwrap();
        assert_eq!(read, Some(results));
        assert_eq!(read_answer(&mut &[][..]).unwrap(), None);
    }

    #[test]
    fn no_input_is_taken_that_makes_no_sense() {
        let whole = change(&[(Side::Host, rules("80"))]);
        for (at, value) in [(0, 2), (1, 0xff), (5 + 54, 1), (5 + 49, 0), (5 + 53, 0)] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let error = read_change(&mut &*bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{at}");
        }
        for length in 0..whole.len() {
            assert_eq!(read_change(&mut &whole[..length]).unwrap(), None);
        }
    }
}
