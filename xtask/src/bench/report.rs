//! From samples to one table: medians, and ratios that a reader can judge by.
//!
//! A ratio says how many times *better* cnet is: above 1 is better, whichever way the metric goes.
//! It is taken between medians of one run, whose samples were interleaved. The table shows medians
//! alone; every sample is in the JSON.

use std::fmt::Write;

use serde::Serialize;

use super::contenders::{Chosen, Contender, Kind};
use super::machine::Machine;
use super::namespace::congestion_control;
use super::work::{Better, Figures, Metric, Work};

/// What became of one sample.
pub struct Record {
    /// The row, by its place among those of the run.
    pub work: usize,
    /// The contender, by its place among those of the run.
    pub contender: usize,
    /// Its figures, or why there are none.
    pub result: Result<Figures, String>,
}

/// The report.
#[derive(Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Rounds that were begun.
    pub rounds: usize,
    /// Seconds of load in a sample.
    pub seconds: f64,
    /// Contenders by name, in the order of the columns.
    pub contenders: Vec<&'static str>,
    /// The rows, a metric each.
    pub rows: Vec<Row>,
    /// Samples that failed.
    pub failures: Vec<Failure>,
}

/// A metric of a row of work.
#[derive(Serialize)]
pub struct Row {
    /// The work.
    pub work: String,
    /// The metric.
    pub metric: &'static str,
    /// What it is counted in.
    pub unit: &'static str,
    /// Whether less is better.
    pub lower_is_better: bool,
    /// What each contender reached.
    pub cells: Vec<Option<Cell>>,
    /// The contender that `ratio_to_kernel` is to.
    pub baseline: &'static str,
    /// How many times better cnet is than the baseline.
    pub ratio_to_kernel: Option<f64>,
    /// How many times better cnet is than the best peer.
    pub ratio_to_best_peer: Option<f64>,
    /// Whether the picture shows it.
    #[serde(skip)]
    pub pictured: bool,
}

/// What a contender reached.
#[derive(Serialize)]
pub struct Cell {
    /// The median.
    pub median: f64,
    /// The samples, in the order they were taken in.
    pub samples: Vec<f64>,
    /// Samples under half the median (over twice, where less is better).
    pub collapses: usize,
}

/// A sample that failed.
#[derive(Serialize)]
pub struct Failure {
    /// The work.
    pub work: String,
    /// The contender.
    pub contender: &'static str,
    /// Why.
    pub reason: String,
}

impl Report {
    /// Puts the records of a run together.
    pub fn new(
        machine: Machine,
        (rounds, seconds): (usize, f64),
        works: &[Work],
        contenders: &[Chosen],
        records: &[Record],
    ) -> Self {
        let contenders: Vec<&'static Contender> =
            contenders.iter().map(|chosen| chosen.contender).collect();
        let rows = works.iter().enumerate().flat_map(|(index, work)| {
            let records: Vec<&Record> = records
                .iter()
                .filter(|record| record.work == index)
                .collect();
            rows(work, &contenders, &records)
        });
        let failures = records.iter().filter_map(|record| {
            Some(Failure {
                work: works.get(record.work)?.name.clone(),
                contender: contenders.get(record.contender)?.name,
                reason: record.result.as_ref().err()?.clone(),
            })
        });
        Self {
            machine,
            rounds,
            seconds,
            rows: rows.collect(),
            failures: failures.collect(),
            contenders: contenders.iter().map(|contender| contender.name).collect(),
        }
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# cnet and its peers\n\n");
        if let Some(warning) = self.machine.warning() {
            text.push_str(&format!("**{warning}**\n\n"));
        }
        text.push_str(&self.circumstances());
        text.push('\n');
        text.push_str(&self.table());
        text.push_str(LEGEND);
        if !self.failures.is_empty() {
            text.push_str("\nSamples that failed:\n\n");
            for failure in &self.failures {
                // Writing to a string cannot fail.
                let _ = writeln!(
                    text,
                    "- {}, {}: {}",
                    failure.work, failure.contender, failure.reason
                );
            }
        }
        text
    }

    fn circumstances(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "- {}, commit {}; median of {} samples, {} s of load each\n\
             - {}, {} cores, {:.0} GiB; Linux {}, {}, default queue {}\n",
            machine.date,
            machine.commit,
            self.rounds,
            self.seconds,
            machine.processor,
            machine.cores,
            machine.memory,
            machine.kernel,
            congestion_control(),
            machine.qdisc,
        );
        for (name, version) in &machine.versions {
            let _ = writeln!(text, "- {name}: {version}");
        }
        text
    }

    /// The table, its columns aligned, so that it reads as well in a terminal. Contenders that have
    /// no figure are left out.
    pub fn table(&self) -> String {
        let measured = |column: usize| {
            let mut cells = self.rows.iter().filter_map(|row| row.cells.get(column));
            cells.any(Option::is_some)
        };
        let columns: Vec<usize> = (0..self.contenders.len())
            .filter(|i| measured(*i))
            .collect();
        let mut head = vec!["row".to_owned(), "metric".to_owned(), "unit".to_owned()];
        let names = columns
            .iter()
            .filter_map(|column| self.contenders.get(*column));
        head.extend(names.map(|name| (*name).to_owned()));
        head.extend(["× kernel".to_owned(), "× best peer".to_owned()]);
        let mut lines = vec![head];
        let mut last = "";
        for row in &self.rows {
            let work = if row.work == last { "" } else { &row.work };
            last = &row.work;
            let mut line = vec![work.to_owned(), row.metric.to_owned(), row.unit.to_owned()];
            let cells = columns.iter().filter_map(|column| row.cells.get(*column));
            line.extend(cells.map(cell));
            line.extend([ratio(row.ratio_to_kernel), ratio(row.ratio_to_best_peer)]);
            lines.push(line);
        }
        align(&lines)
    }
}

const LEGEND: &str = "
`× kernel`: how many times better cnet is than rootful (for `pub-loopback`: than the host without a
container); `× best peer`: than the best of the user-space peers. Above 1 is better, whichever way
the metric goes. `▾`: a sample was under half the median (or over twice, where less is better).
";

fn rows(work: &Work, contenders: &[&'static Contender], records: &[&Record]) -> Vec<Row> {
    let mut metrics: Vec<&'static Metric> = Vec::new();
    for record in records {
        for (metric, _) in record.result.iter().flatten() {
            if !metrics.contains(metric) {
                metrics.push(metric);
            }
        }
    }
    let row = |(index, metric): (usize, &&'static Metric)| {
        let cells: Vec<Option<Cell>> = (0..contenders.len())
            .map(|contender| Cell::of(metric, contender, records))
            .collect();
        let median_of = |wanted: &dyn Fn(&Contender) -> bool| {
            let found = contenders.iter().zip(&cells);
            let medians = found.filter(|(contender, _)| wanted(contender));
            let medians = medians.filter_map(|(_, cell)| Some(cell.as_ref()?.median));
            medians.reduce(|a, b| best(metric.better, a, b))
        };
        let own = median_of(&|contender| contender.kind == Kind::Own);
        let kernel = median_of(&|contender| contender.name == work.baseline());
        let peer = median_of(&|contender| contender.kind == Kind::Peer);
        let times = |other: Option<f64>| times_better(metric.better, own?, other?);
        Row {
            work: work.name.clone(),
            metric: metric.name,
            unit: metric.unit,
            lower_is_better: metric.better == Better::Lower,
            baseline: work.baseline(),
            ratio_to_kernel: times(kernel),
            ratio_to_best_peer: times(peer),
            pictured: work.pictured && index == 0,
            cells,
        }
    };
    metrics.iter().enumerate().map(row).collect()
}

impl Cell {
    fn of(metric: &Metric, contender: usize, records: &[&Record]) -> Option<Self> {
        let of_contender = records
            .iter()
            .filter(|record| record.contender == contender);
        let samples: Vec<f64> = of_contender
            .flat_map(|record| record.result.iter().flatten())
            .filter(|(of, _)| *of == metric)
            .map(|(_, value)| *value)
            .collect();
        let median = median(&samples)?;
        let collapsed = samples.iter().filter(|sample| match metric.better {
            Better::Higher => **sample < median / 2.0,
            Better::Lower => **sample > median * 2.0,
        });
        Some(Self {
            median,
            collapses: collapsed.count(),
            samples,
        })
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

fn best(better: Better, a: f64, b: f64) -> f64 {
    match better {
        Better::Higher => a.max(b),
        Better::Lower => a.min(b),
    }
}

/// How many times better `own` is than `other`; none where that is no number.
fn times_better(better: Better, own: f64, other: f64) -> Option<f64> {
    let ratio = match better {
        Better::Higher => own / other,
        Better::Lower => other / own,
    };
    match own == other {
        true => Some(1.0),
        false => Some(ratio).filter(|ratio| ratio.is_finite()),
    }
}

fn cell(cell: &Option<Cell>) -> String {
    match cell {
        None => String::new(),
        Some(cell) if cell.collapses > 0 => format!("{} ▾", figure(cell.median)),
        Some(cell) => figure(cell.median),
    }
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
}

/// A number to three digits, thousands set apart.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 999.5 => {
            let digits = format!("{:.0}", value.abs());
            let sign = if value < 0.0 { "-" } else { "" };
            let mut text = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            format!("{sign}{text}")
        }
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A Markdown table of lines whose first is the head; the first two columns to the left.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let widths = lines.iter().filter_map(|line| line.get(column));
        widths
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            text.push_str("| ");
            match column < 3 {
                true => text.push_str(&format!("{cell:<width$} ")),
                false => text.push_str(&format!("{cell:>width$} ")),
            }
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                match column < 3 {
                    true => text.push_str(&format!("|{dashes}-")),
                    false => text.push_str(&format!("|{dashes}:")),
                }
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::contenders::CONTENDERS;
    use super::super::work;
    use super::*;

    static UP: Metric = Metric {
        name: "up",
        unit: "1/s",
        better: Better::Higher,
    };
    static DOWN: Metric = Metric {
        name: "down",
        unit: "ms",
        better: Better::Lower,
    };

    fn records(contender: usize, samples: &[(f64, f64)]) -> impl Iterator<Item = Record> {
        samples.iter().map(move |(up, down)| Record {
            work: 0,
            contender,
            result: Ok(vec![(&UP, *up), (&DOWN, *down)]),
        })
    }

    fn report() -> Report {
        let chosen = |name: &str| Chosen {
            contender: CONTENDERS.iter().find(|known| known.name == name).unwrap(),
            program: "/nonexistent".into(),
        };
        let contenders = ["rootful", "cnet", "slirp4netns", "pasta", "vde"].map(chosen);
        let mut all: Vec<Record> = records(0, &[(10.0, 4.0)]).collect();
        all.extend(records(1, &[(8.0, 2.0), (3.0, 2.0), (9.0, 2.0)]));
        all.extend(records(2, &[(1.0, 8.0)]));
        all.extend(records(3, &[(2.0, 16.0), (4.0, 16.0)]));
        all.push(Record {
            work: 0,
            contender: 2,
            result: Err("no wire".to_owned()),
        });
        let works = &work::all()[..1];
        Report::new(Machine::describe(&[]), (3, 1.0), works, &contenders, &all)
    }

    #[test]
    fn ratios_are_above_one_where_cnet_is_better() {
        let report = report();
        let up = &report.rows[0];
        assert_eq!(up.cells[1].as_ref().unwrap().median, 8.0);
        assert_eq!(up.cells[3].as_ref().unwrap().median, 3.0);
        assert_eq!(up.ratio_to_kernel, Some(0.8));
        assert_eq!(up.ratio_to_best_peer, Some(8.0 / 3.0));
        let down = &report.rows[1];
        assert_eq!(down.ratio_to_kernel, Some(2.0));
        assert_eq!(down.ratio_to_best_peer, Some(4.0));
        assert!(up.pictured && !down.pictured);
    }

    #[test]
    fn a_collapse_and_a_failure_are_shown() {
        let report = report();
        assert_eq!(report.rows[0].cells[1].as_ref().unwrap().collapses, 1);
        let text = report.markdown();
        assert!(text.contains("8.00 ▾"), "{text}");
        assert!(
            text.contains("- tcp-out-1500-v4, slirp4netns: no wire"),
            "{text}"
        );
    }

    #[test]
    fn the_table_is_rectangular() {
        let table = report().table();
        let columns: Vec<usize> = table
            .lines()
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(columns, [10; 4]);
        assert!(!table.contains("vde"), "{table}");
        let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        assert_eq!(times_better(Better::Lower, 0.0, 3.0), None);
        assert_eq!(times_better(Better::Lower, 0.0, 0.0), Some(1.0));
        assert_eq!(times_better(Better::Higher, 2.0, 0.0), None);
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn figures_have_three_digits() {
        let shown = [0.0, 0.123, 9.994, 12.34, 123.4, 999.4, 1234.5, 1_234_567.0].map(figure);
        let expected = [
            "0.00",
            "0.12",
            "9.99",
            "12.3",
            "123",
            "999",
            "1,234",
            "1,234,567",
        ];
        assert_eq!(shown, expected);
    }
}
