//! Whole translation, from the frame or the socket's event to what goes out, by the number of flows.

use criterion::{BenchmarkId, Criterion};

use crate::{group, is_test, measure};
use cnet_benches::load::tcp::TcpFlows;
use cnet_benches::load::udp::{Kind, Mappings};

/// A family's name, and what is done for a packet of it.
type Family<W> = (&'static str, fn(&mut W));

fn counts(most: usize) -> impl Iterator<Item = usize> {
    let most = if is_test() { 1_000 } else { most };
    [1, 1_000, 100_000, 1_000_000]
        .into_iter()
        .filter(move |&n| n <= most)
}

pub fn tcp(c: &mut Criterion) {
    let families: [Family<TcpFlows>; 5] = [
        ("tcp_data_out", TcpFlows::data_out),
        ("tcp_ack", TcpFlows::pure_ack),
        ("tcp_data_in", TcpFlows::data_in),
        ("tcp_syn", TcpFlows::syn),
        ("tcp_open_and_reset", TcpFlows::open_and_reset),
    ];
    let mut group = group(c, "flows");
    for count in counts(1_000_000) {
        let mut flows = None;
        for (name, step) in families {
            let id = BenchmarkId::new(name, count);
            measure(&mut group, id, &mut flows, || TcpFlows::new(count), step);
        }
    }
    group.finish();
}

pub fn udp(c: &mut Criterion) {
    let families: [Family<Mappings>; 4] = [
        ("udp_small_out", Mappings::small_out),
        ("udp_small_in", Mappings::small_in),
        ("udp_super_out", Mappings::super_out),
        ("udp_super_in", Mappings::super_in),
    ];
    let mut group = group(c, "flows");
    for count in counts(1_000_000) {
        let mut mappings = None;
        for (name, step) in families {
            let id = BenchmarkId::new(name, count);
            let make = || Mappings::new(Kind::Udp, count);
            measure(&mut group, id, &mut mappings, make, step);
        }
    }
    group.finish();
}

pub fn ping(c: &mut Criterion) {
    let families: [Family<Mappings>; 2] = [
        ("ping_out", Mappings::small_out),
        ("ping_in", Mappings::small_in),
    ];
    let mut group = group(c, "flows");
    for count in counts(1_000) {
        let mut mappings = None;
        for (name, step) in families {
            let id = BenchmarkId::new(name, count);
            let make = || Mappings::new(Kind::Ping, count);
            measure(&mut group, id, &mut mappings, make, step);
        }
    }
    group.finish();
}
