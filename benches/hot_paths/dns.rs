//! DNS: the gateway's front (a query in, an answer out) and the service behind it. Neither is a
//! per-packet path; both may allocate.

use std::hint::black_box;

use cnet_netd::dns::message::{Inspected, inspect};
use cnet_netd::dns::{LocalNames, Transport};
use criterion::{BenchmarkId, Criterion};

use crate::{group, measure};
use cnet_benches::load::world::World;
use cnet_testkit::template::{self, GATEWAY_V4};

const FOREIGN: &str = "www.example.org";
const LOCAL: &str = "host.containers.internal";

pub fn gateway(c: &mut Criterion) {
    let mut group = group(c, "dns/gateway");
    let make = || {
        let names = LocalNames::new(Some(GATEWAY_V4), None);
        let message = template::dns_message(LOCAL);
        let Inspected::Question(question) = inspect(&message) else {
            unreachable!("a question")
        };
        let answer = names.answer(&message, &question, Transport::Udp);
        let answer = answer.expect("an answer");
        (World::new(1, 0), template::dns_query(LOCAL), answer)
    };
    let id = BenchmarkId::from_parameter("query_and_answer");
    measure(&mut group, id, &mut None, make, |(world, query, answer)| {
        world.frame(1, query.bytes());
        world.answer_dns(answer);
    });
    group.finish();
}

pub fn service(c: &mut Criterion) {
    let mut group = group(c, "dns/service");
    let id = BenchmarkId::from_parameter("parse");
    let make = || template::dns_message(FOREIGN);
    measure(&mut group, id, &mut None, make, |message| {
        let inspected = inspect(black_box(message));
        assert!(matches!(black_box(inspected), Inspected::Question(_)));
    });
    for (name, asked) in [("not_ours", FOREIGN), ("answer", LOCAL)] {
        let make = || {
            let message = template::dns_message(asked);
            let Inspected::Question(question) = inspect(&message) else {
                unreachable!("a question")
            };
            let names = LocalNames::new(Some(GATEWAY_V4), None);
            (names, message, question)
        };
        let id = BenchmarkId::from_parameter(name);
        measure(&mut group, id, &mut None, make, |(names, message, q)| {
            let answer = names.answer(black_box(message), q, Transport::Udp);
            assert_eq!(black_box(answer).is_some(), asked == LOCAL);
        });
    }
    group.finish();
}
