//! As much of a DNS message as a forwarder has to understand: its header, its question, and the OPT
//! record that says how the client speaks EDNS.
//!
//! A name in a question is read label by label. A compression pointer has nothing to point at
//! there, so it makes the query an error, and no message makes us loop (RFC 9267). Everything after
//! the question and the OPT record is carried, not read.
//!
//! RFC 1035 section 4.1; RFC 5625 on what a forwarder leaves alone; RFC 6891 on EDNS.

use hickory_proto::op::{Header, MessageType, OpCode, ResponseCode};
use hickory_proto::serialize::binary::BinDecodable;

/// Bytes of a header (RFC 1035 section 4.1.1).
pub const HEADER_LEN: usize = 12;

/// The bytes of an answer over UDP that any client takes (RFC 1035 section 2.3.4).
pub const MIN_UDP_SIZE: u16 = 512;

/// The bytes of a query over UDP that we say we take: what fits into an IPv6 packet of the smallest
/// MTU (RFC 8200 section 5).
const OUR_UDP_SIZE: u16 = 1232;

/// Bytes of an OPT record without options.
pub const OPT_LEN: usize = 11;

/// The header's QR bit, in its third byte: the message is a response.
pub(super) const QR: u8 = 0x80;
/// TC, in the third byte: the answer is cut short.
pub(super) const TC: u8 = 0x02;
/// AA, in the third byte: the answer is the owner's of the name.
const AA: u8 = 0x04;
/// The opcode and RD, in the third byte, which an answer repeats.
const OPCODE_AND_RD: u8 = 0x79;
/// RD, in the third byte: recursion is desired.
const RD: u8 = 0x01;
/// RA, in the fourth byte: recursion is available here.
const RA: u8 = 0x80;
/// AD, in the fourth byte: the client wants to know whether the answer is authentic (RFC 6840
/// section 5.7).
const AD: u8 = 0x20;
/// CD, in the fourth byte, which an answer repeats (RFC 4035 section 3.2.2).
const CD: u8 = 0x10;
/// DO, in the flags of an OPT record: the client wants DNSSEC records (RFC 3225).
const DO: u8 = 0x80;

/// Types of records.
pub(super) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// The class IN.
pub(super) const CLASS_IN: u16 = 1;

/// EDNS options that do not change what an answer says: COOKIE (RFC 7873), keepalive (RFC 7828) and
/// padding (RFC 7830).
const HARMLESS_OPTIONS: [u16; 3] = [10, 11, 12];

/// The question of a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// The name in lower case (RFC 4343), without a dot at its end; empty for the root. A name that
    /// has a dot or another unusual character within a label is `None`.
    pub name: Option<String>,
    /// The type that is asked for.
    pub kind: u16,
    /// Its class.
    pub class: u16,
    /// Where the question ends in the message.
    pub end: usize,
    /// What the client says by EDNS.
    pub edns: Option<Edns>,
    /// Header and question are all of it, but for an OPT record whose options change no answer. So
    /// two such queries with the same question and flags have the same answer.
    pub plain: bool,
}

/// What a client says by EDNS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edns {
    /// The bytes that it takes over UDP.
    pub size: u16,
    /// The version of EDNS that it speaks.
    pub version: u8,
    /// Whether it wants DNSSEC records.
    pub dnssec: bool,
}

/// What a message from a client turned out to be.
#[derive(Debug)]
pub enum Inspected {
    /// A query to answer or forward.
    Question(Question),
    /// It is refused, and this is the answer.
    Answer(Vec<u8>),
    /// There is nothing to answer.
    Nothing,
}

/// Looks at a message from a client.
pub fn inspect(message: &[u8]) -> Inspected {
    let Some(header) = message.first_chunk::<HEADER_LEN>() else {
        return Inspected::Nothing;
    };
    if header[2] & QR != 0 {
        // To answer an answer would let two forwarders talk to each other for ever.
        return Inspected::Nothing;
    }
    let bare = |code| Inspected::Answer(empty_answer(message, &[], None, code));
    if header[2] >> 3 & 0xf != u8::from(OpCode::Query) {
        return bare(ResponseCode::NotImp);
    }
    let question = match Question::read(message) {
        Ok(question) => question,
        Err(Broken) => return bare(ResponseCode::FormErr),
    };
    let refused = |code| Inspected::Answer(error(message, &question, code));
    if question.edns.is_some_and(|edns| edns.version > 0) {
        return refused(ResponseCode::BADVERS);
    }
    match question.kind {
        kind::AXFR | kind::IXFR => refused(ResponseCode::Refused),
        _ => Inspected::Question(question),
    }
}

/// A message is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Broken;

impl Question {
    /// The one question of a query.
    fn read(message: &[u8]) -> Result<Question, Broken> {
        if u16_at(message, 4)? != 1 {
            return Err(Broken);
        }
        let mut name = Some(String::new());
        let mut at = HEADER_LEN;
        loop {
            let length = usize::from(*message.get(at).ok_or(Broken)?);
            at += 1;
            if length == 0 {
                break;
            }
            // The two upper bits make a pointer or a type that is not in use.
            let label = message.get(at..at + length).filter(|_| length < 64);
            push_label(&mut name, label.ok_or(Broken)?);
            at += length;
            // With the root's length yet to come (RFC 1035 section 2.3.4).
            if at - HEADER_LEN > 254 {
                return Err(Broken);
            }
        }
        let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        let mut question = Question {
            name,
            kind,
            class,
            end: at + 4,
            edns: None,
            plain: false,
        };
        question.read_edns(message)?;
        Ok(question)
    }

    /// Looks for an OPT record behind the question. Another record before it, as a signature would
    /// be, is for the server to judge.
    fn read_edns(&mut self, message: &[u8]) -> Result<(), Broken> {
        let (others, additional) = (&message[6..10], u16_at(message, 10)?);
        let rest = &message[self.end..];
        if others != [0; 4] || additional == 0 {
            self.plain = others == [0; 4] && rest.is_empty();
            return Ok(());
        }
        let [0, 0, 41, s0, s1, _, version, flags, _, l0, l1, options @ ..] = rest else {
            return Ok(());
        };
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let Some((options, after)) = options.split_at_checked(length) else {
            return Err(Broken);
        };
        self.edns = Some(Edns {
            size: u16::from_be_bytes([*s0, *s1]).max(MIN_UDP_SIZE),
            version: *version,
            dnssec: flags & DO != 0,
        });
        // A second OPT record is an error (RFC 6891 section 6.1.1).
        if additional > 1 && matches!(after, [0, 0, 41, ..]) {
            return Err(Broken);
        }
        self.plain = additional == 1 && after.is_empty() && harmless(options);
        Ok(())
    }

    /// Whether it asks for addresses of the Internet.
    pub fn asks_for_addresses(&self) -> bool {
        self.class == CLASS_IN && matches!(self.kind, kind::A | kind::AAAA)
    }

    /// The bytes of an answer that the client takes over UDP.
    pub fn udp_size(&self) -> u16 {
        self.edns.map_or(MIN_UDP_SIZE, |edns| edns.size)
    }

    /// What an answer depends on: the question in lower case, and the flags RD, AD, CD and DO.
    pub fn key(&self, message: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.end - HEADER_LEN + 1);
        key.extend_from_slice(&message[HEADER_LEN..self.end]);
        // Lengths of labels are below `A`.
        key.make_ascii_lowercase();
        let (rd, ad_cd) = (message[2] & RD, message[3] & (AD | CD));
        let dnssec = self.edns.is_some_and(|edns| edns.dnssec);
        key.push(rd | ad_cd | u8::from(dnssec) << 7);
        key
    }
}

fn push_label(name: &mut Option<String>, label: &[u8]) {
    let usual = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'.' | b'\\');
    match name {
        Some(text) if label.iter().all(usual) => {
            if !text.is_empty() {
                text.push('.');
            }
            text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        }
        _ => *name = None,
    }
}

/// Whether options of an OPT record change no answer.
fn harmless(mut options: &[u8]) -> bool {
    while let [c0, c1, l0, l1, rest @ ..] = options {
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let Some((_, after)) = rest.split_at_checked(length) else {
            return false;
        };
        if !HARMLESS_OPTIONS.contains(&u16::from_be_bytes([*c0, *c1])) {
            return false;
        }
        options = after;
    }
    options.is_empty()
}

fn u16_at(message: &[u8], at: usize) -> Result<u16, Broken> {
    let bytes = message.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().map(u16::from_be_bytes).ok_or(Broken)
}

/// The answer to `query` that carries nothing but `code`.
pub fn error(query: &[u8], question: &Question, code: ResponseCode) -> Vec<u8> {
    let bytes = query.get(HEADER_LEN..question.end).unwrap_or_default();
    empty_answer(query, bytes, question.edns, code)
}

/// A response to the message `query`, which holds a header, with the bytes of its question. A client
/// that speaks EDNS is answered in EDNS (RFC 6891 section 6.1.1).
fn empty_answer(query: &[u8], question: &[u8], edns: Option<Edns>, code: ResponseCode) -> Vec<u8> {
    let mut message = start_answer(query, question, code.low(), 0);
    if edns.is_some() {
        push_opt(&mut message, edns, code.high());
    }
    message
}

/// Header and question of a response, for whatever follows.
fn start_answer(query: &[u8], question: &[u8], code: u8, flags: u8) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN + question.len() + OPT_LEN);
    message.extend_from_slice(&query[..2]);
    message.push(QR | query[2] & OPCODE_AND_RD | flags);
    message.push(RA | query[3] & CD | code);
    message.extend_from_slice(&[0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(question);
    message
}

/// Adds our OPT record to an answer, as its last one, with the upper bits of its code.
pub fn push_opt(message: &mut Vec<u8>, edns: Option<Edns>, code_high: u8) {
    let [s0, s1] = OUR_UDP_SIZE.to_be_bytes();
    let flags = edns.filter(|edns| edns.dnssec).map_or(0, |_| DO);
    message.extend_from_slice(&[0, 0, kind::OPT as u8, s0, s1, code_high, 0, flags, 0, 0, 0]);
    if let Some(count) = message.get_mut(10..12) {
        let more = u16::from_be_bytes([count[0], count[1]]).saturating_add(1);
        count.copy_from_slice(&more.to_be_bytes());
    }
}

/// An answer of the network's own, with records for the name in the question.
pub struct OwnAnswer {
    message: Vec<u8>,
    edns: Option<Edns>,
    limit: usize,
    count: u16,
}

impl OwnAnswer {
    /// One without records, of at most `limit` bytes.
    pub fn new(query: &[u8], question: &Question, code: ResponseCode, limit: usize) -> OwnAnswer {
        let bytes = query.get(HEADER_LEN..question.end).unwrap_or_default();
        OwnAnswer {
            message: start_answer(query, bytes, code.low(), AA),
            edns: question.edns,
            limit: limit - question.edns.map_or(0, |_| OPT_LEN),
            count: 0,
        }
    }

    /// Adds a record of this type, if there is room for it. Without room the answer says that it is
    /// cut short (TC).
    pub fn push(&mut self, kind: u16, ttl: u32, data: &[u8]) {
        // The name by a pointer to the question, then type, class, TTL and length.
        if self.message.len() + 12 + data.len() > self.limit {
            self.message[2] |= TC;
            return;
        }
        let Ok(length) = u16::try_from(data.len()) else {
            return;
        };
        self.message.extend_from_slice(&[0xc0, HEADER_LEN as u8]);
        self.message.extend_from_slice(&kind.to_be_bytes());
        self.message.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.message.extend_from_slice(&ttl.to_be_bytes());
        self.message.extend_from_slice(&length.to_be_bytes());
        self.message.extend_from_slice(data);
        self.count += 1;
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        self.message[6..8].copy_from_slice(&self.count.to_be_bytes());
        if self.edns.is_some() {
            push_opt(&mut self.message, self.edns, 0);
        }
        self.message
    }
}

/// Gives the message another id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.get_mut(..2) {
        bytes.copy_from_slice(&id.to_be_bytes());
    }
}

/// The message's id; 0 where there is none.
pub fn id_of(message: &[u8]) -> u16 {
    message.first_chunk().copied().map_or(0, u16::from_be_bytes)
}

/// The lower four bits of the message's code; 0 where there is none.
pub fn code_of(message: &[u8]) -> u8 {
    message.get(3).map_or(0, |byte| byte & 0xf)
}

/// What a message from a server is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It answers another query, or none: to be ignored.
    Stray,
    /// The server could not or would not answer; another one may.
    Failed,
    /// The answer, be it that the name does not exist.
    Final,
}

/// Judges a message from the server that was asked the question with these bytes under `id`.
///
/// Id, question and the direction bit must be right (RFC 5452 section 9.1); the name in the
/// question is compared without regard to case. A server that understood nothing may leave the
/// question out.
pub fn judge(message: &[u8], id: u16, question: &[u8]) -> Verdict {
    let Ok(header) = Header::from_bytes(message) else {
        return Verdict::Stray;
    };
    if header.id != id
        || header.message_type != MessageType::Response
        || header.op_code != OpCode::Query
    {
        return Verdict::Stray;
    }
    let failed = !matches!(
        header.response_code,
        ResponseCode::NoError | ResponseCode::NXDomain
    );
    if header.counts.queries == 0 && failed {
        return Verdict::Failed;
    }
    // Lengths of labels are no letters; type and class might be, and then differ all the same.
    let echoed = message.get(HEADER_LEN..HEADER_LEN + question.len());
    let same = |echoed: &[u8]| {
        let fixed = question.len().saturating_sub(4);
        echoed[..fixed].eq_ignore_ascii_case(&question[..fixed])
            && echoed[fixed..] == question[fixed..]
    };
    match echoed {
        Some(echoed) if header.counts.queries == 1 && same(echoed) => match failed {
            true => Verdict::Failed,
            false => Verdict::Final,
        },
        _ => Verdict::Stray,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A query with RD set.
    pub(crate) fn query(id: u16, name: &str, query_type: u16) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&query_type.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message
    }

    pub(crate) fn rcode(message: &[u8]) -> u8 {
        assert_ne!(message[2] & QR, 0, "not a response");
        message[3] & 0xf
    }

    fn refused(message: &[u8]) -> u8 {
        match inspect(message) {
            Inspected::Answer(answer) => {
                assert_eq!(answer[..2], message[..2]);
                rcode(&answer)
            }
            other => panic!("{other:?}"),
        }
    }

    fn question(message: &[u8]) -> Question {
        match inspect(message) {
            Inspected::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_is_found_whatever_follows_it() {
        let mut message = query(5, "example.org", 65280);
        let end = message.len();
        message.extend_from_slice(&[0xff; 40]);
        message[11] = 1;
        let question = question(&message);
        assert_eq!(
            (question.end, question.kind, question.class),
            (end, 65280, 1)
        );
        assert_eq!(question.name.as_deref(), Some("example.org"));
        assert!(!question.plain && question.edns.is_none());
        let servfail = error(&message, &question, ResponseCode::ServFail);
        assert_eq!(servfail[..4], [0, 5, 0x81, 0x82]);
        assert_eq!(servfail[4..12], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(servfail[12..], message[12..end]);
    }

    #[test]
    fn hostile_names_are_refused() {
        let header = query(1, "x", 1)[..12].to_vec();
        let with = |name: &[u8]| [&header[..], name, &[0, 1, 0, 1]].concat();
        let mut long = Vec::new();
        for _ in 0..5 {
            long.push(63);
            long.extend_from_slice(&[b'a'; 63]);
        }
        long.push(0);
        let cases: [(&str, Vec<u8>); 7] = [
            ("pointer to itself", with(&[0xc0, 12])),
            ("pointer forwards", with(&[0xc0, 14])),
            ("pointer past the end", with(&[0xff, 0xff])),
            (
                "label, then pointer to the label",
                with(&[1, b'a', 0xc0, 12]),
            ),
            ("reserved label type", with(&[0x80, 0])),
            ("over 255 bytes", with(&long)),
            ("label past the end", with(&[60, b'a'])),
        ];
        for (what, message) in cases {
            assert_eq!(refused(&message), 1, "{what}");
        }
    }

    #[test]
    fn other_kinds_of_messages() {
        let mut two = query(1, "a", 1);
        two[5] = 2;
        assert_eq!(refused(&two), 1);
        let mut none = query(1, "a", 1);
        none[5] = 0;
        assert_eq!(refused(&none), 1);
        let mut notify = query(1, "a", 1);
        notify[2] = 4 << 3;
        assert_eq!(refused(&notify), 4);
        assert_eq!(refused(&query(1, "a", 252)), 5);
        assert_eq!(refused(&query(1, "a", 251)), 5);
        assert!(matches!(inspect(&[0; 11]), Inspected::Nothing));
        assert!(matches!(inspect(&[]), Inspected::Nothing));
    }

    #[test]
    fn answers_are_judged() {
        let asked = query(77, "Example.org", 1);
        let question = &asked[12..];
        let reply = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut message = asked.clone();
            message[2] |= QR;
            change(&mut message);
            judge(&message, 77, question)
        };
        assert_eq!(reply(&|_| ()), Verdict::Final);
        assert_eq!(reply(&|m| m[3] |= 3), Verdict::Final, "NXDOMAIN");
        assert_eq!(reply(&|m| m[3] |= 2), Verdict::Failed, "SERVFAIL");
        assert_eq!(reply(&|m| m[3] |= 5), Verdict::Failed, "REFUSED");
        assert_eq!(reply(&|m| m[13] = b'e'), Verdict::Final, "case");
        assert_eq!(reply(&|m| m[13] = b'f'), Verdict::Stray, "name");
        assert_eq!(reply(&|m| m[0] = 1), Verdict::Stray, "id");
        assert_eq!(reply(&|m| m[2] &= !QR), Verdict::Stray, "a query");
        assert_eq!(reply(&|m| m[26] = 28), Verdict::Stray, "type");
        assert_eq!(reply(&|m| m.truncate(11)), Verdict::Stray);
        let no_question = |m: &mut Vec<u8>, code: u8| {
            m.truncate(12);
            m[5] = 0;
            m[3] |= code;
        };
        assert_eq!(reply(&|m| no_question(m, 1)), Verdict::Failed);
        assert_eq!(reply(&|m| no_question(m, 0)), Verdict::Stray);
    }

    /// An OPT record of this version, size and options.
    pub(crate) fn with_opt(mut query: Vec<u8>, version: u8, size: u16, options: &[u8]) -> Vec<u8> {
        query[11] += 1;
        query.extend_from_slice(&[0, 0, 41]);
        query.extend_from_slice(&size.to_be_bytes());
        query.extend_from_slice(&[0, version, 0x80, 0]);
        query.extend_from_slice(&(options.len() as u16).to_be_bytes());
        query.extend_from_slice(options);
        query
    }

    #[test]
    fn edns_is_understood_and_answered() {
        let plain = query(1, "A.example", 1);
        assert!(question(&plain).plain && question(&plain).edns.is_none());
        assert_eq!(question(&plain).udp_size(), 512);
        let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
        let subnet = [0, 8, 0, 4, 0, 1, 0, 0];
        for (options, harmless) in [(&[][..], true), (&cookie, true), (&subnet, false)] {
            let message = with_opt(plain.clone(), 0, 1232, options);
            let question = question(&message);
            assert_eq!(question.plain, harmless);
            assert_eq!(question.udp_size(), 1232);
            let answer = error(&message, &question, ResponseCode::NXDomain);
            let read = hickory_proto::op::Message::from_vec(&answer).unwrap();
            let edns = read.edns.unwrap();
            assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
            assert!(edns.flags().dnssec_ok);
            assert_eq!(read.metadata.response_code, ResponseCode::NXDomain);
        }
        let newer = with_opt(plain.clone(), 1, 1232, &[]);
        let Inspected::Answer(answer) = inspect(&newer) else {
            panic!("version 1 is none that we speak");
        };
        let read = hickory_proto::op::Message::from_vec(&answer).unwrap();
        assert_eq!(u16::from(read.metadata.response_code), 16, "BADVERS");
        assert_eq!(read.edns.unwrap().version(), 0);
        let twice = with_opt(with_opt(plain.clone(), 0, 1232, &[]), 0, 512, &[]);
        assert_eq!(refused(&twice), 1);
        let mut short = with_opt(plain, 0, 512, &[]);
        *short.last_mut().unwrap() = 9;
        assert_eq!(refused(&short), 1, "options past the end");
    }

    #[test]
    fn an_answer_depends_on_question_and_flags_alone() {
        let key = |message: &[u8]| question(message).key(message);
        let one = query(1, "Example.org", 1);
        assert_eq!(key(&one), key(&query(2, "eXample.ORG", 1)));
        assert_ne!(key(&one), key(&query(1, "example.org", 28)));
        for (at, bit) in [(2, RD), (3, AD), (3, CD)] {
            let mut other = one.clone();
            other[at] ^= bit;
            assert_ne!(key(&one), key(&other));
        }
        assert_ne!(key(&one), key(&with_opt(one.clone(), 0, 1232, &[])));
    }

    #[test]
    fn names_with_unusual_characters_are_none_of_ours() {
        let name = |name: &str| question(&query(1, name, 1)).name;
        assert_eq!(name("Web_1-x.lan").as_deref(), Some("web_1-x.lan"));
        assert_eq!(name("a b"), None);
        assert_eq!(name("a\\b"), None);
        let mut dotted = query(1, "a-b", 1);
        dotted[14] = b'.';
        assert_eq!(question(&dotted).name, None);
        let mut root = query(1, "x", 2);
        root.drain(12..14);
        assert_eq!(question(&root).name.as_deref(), Some(""));
    }
}
