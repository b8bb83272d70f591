//! Frames and socket events of flows that exist, and connections that come and go.

use crate::{PACKETS, assert_none};
use cnet_benches::load::tcp::{INBOUND, TcpFlows, super_payload};
use cnet_benches::load::udp::{Kind, Mappings, Published};
use cnet_testkit::template::{DATAGRAM, DATAGRAMS, SUPER_PAYLOAD, SUPER_PAYLOAD_V6};

/// Flows of each test: more than a batch has frames.
const FLOWS: usize = 100;
/// More flows than are left to the processor's caches: those of a batch are read ahead.
const MANY: usize = 5_000;

#[test]
fn tcp_data_out() {
    let mut flows = TcpFlows::new(FLOWS);
    assert_none(&mut flows, TcpFlows::data_out);
    flows.world.assert_no_drops();
    let sent = 2 * PACKETS * SUPER_PAYLOAD as u64;
    assert_eq!(flows.world.hosts.sent, sent);
}

#[test]
fn pure_acks() {
    let mut flows = TcpFlows::new(FLOWS);
    let before = flows.world.sink.frames;
    assert_none(&mut flows, TcpFlows::pure_ack);
    flows.world.assert_no_drops();
    assert_eq!(flows.world.sink.frames, before, "an ACK is not answered");
}

#[test]
fn tcp_data_in() {
    let mut flows = TcpFlows::new(FLOWS);
    let before = flows.world.sink.frames;
    assert_none(&mut flows, TcpFlows::data_in);
    flows.world.end_batch();
    flows.world.assert_no_drops();
    assert_eq!(flows.world.sink.frames - before, 2 * PACKETS);
    assert_eq!(flows.world.hosts.discarded, 2 * PACKETS * INBOUND as u64);
}

#[test]
fn tcp_both_ways_at_once() {
    let mut flows = TcpFlows::new(FLOWS);
    assert_none(&mut flows, |flows| {
        flows.data_out();
        flows.data_in();
    });
    flows.world.assert_no_drops();
}

#[test]
fn tcp_over_ipv6() {
    let mut flows = TcpFlows::new_v6(FLOWS);
    assert_none(&mut flows, |flows| {
        flows.data_out();
        flows.pure_ack();
        flows.data_in();
    });
    flows.world.end_batch();
    flows.world.assert_no_drops();
    let sent = 2 * PACKETS * SUPER_PAYLOAD_V6 as u64;
    assert_eq!(flows.world.hosts.sent, sent);
    assert_eq!(flows.world.hosts.discarded, 2 * PACKETS * INBOUND as u64);
    assert_none(&mut flows, TcpFlows::open_and_reset);
    flows.world.assert_no_drops();
}

#[test]
fn sockets_that_are_full_for_a_moment() {
    for mut flows in [TcpFlows::new(FLOWS), TcpFlows::new_v6(FLOWS)] {
        let each = super_payload(flows.is_v6()) as u64;
        assert_none(&mut flows, TcpFlows::stall);
        flows.world.end_batch();
        flows.world.assert_no_drops();
        assert_eq!(flows.world.hosts.sent, 2 * PACKETS * each);
        assert_eq!(flows.world.network.unsent(), 0);
        assert_eq!(flows.world.hosts.refusals, 2 * PACKETS);
    }
}

#[test]
fn syns_and_connections_that_end() {
    let mut flows = TcpFlows::new(FLOWS);
    assert_none(&mut flows, TcpFlows::syn);
    assert_none(&mut flows, TcpFlows::open_and_reset);
    flows.world.end_batch();
    flows.world.assert_no_drops();
    let counters = flows.world.network.report().tcp;
    assert_eq!(counters.opened, FLOWS as u64 + 4 * PACKETS);
    assert_eq!(flows.world.network.flows(), FLOWS);
}

#[test]
fn udp_small_out() {
    let mut mappings = Mappings::new(Kind::Udp, FLOWS);
    assert_none(&mut mappings, Mappings::small_out);
    mappings.world.end_batch();
    mappings.world.assert_no_drops();
    let opening = FLOWS as u64;
    assert_eq!(mappings.world.hosts.sends, opening + 2 * PACKETS);
}

#[test]
fn udp_small_out_in_runs() {
    let mut mappings = Mappings::new(Kind::Udp, 1);
    assert_none(&mut mappings, Mappings::small_out);
    mappings.world.end_batch();
    mappings.world.assert_no_drops();
    let sends = mappings.world.hosts.sends;
    assert!(sends < PACKETS, "{sends} sends: nothing was joined");
    let bytes = mappings.world.hosts.sent_datagram_bytes;
    assert_eq!(bytes, 64 * (1 + 2 * PACKETS));
}

#[test]
fn udp_small_in() {
    let mut mappings = Mappings::new(Kind::Udp, FLOWS);
    assert_none(&mut mappings, Mappings::small_in);
    mappings.world.assert_no_drops();
    assert_eq!(mappings.world.sink.frames, 2 * PACKETS);
}

#[test]
fn udp_super_frames_out() {
    let mut mappings = Mappings::new(Kind::Udp, FLOWS);
    assert_none(&mut mappings, Mappings::super_out);
    mappings.world.assert_no_drops();
    let bytes = mappings.world.hosts.sent_datagram_bytes;
    let opening = 64 * FLOWS as u64;
    let each = (DATAGRAM * DATAGRAMS) as u64;
    assert_eq!(bytes, opening + 2 * PACKETS * each);
    let sends = mappings.world.hosts.sends;
    assert_eq!(sends, FLOWS as u64 + 2 * PACKETS);
}

#[test]
fn udp_super_frames_in() {
    let mut mappings = Mappings::new(Kind::Udp, FLOWS);
    assert_none(&mut mappings, Mappings::super_in);
    mappings.world.assert_no_drops();
    assert_eq!(mappings.world.sink.frames, 2 * PACKETS);
}

#[test]
fn udp_over_ipv6() {
    let mut mappings = Mappings::new(Kind::UdpV6, FLOWS);
    assert_none(&mut mappings, |mappings| {
        mappings.small_out();
        mappings.super_out();
        mappings.small_in();
        mappings.super_in();
    });
    mappings.world.end_batch();
    mappings.world.assert_no_drops();
    let small = 64 * (FLOWS as u64 + 2 * PACKETS);
    let large = 2 * PACKETS * (DATAGRAM * DATAGRAMS) as u64;
    assert_eq!(mappings.world.hosts.sent_datagram_bytes, small + large);
    assert_eq!(mappings.world.sink.frames, 2 * 2 * PACKETS);
}

#[test]
fn a_published_udp_port() {
    let mut published = Published::new(FLOWS as u16);
    let before = published.world.sink.frames;
    assert_none(&mut published, Published::ask_and_answer);
    published.world.end_batch();
    published.world.assert_no_drops();
    assert_eq!(published.world.sink.frames - before, 2 * PACKETS);
    assert_eq!(published.world.hosts.sends, 2 * PACKETS);
    assert_eq!(published.world.network.flows(), 0, "no mapping was needed");
}

#[test]
fn ping() {
    let mut mappings = Mappings::new(Kind::Ping, FLOWS);
    assert_none(&mut mappings, |mappings| {
        mappings.small_out();
        mappings.small_in();
    });
    mappings.world.assert_no_drops();
    assert_eq!(mappings.world.hosts.sends, FLOWS as u64 + 2 * PACKETS);
    assert_eq!(mappings.world.sink.frames, 2 * PACKETS);
}

#[test]
fn with_many_flows() {
    let mut flows = TcpFlows::new(MANY);
    // Each flow has sent once.
    (0..MANY).for_each(|_| flows.data_in());
    assert_none(&mut flows, |flows| {
        flows.data_out();
        flows.pure_ack();
        flows.data_in();
    });
    flows.world.end_batch();
    flows.world.assert_no_drops();
    assert_eq!(flows.world.hosts.sent, 2 * PACKETS * SUPER_PAYLOAD as u64);
    let received = (MANY as u64 + 2 * PACKETS) * INBOUND as u64;
    assert_eq!(flows.world.hosts.discarded, received);
    assert_eq!(flows.world.network.flows(), MANY);

    let mut mappings = Mappings::new(Kind::Udp, MANY);
    assert_none(&mut mappings, |mappings| {
        mappings.small_out();
        mappings.super_out();
        mappings.small_in();
    });
    mappings.world.end_batch();
    mappings.world.assert_no_drops();
    let small = MANY as u64 + 2 * PACKETS;
    let large = 2 * PACKETS * (DATAGRAM * DATAGRAMS) as u64;
    assert_eq!(mappings.world.hosts.sent_datagram_bytes, 64 * small + large);
    assert_eq!(mappings.world.sink.frames, 2 * PACKETS);

    let mut pings = Mappings::new(Kind::Ping, MANY);
    assert_none(&mut pings, |pings| {
        pings.small_out();
        pings.small_in();
    });
    pings.world.end_batch();
    pings.world.assert_no_drops();
    assert_eq!(pings.world.hosts.sends, MANY as u64 + 2 * PACKETS);
    assert_eq!(pings.world.sink.frames, 2 * PACKETS);
}
