//! The little of the DNS message format that a gateway must know (RFC 1035, RFC 6891): how large an
//! answer a client takes, how an answer is cut short, how messages follow each other on a
//! connection, and names as DHCP and router advertisements carry them. Names are walked, never
//! decoded; compression pointers are not followed, so nothing can loop. smoltcp's `DnsPacket` knows
//! no OPT record.

use std::ops::Range;

/// Bytes of the header.
pub const HEADER_LEN: usize = 12;
/// Bytes every client takes over UDP (RFC 1035 section 4.2.1).
pub const MIN_UDP_SIZE: usize = 512;

const TC: u8 = 0x02;
const QR: u8 = 0x80;
const TYPE_OPT: [u8; 2] = [0, 41];
/// Longest name in wire format (RFC 1035 section 3.1).
const MAX_NAME_LEN: usize = 255;
/// Bytes of an OPT record without options: root name, type, class, TTL, RDLENGTH.
const OPT_LEN: usize = 11;

/// Where the parts of a message are.
struct Layout {
    question_end: usize,
    /// The OPT record, name to RDLENGTH.
    opt: Option<Range<usize>>,
}

/// Whether `message` has a header and asks rather than answers.
pub fn is_query(message: &[u8]) -> bool {
    message.len() >= HEADER_LEN && message[2] & QR == 0
}

/// Bytes of answer over UDP that the sender of `query` takes.
pub fn udp_size(query: &[u8]) -> usize {
    let opt = layout(query).and_then(|l| l.opt);
    let class = opt.and_then(|o| query.get(o.start + 3..o.start + 5));
    match class {
        Some(&[a, b]) => usize::from(u16::from_be_bytes([a, b])).max(MIN_UDP_SIZE),
        _ => MIN_UDP_SIZE,
    }
}

/// An answer in place of `answer`, which is too long: its header with TC set, its question and its
/// OPT record without options (RFC 6891 section 7), as far as `limit` bytes take them. `None` if it
/// is no message at all.
pub fn truncate(answer: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut short = answer.get(..HEADER_LEN)?.to_vec();
    short[2] |= TC;
    short[4..].fill(0);
    let Some(layout) = layout(answer) else {
        return Some(short);
    };
    if layout.question_end <= limit {
        short[4..6].copy_from_slice(&answer[4..6]);
        short.extend(&answer[HEADER_LEN..layout.question_end]);
    }
    if let Some(opt) = layout.opt
        && short.len() + OPT_LEN <= limit
    {
        short.extend(&answer[opt]);
        let end = short.len();
        short[end - 2..].fill(0);
        short[11] = 1;
    }
    Some(short)
}

/// Walks `message`; `None` if it is not well formed. Every record takes bytes, so the counts in
/// the header cannot make this long.
fn layout(message: &[u8]) -> Option<Layout> {
    let count = |i: usize| u16::from_be_bytes([message[i], message[i + 1]]);
    if message.len() < HEADER_LEN {
        return None;
    }
    let mut at = HEADER_LEN;
    for _ in 0..count(4) {
        at = skip_name(message, at)? + 4;
    }
    let question_end = at;
    message.get(..question_end)?;
    let mut opt = None;
    for _ in 0..u32::from(count(6)) + u32::from(count(8)) + u32::from(count(10)) {
        let fixed = skip_name(message, at)?;
        let &[t0, t1, .., l0, l1] = message.get(fixed..fixed + 10)? else {
            return None;
        };
        if [t0, t1] == TYPE_OPT && fixed == at + 1 {
            opt = Some(at..fixed + 10);
        }
        at = fixed + 10 + usize::from(u16::from_be_bytes([l0, l1]));
        message.get(..at)?;
    }
    Some(Layout { question_end, opt })
}

/// The end of the name at `at`.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let len = *message.get(at)?;
        match len {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(len),
            0xc0..=0xff => return Some(at + 2),
            _ => return None,
        }
        if at - start >= MAX_NAME_LEN {
            return None;
        }
    }
}

/// Bytes that `partial`, the beginning of a message on a connection with its length before it
/// (RFC 1035 section 4.2.2), lacks to the end of the length or, if that is there, of the message.
pub fn missing(partial: &[u8]) -> usize {
    match partial {
        [] => 2,
        [_] => 1,
        [a, b, body @ ..] => usize::from(u16::from_be_bytes([*a, *b])).saturating_sub(body.len()),
    }
}

/// The message in `stream`, which begins with its length, if it is whole.
pub fn whole(stream: &[u8]) -> Option<&[u8]> {
    match stream {
        [_, _, body @ ..] if missing(stream) == 0 => Some(body),
        _ => None,
    }
}

/// Adds `message` to `stream` with its length before it; false if it is too long to have one.
pub fn put_with_length(stream: &mut Vec<u8>, message: &[u8]) -> bool {
    let Ok(len) = u16::try_from(message.len()) else {
        return false;
    };
    stream.extend(len.to_be_bytes());
    stream.extend(message);
    true
}

/// `names` in wire format one after the other, uncompressed, as DHCP and router advertisements
/// carry search lists. Names that have no such form are left out, and so is what exceeds `limit`
/// bytes.
pub fn encode_names(names: &[String], limit: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    for name in names {
        let name = name.strip_suffix('.').unwrap_or(name);
        let labels_fit = name.split('.').all(|l| (1..=63).contains(&l.len()));
        // A length byte a label and the root's: two more than the text with its dots.
        let len = name.len() + 2;
        if !labels_fit || len > MAX_NAME_LEN || wire.len() + len > limit {
            continue;
        }
        for label in name.split('.') {
            wire.push(label.len() as u8);
            wire.extend(label.as_bytes());
        }
        wire.push(0);
    }
    wire
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A query or answer for example.org/A with `records` after the question.
    fn message(flags: u8, answers: u8, additional: u8, records: &[u8]) -> Vec<u8> {
        let mut m = vec![0xab, 0xcd, flags, 0, 0, 1, 0, answers, 0, 0, 0, additional];
        m.extend(b"\x07example\x03org\x00\x00\x01\x00\x01");
        m.extend(records);
        m
    }

    /// An OPT record with one empty option.
    fn opt(size: u16) -> Vec<u8> {
        let mut r = vec![0, 0, 41];
        r.extend(size.to_be_bytes());
        r.extend([0, 0, 0x80, 0, 0, 4, 0, 3, 0, 0]);
        r
    }

    #[test]
    fn a_client_tells_its_size_by_edns() {
        assert_eq!(udp_size(&message(1, 0, 0, &[])), 512);
        assert_eq!(udp_size(&message(1, 0, 1, &opt(1232))), 1232);
        assert_eq!(udp_size(&message(1, 0, 1, &opt(100))), 512);
        assert_eq!(udp_size(&message(1, 0, 2, &opt(1232))), 512);
        assert_eq!(udp_size(&[0; 11]), 512);
    }

    #[test]
    fn a_truncated_answer_keeps_question_and_opt() {
        let mut records = b"\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x3c\x02\x00".to_vec();
        records.extend([7; 512]);
        records.extend(opt(4096));
        let answer = message(0x81, 1, 1, &records);
        let short = truncate(&answer, 512).unwrap();
        let mut want = message(0x83, 0, 1, &opt(4096)[..11]);
        let end = want.len();
        want[end - 1] = 0;
        assert_eq!(short, want);
        assert_eq!(truncate(&answer, 30).unwrap(), message(0x83, 0, 0, &[]));
        assert_eq!(truncate(&answer, 20).unwrap()[4..], [0; 8]);
        assert_eq!(truncate(&answer[..11], 512), None);
    }

    #[test]
    fn a_malformed_answer_leaves_only_the_header() {
        let mut answer = message(0x81, 0, 0, &[]);
        answer[12] = 0x80;
        assert_eq!(truncate(&answer, 512).unwrap().len(), HEADER_LEN);
    }

    #[test]
    fn messages_on_a_connection_follow_their_lengths() {
        let mut stream = Vec::new();
        assert!(put_with_length(&mut stream, b"abc"));
        assert!(!put_with_length(&mut stream, &[0; 65_536]));
        for (len, left) in [(0, 2), (1, 1), (2, 3), (3, 2), (4, 1)] {
            assert_eq!(missing(&stream[..len]), left);
            assert_eq!(whole(&stream[..len]), None);
        }
        assert_eq!((missing(&stream), whole(&stream)), (0, Some(&b"abc"[..])));
        assert_eq!(whole(&[0, 0]), Some(&[][..]));
    }

    #[test]
    fn names_are_encoded_or_left_out() {
        let names = ["a.example.", "", "b..c", &"x".repeat(64), "dns"].map(String::from);
        assert_eq!(
            encode_names(&names, 100),
            b"\x01a\x07example\x00\x03dns\x00"
        );
        assert_eq!(encode_names(&names, 10), b"\x03dns\x00");
    }

    proptest! {
        #[test]
        fn no_message_makes_a_panic_or_an_overlong_answer(
            head in proptest::collection::vec(any::<u8>(), 0..12),
            body in proptest::collection::vec(any::<u8>(), 0..300),
            counts in any::<[u8; 4]>(),
            limit in 0usize..600,
        ) {
            let mut m = head;
            m.resize(HEADER_LEN, 0);
            for (i, c) in counts.into_iter().enumerate() {
                m[5 + 2 * i] = c % 4;
            }
            m.extend(body);
            prop_assert!(udp_size(&m) >= MIN_UDP_SIZE);
            if let Some(short) = truncate(&m, limit) {
                prop_assert!(short.len() <= limit.max(HEADER_LEN));
                prop_assert!(short.len() <= m.len());
            }
        }
    }
}
