//! As much of a DNS message as a forwarder has to understand: its header and its question.
//!
//! Parsing is hickory-proto's, whose names follow compression pointers only backwards and end at
//! 255 bytes, so that no message makes it loop (RFC 9267). Everything after the question is
//! carried, not read.
//!
//! RFC 1035 section 4.1; RFC 5625 on what a forwarder leaves alone.

use hickory_proto::op::{Header, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Bytes of a header (RFC 1035 section 4.1.1).
pub const HEADER_LEN: usize = 12;

/// The header's QR bit, in its third byte: the message is a response.
const QR: u8 = 0x80;
/// The opcode and RD, in the third byte, which an answer repeats.
const OPCODE_AND_RD: u8 = 0x79;
/// RA, in the fourth byte: recursion is available here.
const RA: u8 = 0x80;
/// CD, in the fourth byte, which an answer repeats (RFC 4035 section 3.2.2).
const CD: u8 = 0x10;

/// The question of a query.
#[derive(Clone, Debug)]
pub struct Question {
    /// Name, type and class.
    pub query: Query,
    /// Where the question ends in the message.
    pub end: usize,
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
    let Ok(header) = Header::from_bytes(message) else {
        return Inspected::Nothing;
    };
    if header.message_type == MessageType::Response {
        // To answer an answer would let two forwarders talk to each other for ever.
        return Inspected::Nothing;
    }
    let bare = |code| Inspected::Answer(answer(message, &[], code));
    if header.op_code != OpCode::Query {
        return bare(ResponseCode::NotImp);
    }
    let Some(question) = question_of(message, &header) else {
        return bare(ResponseCode::FormErr);
    };
    match question.query.query_type() {
        RecordType::AXFR | RecordType::IXFR => {
            Inspected::Answer(error(message, &question, ResponseCode::Refused))
        }
        _ => Inspected::Question(question),
    }
}

fn question_of(message: &[u8], header: &Header) -> Option<Question> {
    if header.counts.queries != 1 {
        return None;
    }
    let mut decoder = BinDecoder::new(message);
    Header::read(&mut decoder).ok()?;
    let query = Query::read(&mut decoder).ok()?;
    Some(Question {
        query,
        end: decoder.index(),
    })
}

/// The answer to `query` that carries nothing but `code`.
pub fn error(query: &[u8], question: &Question, code: ResponseCode) -> Vec<u8> {
    answer(
        query,
        query.get(HEADER_LEN..question.end).unwrap_or_default(),
        code,
    )
}

/// A response to the message `query`, which holds a header, with the bytes of its question.
fn answer(query: &[u8], question: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN + question.len());
    message.extend_from_slice(&query[..2]);
    message.push(QR | query[2] & OPCODE_AND_RD);
    message.push(RA | query[3] & CD | code.low());
    message.extend_from_slice(&[0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(question);
    message
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

/// Judges a message from the server that was asked `question` under `id`.
///
/// Id, question and the direction bit must be right (RFC 5452 section 9.1); the name in the
/// question is compared without regard to case. A server that understood nothing may leave the
/// question out.
pub fn judge(message: &[u8], id: u16, question: &Question) -> Verdict {
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
    match question_of(message, &header) {
        // Equality of names disregards case.
        Some(echoed) if echoed.query == question.query => {}
        _ => return Verdict::Stray,
    }
    if failed {
        Verdict::Failed
    } else {
        Verdict::Final
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
        assert_eq!(question.end, end);
        assert_eq!(question.query.name().to_ascii(), "example.org.");
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
        let question = question(&asked);
        let reply = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut message = asked.clone();
            message[2] |= QR;
            change(&mut message);
            judge(&message, 77, &question)
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
}
