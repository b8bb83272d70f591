//! One byte there and back, again and again on one connection, the next not before the last is
//! back: the delay of the path, and what it does at its worst.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Window, join, listen, pair};
use crate::bench::contenders::Route;
use crate::bench::interrupt;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Round trips a second.
    pub rate: f64,
    /// The median.
    pub median: Duration,
    /// What one in a hundred exceeds.
    pub p99: Duration,
    /// The longest.
    pub longest: Duration,
    /// How many took longer than [`STALL`].
    pub stalls: usize,
}

/// A round trip that takes longer is one that somebody notices.
const STALL: Duration = Duration::from_millis(5);

/// Measures one connection.
///
/// # Errors
/// No connection; it stalls or is reset; the run is interrupted.
pub fn measure(route: &Route<'_>, port: u16, window: Window) -> anyhow::Result<Outcome> {
    let listener = listen(route, port)?;
    let (client, server) = pair(route, &listener, port)?;
    let outcome = thread::scope(|scope| {
        let echo = scope.spawn(|| echo(&server));
        let outcome = trips(&client, window);
        // Ends the echo.
        let _ = client.shutdown(Shutdown::Both);
        // The client's error, if there is one, says more.
        let echoed = join(echo);
        let outcome = outcome?;
        echoed.map(|()| outcome)
    })?;
    evaluate(outcome.0, outcome.1)
}

fn echo(mut stream: &TcpStream) -> anyhow::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte).context("the echo's end")? > 0 {
        stream.write_all(&byte).context("the echo's end")?;
    }
    Ok(())
}

/// The durations of all trips in the window, and how long they took together.
fn trips(mut stream: &TcpStream, window: Window) -> anyhow::Result<(Vec<Duration>, Duration)> {
    let mut byte = [0];
    let mut trip = || {
        let sent = Instant::now();
        stream.write_all(&[1]).context("sending a byte")?;
        stream.read_exact(&mut byte).context("a byte's return")?;
        anyhow::Ok((sent, Instant::now()))
    };
    let warm = Instant::now() + window.warm_up;
    while trip()?.1 < warm {}
    let mut durations = Vec::new();
    let start = Instant::now();
    let end = start + window.length;
    loop {
        let (sent, back) = trip()?;
        durations.push(back - sent);
        if interrupt::pending() {
            bail!("interrupted");
        }
        if back >= end {
            return Ok((durations, back - start));
        }
    }
}

fn evaluate(mut durations: Vec<Duration>, elapsed: Duration) -> anyhow::Result<Outcome> {
    durations.sort_unstable();
    let at = |part: f64| {
        let index = (durations.len() as f64 * part) as usize;
        durations.get(index.min(durations.len().saturating_sub(1)))
    };
    let quantile = |part| at(part).copied().context("no round trip");
    Ok(Outcome {
        rate: durations.len() as f64 / elapsed.as_secs_f64(),
        median: quantile(0.5)?,
        p99: quantile(0.99)?,
        longest: quantile(1.0)?,
        stalls: durations.iter().filter(|trip| **trip > STALL).count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_durations() {
        let durations: Vec<Duration> = (1..=200).rev().map(Duration::from_micros).collect();
        let outcome = evaluate(durations, Duration::from_millis(100)).unwrap();
        assert_eq!(outcome.median, Duration::from_micros(101));
        assert_eq!(outcome.p99, Duration::from_micros(199));
        assert_eq!(outcome.longest, Duration::from_micros(200));
        assert_eq!(outcome.stalls, 0);
        assert!((outcome.rate - 2000.0).abs() < 1e-6);
        let stalled = [1, 5, 6, 7].map(Duration::from_millis).to_vec();
        assert_eq!(evaluate(stalled, Duration::from_secs(1)).unwrap().stalls, 2);
        assert!(evaluate(Vec::new(), Duration::from_secs(1)).is_err());
    }
}
