//! What a flow costs in memory, as an upper bound that a change must mean to move.

use cnet_benches::load::tcp::TcpFlows;
use cnet_benches::load::udp::{Kind, Mappings};

/// Enough that what does not grow with the flows counts little.
const FLOWS: usize = 20_000;
/// Bytes a TCP flow may cost, table, index and timer together: 100,000 of them, their host sockets'
/// entries and the process itself are to fit into 60 MB.
const TCP_FLOW: f64 = 320.0;
/// The same for a UDP mapping.
const UDP_MAPPING: f64 = 200.0;

fn each(open: impl FnOnce()) -> f64 {
    allocation_counter::measure(open).bytes_current as f64 / FLOWS as f64
}

#[test]
fn a_flow_stays_small() {
    let mut flows = TcpFlows::unopened(FLOWS);
    let tcp = each(|| flows.open_all());
    let mut mappings = Mappings::unopened(Kind::Udp, FLOWS);
    let udp = each(|| mappings.open_all());
    assert!(tcp < TCP_FLOW, "{tcp} bytes a TCP flow");
    assert!(udp < UDP_MAPPING, "{udp} bytes a UDP mapping");
}
