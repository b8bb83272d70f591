//! How cost grows with the number of flows, in one run.
//!
//! `cargo bench -p cnet-benches --bench scale` prints, for each packet family, nanoseconds a packet at 1, 1,000,
//! 100,000 and 1,000,000 flows and the ratio of the last to 1,000, then memory a flow, the timers of
//! idle flows, and cost by the number of containers. All sizes of a family are measured in turns of a
//! few milliseconds, and of many turns the median counts: another program on the machine disturbs
//! all of them alike. Flows are visited in random order, so that at a million of them every one is
//! out of the caches. What the harness itself costs (frames are made on the spot) is measured the
//! same way and taken off.
//!
//! With the argument `--instructions FAMILY FLOWS PACKETS` it does just that much work, to be run
//! under `valgrind --tool=callgrind`.

use std::time::Duration;

use cnet_benches::load::containers::{Containers, Crowd, To};
use cnet_benches::load::tcp::TcpFlows;
use cnet_benches::load::udp::{Kind, Mappings};

/// Packets in one turn.
const TURN: u32 = 20_000;
/// Turns at each size.
const TURNS: usize = 41;

/// A family's name, what is done for a packet of it, and how many frames the harness makes for that.
type Step<W> = (&'static str, fn(&mut W), u32);

const TCP: [Step<TcpFlows>; 5] = [
    ("tcp_data_out", TcpFlows::data_out, 1),
    ("tcp_ack", TcpFlows::pure_ack, 1),
    ("tcp_data_in", TcpFlows::data_in, 1),
    ("tcp_syn", TcpFlows::syn, 2),
    ("tcp_open_and_reset", TcpFlows::open_and_reset, 3),
];

const TCP_V6: [Step<TcpFlows>; 3] = [
    ("tcp_data_out_v6", TcpFlows::data_out, 1),
    ("tcp_ack_v6", TcpFlows::pure_ack, 1),
    ("tcp_data_in_v6", TcpFlows::data_in, 1),
];

const UDP: [Step<Mappings>; 4] = [
    ("udp_small_out", Mappings::small_out, 1),
    ("udp_small_in", Mappings::small_in, 0),
    ("udp_super_out", Mappings::super_out, 1),
    ("udp_super_in", Mappings::super_in, 0),
];

const UDP_V6: [Step<Mappings>; 2] = [
    ("udp_small_out_v6", Mappings::small_out, 1),
    ("udp_small_in_v6", Mappings::small_in, 0),
];

const PING: [Step<Mappings>; 2] = [
    ("ping_out", Mappings::small_out, 1),
    ("ping_in", Mappings::small_in, 0),
];

/// Processor time of this thread, in nanoseconds: what others on the machine take is not in it.
fn processor_time() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}

/// Nanoseconds a packet.
fn turn<W>(state: &mut W, step: fn(&mut W)) -> f64 {
    let start = processor_time();
    for _ in 0..TURN {
        step(state);
    }
    (processor_time() - start) as f64 / f64::from(TURN)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

/// Medians of `step` in each state, measured in turns.
fn in_turns<W>(states: &mut [W], step: fn(&mut W)) -> Vec<f64> {
    let mut times = vec![Vec::with_capacity(TURNS); states.len()];
    for _ in 0..TURNS {
        for (state, times) in states.iter_mut().zip(&mut times) {
            times.push(turn(state, step));
        }
    }
    times.iter_mut().map(|t| median(t)).collect()
}

/// One table: a row a family, a column a size.
fn table<W>(sizes: &[usize], states: &mut [W], steps: &[Step<W>], overhead: &[f64]) {
    for &(name, step, frames) in steps {
        let times = in_turns(states, step);
        let counted = allocation_counter::measure(|| {
            for state in states.iter_mut() {
                turn(state, step);
            }
        });
        let calls = counted.count_total;
        print!("{name:20}");
        let net: Vec<f64> = times
            .iter()
            .zip(overhead)
            .map(|(t, o)| t - o * f64::from(frames))
            .collect();
        for t in &net {
            print!("{t:10.1}");
        }
        let ratio = sizes.iter().position(|&n| n == 1_000).map(|i| {
            let most = net.last().copied().unwrap_or(0.0);
            most / net[i]
        });
        println!("{:10.2}{calls:10}", ratio.unwrap_or(f64::NAN));
    }
}

fn heading(what: &str, sizes: &[usize]) {
    print!("\n{what:20}");
    for n in sizes {
        print!("{n:10}");
    }
    println!("{:>10}{:>10}", "ratio", "allocs");
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// Bytes a flow: those asked of the allocator, and those that became resident.
fn memory(name: &str, count: usize, open: impl FnOnce()) {
    let rss = resident();
    let held = allocation_counter::measure(open).bytes_current;
    let each = held as f64 / count as f64;
    let rss = resident().saturating_sub(rss) as f64 / count as f64;
    println!("{name:20}{count:10}{each:12.1}{rss:12.1}");
}

fn memories(counts: &[usize]) {
    println!(
        "\n{:20}{:>10}{:>12}{:>12}",
        "bytes a flow", "flows", "asked", "resident"
    );
    for &count in counts {
        let mut flows = TcpFlows::unopened(count);
        memory("tcp", count, || flows.open_all());
    }
    for &count in counts {
        let mut mappings = Mappings::unopened(Kind::Udp, count);
        memory("udp", count, || mappings.open_all());
    }
}

/// What idle flows ask of the clock.
fn idle(counts: &[usize]) {
    println!("\n{:20}{:>10}{:>12}", "wake-ups in an hour", "flows", "");
    for &count in counts {
        let mut flows = TcpFlows::new(count);
        for _ in 0..2 * count.min(10_000) {
            flows.data_in();
        }
        flows.world.end_batch();
        // What the traffic has left behind.
        let settling = flows.world.sleep(Duration::from_secs(60));
        let wakes = flows.world.sleep(Duration::from_secs(3600));
        println!(
            "{:20}{count:10}{wakes:12} (and {settling} in the minute before)",
            "tcp"
        );
    }
}

/// What workers that share a switch cost each other: processor time of one, while others do as much.
fn workers(counts: [usize; 2]) {
    println!("\n{:20}{:>10}{:>10}", "by workers", counts[0], counts[1]);
    for (name, to) in [
        ("verdict_gateway", To::Gateway),
        ("verdict_unicast", To::Neighbour),
    ] {
        print!("{name:20}");
        for count in counts {
            let first = Crowd::new(64, to);
            let crowds: Vec<_> = (0..count).map(|_| first.sibling()).collect();
            let threads = crowds.into_iter().map(|mut crowd| {
                std::thread::spawn(move || {
                    let verdict = |crowd: &mut Crowd| {
                        std::hint::black_box(crowd.verdict());
                    };
                    let mut times: Vec<_> = (0..TURNS).map(|_| turn(&mut crowd, verdict)).collect();
                    median(&mut times)
                })
            });
            let threads: Vec<_> = threads.collect();
            let times = threads.into_iter().map(|t| t.join().unwrap_or(f64::NAN));
            print!("{:10.1}", times.sum::<f64>() / count as f64);
        }
        println!();
    }
}

fn instructions(args: &[String]) -> Option<()> {
    let [family, flows, packets] = args else {
        return None;
    };
    let (flows, packets): (usize, u64) = (flows.parse().ok()?, packets.parse().ok()?);
    if let Some(&(_, step, _)) = TCP.iter().find(|s| s.0 == family) {
        let mut state = TcpFlows::new(flows);
        (0..packets).for_each(|_| step(&mut state));
    } else {
        let &(_, step, _) = UDP.iter().find(|s| s.0 == family)?;
        let mut state = Mappings::new(Kind::Udp, flows);
        (0..packets).for_each(|_| step(&mut state));
    }
    Some(())
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "--instructions") {
        if instructions(&args[at + 1..]).is_none() {
            eprintln!("--instructions FAMILY FLOWS PACKETS");
            std::process::exit(2);
        }
        return;
    }
    // Under `cargo test` it is enough that everything runs.
    let quick = args.iter().any(|a| a == "--test");
    let sizes: &[usize] = if quick {
        &[1, 1_000]
    } else {
        &[1, 1_000, 100_000, 1_000_000]
    };
    memories(&sizes[sizes.len() / 2..]);
    idle(&sizes[sizes.len() / 2..]);

    heading("ns a packet", sizes);
    let tcp = |make: fn(usize) -> TcpFlows, steps| {
        let mut flows: Vec<_> = sizes.iter().map(|&n| make(n)).collect();
        let overhead = in_turns(&mut flows, TcpFlows::nothing);
        print!("{:20}", "(harness)");
        overhead.iter().for_each(|t| print!("{t:10.1}"));
        println!();
        table(sizes, &mut flows, steps, &overhead);
        flows.iter().for_each(|f| f.world.assert_no_drops());
        overhead
    };
    let overhead = tcp(TcpFlows::new, &TCP);
    let overhead_v6 = tcp(TcpFlows::new_v6, &TCP_V6);
    for (kind, steps, overhead) in [
        (Kind::Udp, &UDP[..], &overhead),
        (Kind::UdpV6, &UDP_V6, &overhead_v6),
        (Kind::Ping, &PING, &overhead),
    ] {
        let mut mappings: Vec<_> = sizes.iter().map(|&n| Mappings::new(kind, n)).collect();
        table(sizes, &mut mappings, steps, overhead);
        mappings.iter().for_each(|m| m.world.assert_no_drops());
    }

    let ports: &[usize] = if quick {
        &[1, 64]
    } else {
        &[1, 64, 1_000, 4_096]
    };
    heading("by containers", ports);
    let none = vec![0.0; ports.len()];
    let networks = |to: To| -> Vec<Containers> {
        ports
            .iter()
            .map(|&n| Containers::new(n as u32, to))
            .collect()
    };
    let step: [Step<Containers>; 1] = [("udp_small_out", Containers::send, 0)];
    table(ports, &mut networks(To::Gateway), &step, &none);
    workers([1, 2]);
}
