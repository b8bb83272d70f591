//! What a seed would take long to find: one who misbehaves, and others who shall not notice.

use cnet_nat::host::HostError;
use cnet_wire::time::Duration;

use crate::plan::{FlowPlan, Plan};
use crate::world::World;
use cnet_testkit::addresses;
use cnet_testkit::app::Ending;
use cnet_testkit::frames::{Tcp, flag};
use cnet_testkit::host::simulated::Fate;
use cnet_testkit::link::Schedule;

/// Others beside the offenders, who come a second later.
const OTHERS: usize = 5;
const LATER: Duration = Duration::from_secs(1);

/// Five flows of 200 kB each way, numbered from `first`.
fn others(first: usize) -> impl Iterator<Item = FlowPlan> {
    (first..first + OTHERS).map(|n| FlowPlan {
        start: LATER,
        ..FlowPlan::fair(n, 200_000, 200_000)
    })
}

/// Runs the world and returns the longest time one of the flows from `first` on took.
fn slowest(mut world: World, first: usize) -> Duration {
    let done = world.run_to_end();
    assert_eq!(done, Ok(()));
    (first..first + OTHERS)
        .filter_map(|n| world.duration_of(n))
        .max()
        .expect("others there were")
}

/// How long the others take without offenders.
fn undisturbed() -> Duration {
    slowest(World::new(Plan::fair(others(0).collect()), false), 0)
}

#[test]
fn readers_that_stop_do_not_stop_others() {
    let stopped = |n| {
        let mut flow = FlowPlan::fair(n, 3_000_000, 0);
        flow.far.stalls = vec![(0, Duration::from_secs(600))];
        flow.send_buffer = 10_000;
        flow
    };
    let flows = (0..20).map(stopped).chain(others(20)).collect();
    let disturbed = slowest(World::new(Plan::fair(flows), false), 20);
    assert!(disturbed < undisturbed() * 2, "{disturbed:?}");
}

#[test]
fn a_reader_of_single_bytes_does_not_stop_others() {
    let mut slow = FlowPlan::fair(0, 20_000, 0);
    slow.far.read_chunk = 1;
    slow.far.pace = Duration::from_millis(1);
    slow.send_buffer = 4_000;
    let mut container_slow = FlowPlan::fair(1, 0, 20_000);
    container_slow.container.read_chunk = 1;
    container_slow.container.pace = Duration::from_millis(1);
    container_slow.socket.rx_buffer = 2_000;
    let flows = [slow, container_slow]
        .into_iter()
        .chain(others(2))
        .collect();
    let disturbed = slowest(World::new(Plan::fair(flows), false), 2);
    assert!(disturbed < undisturbed() * 2, "{disturbed:?}");
}

#[test]
fn a_thousand_connects_to_a_black_hole_do_not_stop_others() {
    let mut hole = FlowPlan::fair(OTHERS, 0, 0);
    hole.fate = Fate::Fail(HostError::TimedOut);
    hole.fate_delay = Duration::from_secs(127);
    let to = hole.remote;
    let mut plan = Plan::fair(others(0).collect());
    plan.flows.push(hole);
    let mut world = World::new(plan, false);
    for port in 0..1000 {
        let syn = Tcp {
            from: (addresses::IPV4, 30_000 + port).into(),
            to,
            seq: u32::from(port) << 16,
            ack: 0,
            flags: flag::SYN,
            window: 65_535,
            urgent: 0,
            options: &[2, 4, 5, 0xb4],
            payload: &[],
        };
        world.send_up(syn.frame());
    }
    let disturbed = slowest(world, 0);
    assert!(disturbed < undisturbed() * 2, "{disturbed:?}");
}

/// When stalled flows hold all the unsent bytes there may be, others lose what their sockets do not take at
/// once. They get on all the same, at the pace of retransmission at worst.
#[test]
fn an_exhausted_budget_stops_nobody_for_good() {
    let stopped = |n| {
        let mut flow = FlowPlan::fair(n, 1_000_000, 0);
        flow.far.stalls = vec![(0, Duration::from_secs(600))];
        flow.send_buffer = 10_000;
        flow
    };
    let mut plan = Plan::fair((0..5).map(stopped).chain(others(5)).collect());
    plan.unsent_limit = 200_000;
    for flow in &mut plan.flows[5..] {
        flow.send_buffer = 20_000;
        flow.far.pace = Duration::from_micros(100);
    }
    let disturbed = slowest(World::new(plan, false), 5);
    assert!(disturbed < Duration::from_secs(20), "{disturbed:?}");
}

/// On a long path the windows decide: 3 MB within the round trips that the container's buffer of
/// 300 kB, or the core's own window, make necessary, and a few more.
#[test]
fn windows_are_used_in_full() {
    let mut plan = Plan::fair(vec![
        FlowPlan::fair(0, 0, 3_000_000),
        FlowPlan::fair(1, 3_000_000, 0),
    ]);
    for flow in &mut plan.flows {
        flow.socket.rx_buffer = 300_000;
        flow.socket.tx_buffer = 300_000;
        flow.receive_buffer = 1 << 20;
        flow.send_buffer = 1 << 20;
    }
    let one_way = Duration::from_millis(10);
    plan.up.delay = (one_way, one_way);
    plan.down.delay = (one_way, one_way);
    let mut world = World::new(plan, false);
    assert_eq!(world.run_to_end(), Ok(()));
    for n in [0, 1] {
        let took = world.duration_of(n).expect("it ended");
        assert!(took < 20 * 2 * one_way, "flow {n}: {took:?}");
    }
}

/// Runs one flow over `down` and returns how long its container's end took.
fn alone(flow: FlowPlan, down: Schedule) -> Duration {
    let mut plan = Plan::fair(vec![flow]);
    plan.down = down;
    let mut world = World::new(plan, false);
    assert_eq!(world.run_to_end(), Ok(()));
    world.duration_of(0).expect("it ended")
}

/// A far end that reads 1 MB a second is given as much, though its socket is full all the time.
#[test]
fn a_slow_reader_sets_the_pace() {
    let mut flow = FlowPlan::fair(0, 1_000_000, 0);
    flow.far.read_chunk = 10_000;
    flow.far.pace = Duration::from_millis(10);
    flow.far.ending = Ending::AfterPeer;
    flow.send_buffer = 20_000;
    let took = alone(flow, Schedule::PERFECT);
    let range = Duration::from_millis(900)..Duration::from_millis(1300);
    assert!(range.contains(&took), "{took:?}");
}

/// A loss costs a round trip, not a timeout.
#[test]
fn losses_are_repaired_without_timeouts() {
    let lossy = Schedule {
        loss: 5,
        ..Schedule::PERFECT
    };
    let mut flow = FlowPlan::fair(0, 0, 3_000_000);
    flow.receive_buffer = 1 << 20;
    let took = alone(flow, lossy);
    assert!(took < Duration::from_millis(100), "{took:?}");
}
