//! The names that every network has: the host's and the gateway's.
//!
//! Both stand for the gateway's address. Whether the host's own services can be reached there is
//! for policy to say, not for DNS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

use super::message::{self, Question};

const NAMES: [&str; 3] = [
    "host.containers.internal.",
    "host.docker.internal.",
    "gateway.containers.internal.",
];

/// Seconds an answer may be kept.
const TTL: u32 = 60;

/// Answers the names that stand for the gateway.
#[derive(Clone, Debug, Default)]
pub struct LocalNames {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl LocalNames {
    /// With the gateway's addresses. Without any, the names are nobody's.
    pub fn new(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> LocalNames {
        LocalNames { ipv4, ipv6 }
    }

    /// The answer to `query` if it asks for a name of ours. A type that a name does not have gets
    /// an answer without records.
    pub fn answer(&self, query: &[u8], question: &Question) -> Option<Vec<u8>> {
        if self.ipv4.is_none() && self.ipv6.is_none() {
            return None;
        }
        let asked = &question.query;
        let name = asked.name().to_ascii();
        let ours = NAMES.iter().any(|n| n.eq_ignore_ascii_case(&name));
        if !ours || asked.query_class() != DNSClass::IN {
            return None;
        }
        let a = self.ipv4.map(IpAddr::V4);
        let aaaa = self.ipv6.map(IpAddr::V6);
        let found = match asked.query_type() {
            RecordType::A => vec![a],
            RecordType::AAAA => vec![aaaa],
            RecordType::ANY => vec![a, aaaa],
            _ => vec![],
        };
        let empty = message::error(query, question, ResponseCode::NoError);
        let mut answer = Message::from_vec(&empty).ok()?;
        answer.metadata.authoritative = true;
        for address in found.into_iter().flatten() {
            let data = match address {
                IpAddr::V4(a) => RData::A(A(a)),
                IpAddr::V6(a) => RData::AAAA(AAAA(a)),
            };
            answer.add_answer(Record::from_rdata(asked.name().clone(), TTL, data));
        }
        answer.to_vec().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::tests::query;
    use crate::dns::message::{Inspected, inspect};

    fn ask(name: &str, query_type: u16) -> Option<Message> {
        let names = LocalNames::new(Some([10, 0, 2, 2].into()), Some("fd00::2".parse().unwrap()));
        let query = query(9, name, query_type);
        let Inspected::Question(question) = inspect(&query) else {
            panic!("{name}");
        };
        let answer = names.answer(&query, &question)?;
        Some(Message::from_vec(&answer).unwrap())
    }

    #[test]
    fn the_host_has_both_families_and_nothing_else() {
        for name in NAMES {
            let answer = ask(name.trim_end_matches('.'), 1).unwrap();
            assert_eq!(answer.metadata.id, 9);
            assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
            assert_eq!(answer.answers.len(), 1);
            assert_eq!(answer.answers[0].data, RData::A(A([10, 0, 2, 2].into())));
        }
        let answer = ask("HOST.Docker.internal", 28).unwrap();
        assert_eq!(
            answer.answers[0].data,
            RData::AAAA(AAAA("fd00::2".parse().unwrap()))
        );
        let mx = ask("host.docker.internal", 15).unwrap();
        assert_eq!(mx.metadata.response_code, ResponseCode::NoError);
        assert!(mx.answers.is_empty());
        assert_eq!(ask("host.docker.internal", 255).unwrap().answers.len(), 2);
    }

    #[test]
    fn other_names_are_not_ours() {
        for name in ["example.org", "a.host.docker.internal", "docker.internal"] {
            assert!(ask(name, 1).is_none(), "{name}");
        }
    }
}
