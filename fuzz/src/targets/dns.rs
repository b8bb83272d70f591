//! Targets for DNS: what clients send, and what servers answer.

use std::net::{IpAddr, SocketAddr};

use cnet_netd::dns::message::{self, Inspected, Verdict};
use cnet_testkit::addresses::{DNS_V4, DNS_V6, address};
use cnet_testkit::frames::{self, Tcp, flag};
use cnet_testkit::offload;
use cnet_testkit::template::dns_message;
use cnet_wire::dns::{HEADER_LEN, MIN_UDP_SIZE, is_query};
use cnet_wire::time::Duration;
use hickory_proto::op::ResponseCode;

use super::network::{Network, PORT, Settings};
use crate::feedback;

const CLIENT_PORT: u16 = 5353;
/// First sequence number of the client on a connection.
const CLIENT_ISN: u32 = 1000;
/// Bytes of one datagram, or of one segment.
const MAX_PAYLOAD: usize = 1200;
const SETTINGS: Settings = Settings(0);

fn service(v6: bool) -> IpAddr {
    if v6 { DNS_V6.into() } else { DNS_V4.into() }
}

/// The first byte says how the rest goes to the DNS service: as a datagram, or as the stream of a
/// connection, whose messages have their lengths in front.
pub fn query(input: &[u8]) {
    let Some((&way, bytes)) = input.split_first() else {
        return;
    };
    let v6 = way & 1 == 1;
    let from = SocketAddr::new(address(v6), CLIENT_PORT);
    let to = SocketAddr::new(service(v6), 53);
    let mut network = Network::new(SETTINGS);
    if way & 2 == 0 {
        let datagram = &bytes[..bytes.len().min(MAX_PAYLOAD)];
        network.frame(PORT, &frames::udp(from, to, datagram));
        let query = network.query();
        assert_eq!(query.is_some(), is_query(datagram), "taken as a query");
        if let Some(query) = query {
            assert_eq!((query.message.as_slice(), query.client), (datagram, from));
            let answer = answer_to(&query.message);
            network.sent(PORT);
            network.answer(query.id, &answer);
            assert_eq!(network.sent(PORT).len(), 1, "answers");
        }
    } else {
        stream(&mut network, from, to, bytes);
    }
    network.finish(SETTINGS);
}

/// Opens a connection, sends `bytes` on it, and answers what comes of it.
fn stream(network: &mut Network, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
    let segment = |seq, ack, flags, payload| {
        Tcp {
            from,
            to,
            seq,
            ack,
            flags,
            window: 60_000,
            urgent: 0,
            options: &[],
            payload,
        }
        .frame()
    };
    network.frame(PORT, &segment(CLIENT_ISN, 0, flag::SYN, &[]));
    let ack = network.base((from.port(), to.port())).wrapping_add(1);
    let mut seq = CLIENT_ISN + 1;
    for payload in bytes.chunks(MAX_PAYLOAD).take(8) {
        network.frame(PORT, &segment(seq, ack, flag::ACK | flag::PSH, payload));
        seq = seq.wrapping_add(payload.len() as u32);
        network.pass(Duration::from_millis(1));
        while let Some(query) = network.query() {
            assert!(is_query(&query.message), "{:02x?}", query.message);
            feedback::note(41);
            let answer = answer_to(&query.message);
            network.answer(query.id, &answer);
        }
    }
    network.frame(PORT, &segment(seq, ack, flag::RST, &[]));
}

/// What the DNS service makes of a query that nobody else answers.
fn answer_to(query: &[u8]) -> Vec<u8> {
    let answer = match message::inspect(query) {
        Inspected::Answer(answer) => answer,
        Inspected::Question(question) => {
            feedback::note(42);
            assert!(question.end <= query.len());
            message::error(query, &question, ResponseCode::NXDomain)
        }
        Inspected::Nothing => {
            feedback::note(43);
            let mut echo = query.to_vec();
            echo[2] |= 0x80;
            return echo;
        }
    };
    assert_eq!(answer[..2], query[..2], "another id");
    assert!(!is_query(&answer) && answer.len() <= query.len().max(HEADER_LEN));
    answer
}

/// The answer of a server to a query that is always the same: judged, and passed on to a client that
/// takes 512 bytes.
pub fn answer(input: &[u8]) {
    // Without its OPT record the query takes no more than 512 bytes.
    let mut asked = dns_message("a.example");
    asked.truncate(asked.len() - 11);
    asked[11] = 0;
    match message::judge(input, 0x1234, &asked[HEADER_LEN..]) {
        Verdict::Stray => feedback::note(40),
        verdict => {
            feedback::note(41 + u32::from(verdict == Verdict::Final));
            assert_eq!(input[..2], [0x12, 0x34], "another id");
            assert_ne!(input[2] & 0x80, 0, "a query");
        }
    }
    let mut network = Network::new(SETTINGS);
    let from = SocketAddr::new(address(false), CLIENT_PORT);
    let to = SocketAddr::new(service(false), 53);
    network.frame(PORT, &frames::udp(from, to, &asked));
    let query = network.query().expect("a query");
    network.answer(query.id, input);
    let sent = network.sent(PORT);
    assert!(sent.len() <= 1);
    for frame in sent {
        let Ok(Some(at)) = offload::ip_at(&frame) else {
            panic!("not IP: {frame:02x?}");
        };
        let passed_on = &frame[at.payload..at.end];
        assert!(passed_on.len() <= MIN_UDP_SIZE, "{} bytes", passed_on.len());
        if input.len() <= MIN_UDP_SIZE {
            assert_eq!(passed_on, input);
        } else {
            assert_ne!(passed_on[2] & 2, 0, "cut, and does not say so");
        }
    }
    network.finish(SETTINGS);
}
