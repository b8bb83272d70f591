//! What is measured: the rows of the comparison, and how a sample of each is taken.
//!
//! A row is a kind of load on a way, in a family, at an MTU. Its first metric is the one that the
//! picture shows.

use std::time::Duration;

use anyhow::Context;

use super::contenders::{Arena, Chosen, Contender, Kind, Request, Route};
use super::hosts::{Family, Hosts};
use super::load::{Direction, Window, attach, connect, datagram, flows, round_trip, stream};
use super::usage;
use super::way::Way;

/// The kind of load.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Load {
    /// TCP in bulk.
    Stream {
        /// Connections side by side.
        streams: usize,
        /// Which way the payload flows.
        direction: Direction,
    },
    /// One byte there and back.
    RoundTrip,
    /// Connect, one byte there and back, close.
    Connect,
    /// UDP.
    Datagram {
        /// Bytes of payload.
        size: usize,
        /// Which way the payload flows.
        direction: Direction,
    },
    /// The start of the program.
    Start,
    /// A container that joins a running network and leaves it, again and again.
    Attach,
    /// Nothing.
    Idle,
    /// So many connections that carry nothing.
    Flows(usize),
}

/// Whether more is better.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Better {
    /// It is.
    Higher,
    /// Less is.
    Lower,
}

/// A figure of a sample.
#[derive(Debug, Eq, PartialEq)]
pub struct Metric {
    /// What it is.
    pub name: &'static str,
    /// What it is counted in.
    pub unit: &'static str,
    /// Which way it is better.
    pub better: Better,
}

const fn metric(name: &'static str, unit: &'static str, better: Better) -> Metric {
    Metric { name, unit, better }
}

static RATE: Metric = metric("rate", "Gbit/s", Better::Higher);
static CPU_MACHINE: Metric = metric("CPU, machine", "s/GiB", Better::Lower);
static CPU_PROGRAM: Metric = metric("CPU, program", "s/GiB", Better::Lower);
static TRIPS: Metric = metric("round trips", "1/s", Better::Higher);
static TRIP_MEDIAN: Metric = metric("p50", "µs", Better::Lower);
static TRIP_P99: Metric = metric("p99", "µs", Better::Lower);
static TRIP_LONGEST: Metric = metric("max", "µs", Better::Lower);
static TRIP_STALLS: Metric = metric("over 5 ms", "trips", Better::Lower);
static STOLEN: Metric = metric("stolen from the machine", "ms", Better::Lower);
static CONNECTIONS: Metric = metric("connections", "1/s", Better::Higher);
static LOSSLESS: Metric = metric("loss < 0.1 %", "kpkt/s", Better::Higher);
static FLOOD: Metric = metric("flood, arrived", "kpkt/s", Better::Higher);
static FLOOD_LOSS: Metric = metric("flood, lost", "%", Better::Lower);
static WORKS: Metric = metric("until it works", "ms", Better::Lower);
static READY: Metric = metric("until it says ready", "ms", Better::Lower);
static JOINED: Metric = metric("p50", "ms", Better::Lower);
static JOINED_LAST: Metric = metric("max", "ms", Better::Lower);
static JOINED_FIRST: Metric = metric("first, starts the network", "ms", Better::Lower);
static RESIDENT: Metric = metric("resident", "MiB", Better::Lower);
static ANONYMOUS: Metric = metric("anonymous", "MiB", Better::Lower);
static WAKE_UPS: Metric = metric("wake-ups", "1/s", Better::Lower);
static OPEN: Metric = metric("open", "flows", Better::Higher);
static PROGRAMS: Metric = metric("in", "containers", Better::Lower);
static EACH: Metric = metric("memory a flow", "B", Better::Lower);

/// A sample's figures.
pub type Figures = Vec<(&'static Metric, f64)>;

/// A row.
#[derive(Clone, Debug)]
pub struct Work {
    /// What the command line and the report call it.
    pub name: String,
    /// How load flows.
    pub way: Way,
    /// What load.
    pub load: Load,
    /// In which family.
    pub family: Family,
    /// At which MTU of the container's interface, in bytes.
    pub mtu: u32,
    /// Whether the picture shows it.
    pub pictured: bool,
}

/// How long the parts of a sample take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Of load that lasts.
    pub window: Window,
    /// Of watching what is idle.
    pub watch: Duration,
    /// For the opening of idle flows, at most.
    pub opening: Duration,
}

/// All rows, in the order of the report.
pub fn all() -> Vec<Work> {
    let mut rows = Rows(Vec::new());
    for family in [Family::V4, Family::V6] {
        let suffix = suffix(family);
        let v4 = family == Family::V4;
        for mtu in [1500, 65520] {
            for (streams, name) in [(1, "tcp"), (4, "tcp4")] {
                for (direction, way) in WAYS {
                    let load = Load::Stream { streams, direction };
                    let name = format!("{name}-{way}-{mtu}-{suffix}");
                    rows.add(name, Way::Outbound, load, family, mtu, v4 && streams == 1);
                }
            }
        }
        rows.add(
            format!("rr-{suffix}"),
            Way::Outbound,
            Load::RoundTrip,
            family,
            1500,
            v4,
        );
        rows.add(
            format!("crr-{suffix}"),
            Way::Outbound,
            Load::Connect,
            family,
            1500,
            v4,
        );
        for size in [64, 1400] {
            for (direction, way) in WAYS {
                let load = Load::Datagram { size, direction };
                let name = format!("udp{size}-{way}-{suffix}");
                rows.add(name, Way::Outbound, load, family, 1500, v4);
            }
        }
    }
    rows.published();
    rows.neighbours();
    rows.at_rest();
    rows.0
}

/// The directions, as seen from the container that connects.
const WAYS: [(Direction, &str); 2] = [(Direction::ToServer, "out"), (Direction::ToClient, "in")];

fn suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

struct Rows(Vec<Work>);

impl Rows {
    fn add(
        &mut self,
        name: String,
        way: Way,
        load: Load,
        family: Family,
        mtu: u32,
        pictured: bool,
    ) {
        self.0.push(Work {
            name,
            way,
            load,
            family,
            mtu,
            pictured,
        });
    }

    /// Here the remote or the host connects: its "to the server" is into the container.
    fn published(&mut self) {
        let ways = [(Way::Published, "remote"), (Way::Loopback, "loopback")];
        for (way, from) in ways {
            for (direction, name) in [(Direction::ToServer, "in"), (Direction::ToClient, "out")] {
                let load = Load::Stream {
                    streams: 1,
                    direction,
                };
                let name = format!("pub-{from}-{name}");
                self.add(name, way, load, Family::V4, 1500, true);
            }
            self.add(
                format!("pub-{from}-rr"),
                way,
                Load::RoundTrip,
                Family::V4,
                1500,
                false,
            );
        }
    }

    fn neighbours(&mut self) {
        let direction = Direction::ToServer;
        for mtu in [1500, 65520] {
            for (streams, name) in [(1, "c2c-tcp"), (4, "c2c-tcp4")] {
                let load = Load::Stream { streams, direction };
                let pictured = streams == 1 && mtu == 1500;
                self.add(
                    format!("{name}-{mtu}"),
                    Way::Neighbour,
                    load,
                    Family::V4,
                    mtu,
                    pictured,
                );
            }
        }
        let load = Load::Stream {
            streams: 1,
            direction,
        };
        self.add(
            "c2c-tcp-1500-v6".into(),
            Way::Neighbour,
            load,
            Family::V6,
            1500,
            false,
        );
        self.add(
            "c2c-rr".into(),
            Way::Neighbour,
            Load::RoundTrip,
            Family::V4,
            1500,
            false,
        );
        self.add(
            "c2c-crr".into(),
            Way::Neighbour,
            Load::Connect,
            Family::V4,
            1500,
            false,
        );
        for size in [64, 1400] {
            let load = Load::Datagram { size, direction };
            self.add(
                format!("c2c-udp{size}"),
                Way::Neighbour,
                load,
                Family::V4,
                1500,
                false,
            );
        }
    }

    fn at_rest(&mut self) {
        for family in [Family::V4, Family::V6] {
            let name = format!("start-{}", suffix(family));
            self.add(
                name,
                Way::Outbound,
                Load::Start,
                family,
                1500,
                family == Family::V4,
            );
        }
        self.add(
            "attach".into(),
            Way::Neighbour,
            Load::Attach,
            Family::V4,
            1500,
            false,
        );
        self.add(
            "idle".into(),
            Way::Outbound,
            Load::Idle,
            Family::V4,
            1500,
            false,
        );
        for (count, name) in [(10_000, "flows-10k"), (100_000, "flows-100k")] {
            self.add(
                name.into(),
                Way::Outbound,
                Load::Flows(count),
                Family::V4,
                1500,
                false,
            );
        }
    }
}

impl Work {
    /// Whether a contender can be measured with it.
    pub fn suits(&self, contender: &Contender) -> bool {
        let needs_program = matches!(self.load, Load::Start | Load::Idle | Load::Flows(_));
        contender.ways.contains(&self.way)
            && self.mtu <= contender.max_mtu
            && (contender.program.is_some() || !needs_program)
            && (contender.kind == Kind::Own || self.load != Load::Attach)
    }

    /// Whether a quick run has it: it takes seconds, and shows what no other row does.
    pub fn is_quick(&self) -> bool {
        self.family == Family::V4 && !matches!(self.load, Load::Flows(count) if count > 10_000)
    }

    /// The contender whose figures are the measure: what a container costs is to be compared with
    /// rootful ones, but loopback's detour is there only in containers.
    pub fn baseline(&self) -> &'static str {
        match self.way {
            Way::Loopback => "host",
            _ => "rootful",
        }
    }

    /// Takes a sample of a contender.
    ///
    /// # Errors
    /// It does not start, or not do the work.
    pub fn sample(
        &self,
        hosts: &mut Hosts,
        chosen: &Chosen,
        pace: &Pace,
    ) -> anyhow::Result<Figures> {
        let port = hosts.fresh_ports();
        let published = matches!(self.way, Way::Published | Way::Loopback).then_some(port);
        let request = Request {
            hosts,
            way: self.way,
            family: self.family,
            mtu: self.mtu,
            // The host publishes its own ports by listening.
            published: published.filter(|_| chosen.contender.name != "host"),
        };
        let containers = match self.load {
            Load::Flows(count) => flows::containers(count)?,
            _ => 1,
        };
        let mut arenas = (0..containers)
            .map(|_| chosen.start(&request).context("start"))
            .collect::<anyhow::Result<Vec<Arena>>>()?;
        let figures = self.load(hosts, &arenas, port, pace);
        // One that has ended has not done the work, whatever was measured; and its end explains
        // the load's failure.
        let checked = arenas.iter_mut().try_for_each(Arena::check);
        let mut figures = match (checked, figures) {
            (Ok(()), figures) => figures?,
            (Err(end), Ok(_)) => return Err(end),
            (Err(end), Err(failure)) => return Err(failure.context(end)),
        };
        if chosen.contender.program.is_none() {
            // There is no program whose time it could be.
            figures.retain(|(metric, _)| *metric != &CPU_PROGRAM);
        }
        Ok(figures)
    }

    fn load(
        &self,
        hosts: &Hosts,
        arenas: &[Arena],
        port: u16,
        pace: &Pace,
    ) -> anyhow::Result<Figures> {
        let arena = arenas.first().context("no arena")?;
        let route = arena.route(hosts, self.way, self.family)?;
        let window = pace.window;
        Ok(match self.load {
            Load::Stream { streams, direction } => {
                let outcome = stream::measure(arena, &route, port, streams, direction, window)?;
                vec![
                    (&RATE, outcome.rate / 1e9),
                    (&CPU_MACHINE, outcome.machine),
                    (&CPU_PROGRAM, outcome.programs),
                ]
            }
            Load::RoundTrip => round_trips(&route, port, window)?,
            Load::Connect => vec![(&CONNECTIONS, connect::measure(&route, port, window)?)],
            Load::Datagram { size, direction } => {
                let outcome = datagram::measure(&route, port, size, direction, window)?;
                vec![
                    (&LOSSLESS, outcome.lossless / 1e3),
                    (&FLOOD, outcome.flood / 1e3),
                    (&FLOOD_LOSS, outcome.flood_loss * 100.0),
                ]
            }
            Load::Start => {
                let startup = arena.startup().context("nothing was started")?;
                let ready = startup.ready.map(|ready| (&READY, millis(ready)));
                let works = (&WORKS, millis(startup.works));
                std::iter::once(works).chain(ready).collect()
            }
            Load::Attach => {
                let outcome = attach::measure(arena, window)?;
                vec![
                    (&JOINED, millis(outcome.median)),
                    (&JOINED_LAST, millis(outcome.longest)),
                    (&JOINED_FIRST, millis(outcome.first)),
                ]
            }
            Load::Idle => self.idle(arena, pace)?,
            Load::Flows(count) => self.flows(hosts, arenas, port, count, pace)?,
        })
    }

    fn idle(&self, arena: &Arena, pace: &Pace) -> anyhow::Result<Figures> {
        // What belongs to the start is over by then.
        super::interrupt::sleep(Duration::from_secs(1))?;
        let before = arena.usage();
        super::interrupt::sleep(pace.watch)?;
        let after = arena.usage();
        let sleeps = after.sleeps.saturating_sub(before.sleeps) as f64;
        Ok(vec![
            (&RESIDENT, mebibytes(after.resident)),
            (&WAKE_UPS, sleeps / pace.watch.as_secs_f64()),
        ])
    }

    fn flows(
        &self,
        hosts: &Hosts,
        arenas: &[Arena],
        port: u16,
        count: usize,
        pace: &Pace,
    ) -> anyhow::Result<Figures> {
        let routed = |arena| Ok((arena, Arena::route(arena, hosts, self.way, self.family)?));
        let all = arenas.iter().map(routed);
        let all = all.collect::<anyhow::Result<Vec<_>>>()?;
        let outcome = flows::measure(&all, port, count, pace.opening, pace.watch)?;
        Ok(vec![
            (&RESIDENT, mebibytes(outcome.resident)),
            (&ANONYMOUS, mebibytes(outcome.anonymous)),
            (&OPEN, outcome.open as f64),
            (&PROGRAMS, all.len() as f64),
            (&EACH, outcome.each),
            (&WAKE_UPS, outcome.wake_ups),
        ])
    }
}

fn round_trips(route: &Route<'_>, port: u16, window: Window) -> anyhow::Result<Figures> {
    let stolen = usage::stolen_time()?;
    let outcome = round_trip::measure(route, port, window)?;
    let stolen = usage::stolen_time()?.saturating_sub(stolen);
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    Ok(vec![
        (&TRIPS, outcome.rate),
        (&TRIP_MEDIAN, micros(outcome.median)),
        (&TRIP_P99, micros(outcome.p99)),
        (&TRIP_LONGEST, micros(outcome.longest)),
        (&TRIP_STALLS, outcome.stalls as f64),
        (&STOLEN, millis(stolen)),
    ])
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::super::contenders::CONTENDERS;
    use super::*;

    fn suited(row: &str) -> Vec<&'static str> {
        let rows = all();
        let row = rows.iter().find(|work| work.name == row).unwrap();
        let suited = CONTENDERS.iter().filter(|known| row.suits(known));
        suited.map(|known| known.name).collect()
    }

    #[test]
    fn rows_are_for_those_who_offer_them() {
        assert_eq!(suited("c2c-tcp-1500"), ["rootful", "cnet", "vde"]);
        assert_eq!(suited("c2c-tcp-65520"), ["rootful", "cnet"]);
        assert_eq!(suited("attach"), ["cnet"]);
        assert_eq!(suited("start-v4"), ["cnet", "slirp4netns", "pasta"]);
    }
}
