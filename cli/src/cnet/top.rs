//! `cnet top`: what passes, by container.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::table::table;
use crate::each_network::one_or_each;
use crate::log::report;
use crate::program::{all_of, tell};
use cnet::control::{ContainerStatistics, Counters, RouterStatistics, StatisticsReport};
use cnet::network::Network;

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The options of `cnet top`.
#[derive(Args, Debug)]
pub(crate) struct TopOptions {
    /// Only this network.
    #[arg(long, value_name = "NET")]
    network: Option<String>,

    /// Print once, over one interval, and end; the default where standard output is no terminal.
    #[arg(long, conflicts_with = "watch")]
    once: bool,

    /// Print again and again; the default on a terminal.
    #[arg(long)]
    watch: bool,

    /// Seconds between two looks.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    interval: u64,

    /// How to print it.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,

    /// Also print what each network has counted since it started: its flows, TCP connections, the
    /// router's port, the gateway's services, DNS queries, and packets that the router dropped.
    #[arg(short, long)]
    verbose: bool,
}

/// What passed one container, by network and name.
type Snapshot = BTreeMap<(String, String), ContainerStatistics>;

/// What the networks told at one time.
struct Look {
    containers: Snapshot,
    /// Without their containers.
    networks: Vec<StatisticsReport>,
    /// What is wrong with the networks that do not answer.
    failures: Vec<anyhow::Error>,
}

/// The JSON of `--verbose`.
#[derive(Serialize)]
struct Verbose<'a> {
    containers: &'a [Rates],
    networks: &'a [StatisticsReport],
}

/// Rates of one container, in units a second.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Rates {
    network: String,
    name: String,
    bits_sent: f64,
    frames_sent: f64,
    bits_received: f64,
    frames_received: f64,
    dropped: f64,
    /// Dropped since the network started, by reason.
    drops: BTreeMap<String, u64>,
}

/// Prints rates until it is stopped, or once.
pub(super) async fn top(options: TopOptions) -> anyhow::Result<()> {
    let terminal = rustix::termios::isatty(rustix::stdio::stdout());
    let goes_on = options.watch || terminal && !options.once;
    let (mut before, mut begun) = (look(&options).await?, Instant::now());
    loop {
        tokio::time::sleep(Duration::from_secs(options.interval)).await;
        let (after, now) = (look(&options).await?, Instant::now());
        let rates = rates(&before.containers, &after.containers, now - begun);
        let text = match (options.format, options.verbose) {
            (Format::Json, false) => format!("{}\n", serde_json::to_string(&rates)?),
            (Format::Json, true) => {
                let (containers, networks) = (&*rates, &*after.networks);
                let all = Verbose {
                    containers,
                    networks,
                };
                format!("{}\n", serde_json::to_string(&all)?)
            }
            (Format::Table, false) => shown(&rates),
            (Format::Table, true) => format!("{}\n{}", shown(&rates), counted(&after.networks)),
        };
        // On a terminal, home and clear to its end; each table stands where the last one was.
        let clear = match options.format == Format::Table && goes_on && terminal {
            true => "\x1b[H\x1b[J",
            false => "",
        };
        if !super::print(&format!("{clear}{text}"))? || !goes_on {
            return all_of(after.failures.into_iter().map(Err));
        }
        for failure in &after.failures {
            tell(&report(failure));
        }
        (before, begun) = (after, now);
    }
}

/// Asks the networks what has passed.
async fn look(options: &TopOptions) -> anyhow::Result<Look> {
    let (mut snapshot, mut networks) = (Snapshot::new(), Vec::new());
    let ask = |network: Network| async move { network.statistics().await };
    let answers = one_or_each(options.network.as_deref(), ask).await?;
    for mut report in answers.given {
        for container in std::mem::take(&mut report.containers) {
            let key = (report.network.clone(), container.name.clone());
            snapshot.insert(key, container);
        }
        networks.push(report);
    }
    Ok(Look {
        containers: snapshot,
        networks,
        failures: answers.failures,
    })
}

fn rates(before: &Snapshot, after: &Snapshot, time: Duration) -> Vec<Rates> {
    let seconds = time.as_secs_f64().max(f64::EPSILON);
    let mut rates: Vec<Rates> = after
        .iter()
        .map(|((network, name), now)| {
            let then = before.get(&(network.clone(), name.clone()));
            // Counters start at 0 when a container joins, or the network starts again.
            let rate = |of: fn(&ContainerStatistics) -> u64| {
                let past = then.map_or(0, of);
                let passed = of(now).checked_sub(past).unwrap_or(of(now));
                passed as f64 / seconds
            };
            Rates {
                network: network.clone(),
                name: name.clone(),
                bits_sent: 8.0 * rate(|c| c.bytes_sent),
                frames_sent: rate(|c| c.frames_sent),
                bits_received: 8.0 * rate(|c| c.bytes_received),
                frames_received: rate(|c| c.frames_received),
                dropped: rate(|c| c.drops.values().sum()),
                drops: now.drops.clone(),
            }
        })
        .collect();
    let busy = |r: &Rates| r.bits_sent + r.bits_received;
    rates.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
    rates
}

fn shown(rates: &[Rates]) -> String {
    let heading = [
        "NAME", "NETWORK", "SENT", "FRAMES/s", "RECEIVED", "FRAMES/s", "DROPS/s", "DROPPED",
    ];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for r in rates {
        lines.push(vec![
            r.name.clone(),
            r.network.clone(),
            bits(r.bits_sent),
            format!("{:.0}", r.frames_sent),
            bits(r.bits_received),
            format!("{:.0}", r.frames_received),
            format!("{:.0}", r.dropped),
            listed(&r.drops),
        ]);
    }
    table(&lines)
}

/// What networks have counted since they started.
fn counted(networks: &[StatisticsReport]) -> String {
    let heading = [
        "NETWORK", "FLOWS", "TCP", "FORWARDS", "WORKERS", "ROUTER", "GATEWAY", "DNS", "DROPPED",
    ];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for network in networks {
        lines.push(vec![
            network.network.clone(),
            network.flows.to_string(),
            listed(&network.tcp),
            listed(&network.forwards),
            listed(&network.workers),
            listed(&of_router(&network.router)),
            listed(&network.gateway),
            listed(&network.dns),
            listed(&network.drops),
        ]);
    }
    table(&lines)
}

/// What passed the router's port, by name.
fn of_router(router: &RouterStatistics) -> Counters {
    let counted = [
        ("bytes_received", router.bytes_received),
        ("bytes_sent", router.bytes_sent),
        ("dropped", router.drops.values().sum()),
        ("frames_received", router.frames_received),
        ("frames_sent", router.frames_sent),
    ];
    counted.map(|(name, n)| (name.to_owned(), n)).into()
}

/// Counters that are not 0, with commas between.
fn listed(counters: &Counters) -> String {
    let counters = counters.iter().filter(|(_, count)| **count > 0);
    let shown: Vec<String> = counters
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    shown.join(", ")
}

/// Bits a second, with three digits that count.
fn bits(rate: f64) -> String {
    let (mut rate, mut unit) = (rate, "bit/s");
    for larger in ["kbit/s", "Mbit/s", "Gbit/s"] {
        if rate < 1000.0 {
            break;
        }
        (rate, unit) = (rate / 1000.0, larger);
    }
    let digits = match rate {
        r if r >= 100.0 || unit == "bit/s" => 0,
        r if r >= 10.0 => 1,
        _ => 2,
    };
    format!("{rate:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, sent: u64, received: u64) -> Snapshot {
        let mut container = ContainerStatistics::new(name);
        container.bytes_sent = sent;
        container.frames_sent = sent / 100;
        container.bytes_received = received;
        container.frames_received = received / 100;
        container.drops = BTreeMap::from([("spoofed".to_owned(), sent / 1000)]);
        BTreeMap::from([(("cnet".to_owned(), name.to_owned()), container)])
    }

    #[test]
    fn rates_are_differences_over_time() {
        let (before, after) = (snapshot("web", 1000, 0), snapshot("web", 5000, 100));
        let found = rates(&before, &after, Duration::from_secs(2));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bits_sent, 16_000.0);
        assert_eq!(found[0].frames_sent, 20.0);
        assert_eq!(found[0].bits_received, 400.0);
        assert_eq!(found[0].dropped, 2.0);
        // The network started again in between.
        let found = rates(&after, &before, Duration::from_secs(1));
        assert_eq!(found[0].bits_sent, 8000.0);
        // One that came, one that went.
        let found = rates(&before, &snapshot("db", 10, 0), Duration::from_secs(1));
        assert_eq!((found.len(), found[0].bits_sent), (1, 80.0));
    }

    #[test]
    fn networks_are_shown_with_what_they_counted() {
        let mut report = StatisticsReport::new("lan");
        report.flows = 2;
        report.tcp = [("opened", 5), ("evicted", 0)]
            .map(|(name, count)| (name.to_owned(), count))
            .into();
        report.router.frames_sent = 7;
        report.router.drops = BTreeMap::from([("policy".to_owned(), 3)]);
        let shown = counted(&[report]);
        let words: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        let router = ["dropped", "3,", "frames_sent", "7"];
        assert_eq!(words, [&["lan", "2", "opened", "5"][..], &router].concat());
    }

    #[test]
    fn rates_are_shown_with_their_unit() {
        for (rate, text) in [
            (0.0, "0 bit/s"),
            (999.0, "999 bit/s"),
            (1234.0, "1.23 kbit/s"),
            (45_678_000.0, "45.7 Mbit/s"),
            (28_900_000_000.0, "28.9 Gbit/s"),
            (123_400_000_000.0, "123 Gbit/s"),
        ] {
            assert_eq!(bits(rate), text);
        }
    }
}
