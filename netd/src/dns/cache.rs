//! Answers that are kept for as long as their servers allow.
//!
//! # Theory of operation
//!
//! An answer is kept as it came, without its OPT record, under what it depends on
//! ([`Question::key`]), for the shortest TTL among its records; one that says that there is nothing,
//! for as long as the SOA record beside it says (RFC 2308 section 5), and not at all without one.
//! When it is given out again its TTLs are less by the time that passed, its question is spelled as
//! the client spells it, and it ends with our OPT record if the client speaks EDNS.
//!
//! Kept beyond its time ([`Cache::new`]), an answer is *stale*: it serves when no server answers
//! (RFC 8767), with a TTL of [`STALE_TTL`]. For [`STALE_RECHECK`] after such a failure it serves at
//! once.
//!
//! # Invariants
//!
//! - At most [`MAX_ENTRIES`] answers and [`MAX_BYTES`]. The oldest gives way, unless it was asked
//!   for since it was last looked at for this.
//! - An answer is kept only if each of its records can be found: counts and lengths that lie end the
//!   walk (RFC 9267), and with it the attempt. Names are stepped over, never followed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::message::{self, HEADER_LEN, QR, Question, TC, kind};

/// Answers that are kept.
const MAX_ENTRIES: usize = 10_000;
/// Bytes of answers and keys that are kept.
const MAX_BYTES: usize = 4 << 20;
/// The longest time that an answer is kept, whatever its TTL. Long enough for any client, short
/// against the time that somebody looks for a mistake.
const MAX_TTL: u32 = 86_400;
/// The longest time that an answer which says that there is nothing is kept (RFC 2308 section 5).
const MAX_NEGATIVE_TTL: u32 = 10_800;
/// Seconds that a client may keep an answer that is stale (RFC 8767 section 4).
const STALE_TTL: u32 = 30;
/// How long a stale answer serves without another attempt to get a fresh one (RFC 8767 section 5).
const STALE_RECHECK: Duration = Duration::from_secs(30);

/// The answers.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// The keys of all entries, in the order in which they are looked at to make room.
    order: VecDeque<Arc<[u8]>>,
    bytes: usize,
    /// How long an answer is kept beyond its time.
    stale: Duration,
}

#[derive(Debug)]
struct Entry {
    /// Without an OPT record.
    answer: Box<[u8]>,
    /// Where its TTLs are.
    ttls: Box<[u16]>,
    stored: Instant,
    expires: Instant,
    /// Until when it serves though it is stale, because no server has answered.
    failed_until: Option<Instant>,
    /// Whether it was given out since it was last looked at to make room.
    used: bool,
}

/// What is known of a question.
#[derive(Debug)]
pub(super) enum Found {
    /// The answer.
    Fresh(Vec<u8>),
    /// An answer that is out of date, to be given if no server answers.
    Stale(Vec<u8>),
    /// Nothing.
    Nothing,
}

impl Cache {
    /// Without answers. `stale` is how long an answer serves beyond its time if no server answers;
    /// zero for never.
    pub(super) fn new(stale: Duration) -> Cache {
        Cache {
            entries: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            stale,
        }
    }

    /// The answer to `query`, whose question has this key.
    pub(super) fn find(&mut self, key: &[u8], query: &[u8], question: &Question) -> Found {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(key) else {
            return Found::Nothing;
        };
        let is_fresh = now < entry.expires;
        if !is_fresh && now >= entry.expires + self.stale {
            return Found::Nothing;
        }
        entry.used = true;
        let age = now.duration_since(entry.stored).as_secs();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        let answer = entry.answer_to(query, question, |ttl| match is_fresh {
            true => ttl.saturating_sub(age),
            false => STALE_TTL,
        });
        let serves = is_fresh || entry.failed_until.is_some_and(|until| now < until);
        match serves {
            true => Found::Fresh(answer),
            false => Found::Stale(answer),
        }
    }

    /// No server has answered the question with this key in time.
    pub(super) fn failed(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.failed_until = Some(Instant::now() + STALE_RECHECK);
        }
    }

    /// Keeps `answer` under `key`, if it may be kept.
    pub(super) fn keep(&mut self, key: Vec<u8>, answer: &[u8], question: &Question) {
        let Some(walked) = Walked::of(answer, question) else {
            return;
        };
        let (key, now): (Arc<[u8]>, Instant) = (key.into(), Instant::now());
        let mut bytes = answer[..walked.end].to_vec();
        message::set_id(&mut bytes, 0);
        bytes[10..12].copy_from_slice(&walked.additional.to_be_bytes());
        let entry = Entry {
            answer: bytes.into(),
            ttls: walked.ttls.into(),
            stored: now,
            expires: now + Duration::from_secs(walked.ttl.into()),
            failed_until: None,
            used: false,
        };
        self.bytes += entry.bytes(&key);
        match self.entries.insert(Arc::clone(&key), entry) {
            Some(old) => self.bytes -= old.bytes(&key),
            None => self.order.push_back(key),
        }
        while self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            self.make_room();
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Cache::new(self.stale);
    }

    fn make_room(&mut self) {
        let Some(key) = self.order.pop_front() else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&key) {
            let bytes = entry.bytes(&key);
            if std::mem::take(&mut entry.used) {
                self.order.push_back(key);
                return;
            }
            self.bytes -= bytes;
            self.entries.remove(&key);
        }
    }
}

impl Entry {
    fn bytes(&self, key: &[u8]) -> usize {
        self.answer.len() + 2 * self.ttls.len() + key.len()
    }

    fn answer_to(&self, query: &[u8], question: &Question, ttl: impl Fn(u32) -> u32) -> Vec<u8> {
        let mut answer = Vec::with_capacity(self.answer.len() + message::OPT_LEN);
        answer.extend_from_slice(&self.answer);
        message::set_id(&mut answer, message::id_of(query));
        let spelled = HEADER_LEN..question.end;
        answer[spelled.clone()].copy_from_slice(&query[spelled]);
        for &at in &self.ttls {
            let at = usize::from(at);
            if let Some(bytes) = answer.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                *bytes = ttl(u32::from_be_bytes(*bytes)).to_be_bytes();
            }
        }
        if question.edns.is_some() {
            message::push_opt(&mut answer, question.edns, 0);
        }
        answer
    }
}

/// What an answer that may be kept looks like.
struct Walked {
    /// Where the records end, without the OPT record.
    end: usize,
    /// Records of the last section, without the OPT record.
    additional: u16,
    /// Where the TTLs are.
    ttls: Vec<u16>,
    /// Seconds that the answer may be kept.
    ttl: u32,
}

impl Walked {
    /// `None` for one that may not be kept.
    fn of(answer: &[u8], question: &Question) -> Option<Walked> {
        let (flags, code) = (*answer.get(2)?, answer.get(3)? & 0xf);
        let is_nothing = match code {
            0 => false,
            3 => true,
            _ => return None,
        };
        if flags & QR == 0 || flags & TC != 0 || answer.len() > usize::from(u16::MAX) {
            return None;
        }
        let counts = [6, 8, 10].map(|at| u16::from_be_bytes([answer[at], answer[at + 1]]));
        let mut walked = Walked {
            end: question.end,
            additional: counts[2],
            ttls: Vec::new(),
            ttl: MAX_TTL,
        };
        let (mut has_type, mut soa) = (false, None);
        for (section, &count) in counts.iter().enumerate() {
            for n in 0..count {
                let record = Record::at(answer, walked.end)?;
                if record.kind == kind::OPT {
                    // The upper bits of the code; and nothing behind it, or pointers would be wrong.
                    let upper = answer.get(record.ttl_at)?;
                    let last = section == 2 && n + 1 == count && record.end == answer.len();
                    walked.additional -= 1;
                    return (*upper == 0 && last)
                        .then_some(())
                        .and_then(|()| walked.bounded(is_nothing, has_type, soa));
                }
                has_type |= section == 0 && [record.kind, kind::ANY].contains(&question.kind);
                if section == 1 && record.kind == kind::SOA {
                    let minimum = answer.get(record.end - 4..record.end)?;
                    let minimum = u32::from_be_bytes(minimum.try_into().ok()?);
                    soa = Some(minimum.min(record.ttl));
                }
                walked.ttls.push(u16::try_from(record.ttl_at).ok()?);
                walked.ttl = walked.ttl.min(record.ttl);
                walked.end = record.end;
            }
        }
        // What is behind the records is no part of the answer.
        (walked.end == answer.len()).then_some(())?;
        walked.bounded(is_nothing, has_type, soa)
    }

    /// With the time that it may be kept; `soa` is the time of an answer that says that there is
    /// nothing.
    fn bounded(mut self, is_nothing: bool, has_type: bool, soa: Option<u32>) -> Option<Walked> {
        if is_nothing || !has_type {
            self.ttl = self.ttl.min(soa?).min(MAX_NEGATIVE_TTL);
        }
        // A TTL with its upper bit set is none (RFC 2181 section 8), and one of zero is not kept.
        (1..=MAX_TTL).contains(&self.ttl).then_some(self)
    }
}

/// One record of an answer.
struct Record {
    kind: u16,
    ttl: u32,
    ttl_at: usize,
    end: usize,
}

impl Record {
    fn at(answer: &[u8], start: usize) -> Option<Record> {
        let mut at = start;
        loop {
            match *answer.get(at)? {
                0 => break at += 1,
                length @ 1..=63 => at += 1 + usize::from(length),
                0xc0..=0xff => break at += 2,
                _ => return None,
            }
            if at - start > 255 {
                return None;
            }
        }
        let &[k0, k1, _, _, t0, t1, t2, t3, l0, l1] = answer.get(at..)?.first_chunk()?;
        let end = at + 10 + usize::from(u16::from_be_bytes([l0, l1]));
        let kind = u16::from_be_bytes([k0, k1]);
        let least = match kind {
            // Two names of a byte at least, and five numbers.
            kind::SOA => 22,
            _ => 0,
        };
        (end <= answer.len() && end - at - 10 >= least).then_some(Record {
            kind,
            ttl: u32::from_be_bytes([t0, t1, t2, t3]),
            ttl_at: at + 4,
            end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::tests::{query, rcode, with_opt};
    use crate::dns::message::{Inspected, inspect};
    use hickory_proto::op::Message;

    fn question(message: &[u8]) -> Question {
        match inspect(message) {
            Inspected::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    /// A record for the name in the question.
    fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc0, 12];
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(ttl.to_be_bytes());
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
        let mut data = vec![0, 0];
        data.extend([0; 16]);
        data.extend(minimum.to_be_bytes());
        record(6, ttl, &data)
    }

    /// An answer with so many records a section.
    fn answer(query: &[u8], code: u8, counts: [u8; 3], records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = query[..question(query).end].to_vec();
        bytes[2] |= 0x80;
        bytes[3] |= 0x80 | code;
        (bytes[7], bytes[9], bytes[11]) = (counts[0], counts[1], counts[2]);
        bytes.extend(records.concat());
        bytes
    }

    fn kept(cache: &mut Cache, query: &[u8]) -> Option<Message> {
        let question = question(query);
        match cache.find(&question.key(query), query, &question) {
            Found::Fresh(answer) => Some(Message::from_vec(&answer).unwrap()),
            Found::Stale(_) | Found::Nothing => None,
        }
    }

    fn keep(cache: &mut Cache, query: &[u8], answer: &[u8]) {
        let question = question(query);
        cache.keep(question.key(query), answer, &question);
    }

    const OPT: &[u8] = &[0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0];

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_shortest_ttl() {
        let mut cache = Cache::new(Duration::ZERO);
        let asked = query(7, "example.org", 1);
        let records = [
            record(1, 60, &[192, 0, 2, 1]),
            record(1, 300, &[192, 0, 2, 2]),
        ];
        let with_opt_record = [&records[..], &[OPT.to_vec()]].concat();
        keep(
            &mut cache,
            &asked,
            &answer(&asked, 0, [2, 0, 1], &with_opt_record),
        );
        tokio::time::advance(Duration::from_secs(59)).await;
        let again = query(9, "EXAMPLE.org", 1);
        let found = kept(&mut cache, &again).unwrap();
        assert_eq!(found.metadata.id, 9);
        assert_eq!(found.queries[0].name().to_ascii(), "EXAMPLE.org.");
        let ttls: Vec<u32> = found.answers.iter().map(|r| r.ttl).collect();
        assert_eq!((ttls, found.edns.is_some()), (vec![1, 241], false));
        // Another question is another answer.
        assert!(kept(&mut cache, &query(9, "example.org", 28)).is_none());
        let other = with_opt(again.clone(), 0, 4096, &[]);
        assert!(
            kept(&mut cache, &other).is_none(),
            "it wants DNSSEC records"
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(kept(&mut cache, &again).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_speaks_edns_is_answered_so() {
        let mut cache = Cache::new(Duration::ZERO);
        let asked = with_opt(query(7, "example.org", 1), 0, 1232, &[]);
        let records = [record(1, 60, &[192, 0, 2, 1])];
        keep(&mut cache, &asked, &answer(&asked, 0, [1, 0, 0], &records));
        let found = kept(&mut cache, &asked).unwrap();
        assert!(found.edns.unwrap().flags().dnssec_ok);
    }

    #[tokio::test(start_paused = true)]
    async fn that_there_is_nothing_is_kept_as_the_soa_says() {
        let mut cache = Cache::new(Duration::ZERO);
        let gone = query(1, "gone.example", 1);
        for (code, ttl, minimum, lasts) in [
            (3, 300, 60, 60),
            (0, 30, 60, 30),
            (3, 1 << 20, 99_999, 10_800),
        ] {
            keep(
                &mut cache,
                &gone,
                &answer(&gone, code, [0, 1, 0], &[soa(ttl, minimum)]),
            );
            tokio::time::advance(Duration::from_secs(lasts - 1)).await;
            let found = kept(&mut cache, &gone).unwrap();
            assert_eq!(u16::from(found.metadata.response_code), u16::from(code));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(kept(&mut cache, &gone).is_none());
        }
        // An alias whose target has no such record is nothing, too.
        let alias = [record(5, 900, &[0]), soa(20, 20)];
        keep(&mut cache, &gone, &answer(&gone, 0, [1, 1, 0], &alias));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(kept(&mut cache, &gone).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_not_be_kept_is_not() {
        let mut cache = Cache::new(Duration::ZERO);
        let asked = query(1, "example.org", 1);
        let address = record(1, 60, &[192, 0, 2, 1]);
        let good = answer(&asked, 0, [1, 0, 0], std::slice::from_ref(&address));
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut message = good.clone();
            change(&mut message);
            message
        };
        let end = good.len();
        for (what, message) in [
            ("cut short", changed(&|m| m[2] |= 2)),
            ("SERVFAIL", changed(&|m| m[3] |= 2)),
            ("no SOA", changed(&|m| m[3] |= 3)),
            ("nothing and no SOA", answer(&asked, 0, [0, 0, 0], &[])),
            (
                "TTL 0",
                answer(&asked, 0, [1, 0, 0], &[record(1, 0, &[1, 1, 1, 1])]),
            ),
            ("too many records", changed(&|m| m[7] = 2)),
            ("a length past the end", changed(&|m| m[end - 5] = 99)),
            ("bytes behind", changed(&|m| m.push(0))),
            (
                "a short SOA",
                answer(&asked, 3, [0, 1, 0], &[record(6, 60, &[0; 8])]),
            ),
            (
                "an upper code",
                answer(
                    &asked,
                    0,
                    [1, 0, 1],
                    &[address.clone(), vec![0, 0, 41, 4, 0, 1, 0, 0, 0, 0, 0]],
                ),
            ),
            (
                "a record behind OPT",
                answer(
                    &asked,
                    0,
                    [1, 0, 2],
                    &[address.clone(), OPT.to_vec(), address.clone()],
                ),
            ),
        ] {
            keep(&mut cache, &asked, &message);
            assert!(kept(&mut cache, &asked).is_none(), "{what}");
        }
        keep(&mut cache, &asked, &good);
        assert!(kept(&mut cache, &asked).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_answer_serves_when_no_server_does() {
        let mut cache = Cache::new(Duration::from_secs(3600));
        let asked = query(1, "example.org", 1);
        let records = [record(1, 60, &[192, 0, 2, 1])];
        keep(&mut cache, &asked, &answer(&asked, 0, [1, 0, 0], &records));
        tokio::time::advance(Duration::from_secs(61)).await;
        let question = question(&asked);
        let key = question.key(&asked);
        let Found::Stale(stale) = cache.find(&key, &asked, &question) else {
            panic!("it is out of date");
        };
        assert_eq!(rcode(&stale), 0);
        assert_eq!(Message::from_vec(&stale).unwrap().answers[0].ttl, STALE_TTL);
        cache.failed(&key);
        assert!(kept(&mut cache, &asked).is_some(), "at once");
        tokio::time::advance(STALE_RECHECK).await;
        assert!(kept(&mut cache, &asked).is_none());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(matches!(
            cache.find(&key, &asked, &question),
            Found::Nothing
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded_and_keeps_what_is_asked_for() {
        let mut cache = Cache::new(Duration::ZERO);
        let name = |n: usize| query(1, &format!("n{n}.example"), 1);
        let records = [record(1, 600, &[192, 0, 2, 1])];
        for n in 0..MAX_ENTRIES + 500 {
            let asked = name(n);
            keep(&mut cache, &asked, &answer(&asked, 0, [1, 0, 0], &records));
            assert!(kept(&mut cache, &name(0)).is_some());
        }
        assert_eq!(
            (cache.entries.len(), cache.order.len()),
            (MAX_ENTRIES, MAX_ENTRIES)
        );
        assert!(kept(&mut cache, &name(1)).is_none());
        let large = [record(16, 600, &[7; 60_000])];
        for n in 0..200 {
            let asked = name(n);
            keep(&mut cache, &asked, &answer(&asked, 0, [1, 0, 0], &large));
            assert!(cache.bytes <= MAX_BYTES);
        }
        let counted: usize = cache
            .entries
            .iter()
            .map(|(key, entry)| entry.bytes(key))
            .sum();
        assert_eq!(cache.bytes, counted);
        cache.clear();
        assert!(kept(&mut cache, &name(0)).is_none());
    }
}
