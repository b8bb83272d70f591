//! What programs and the machine have used: processor time, memory, wake-ups, as `/proc` tells it.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// What a set of processes has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time in user and kernel mode.
    pub cpu: Duration,
    /// Resident memory in bytes, now.
    pub resident: u64,
    /// Of it, what is no file's (`RssAnon`), in bytes.
    pub anonymous: u64,
    /// Times that a thread went to sleep (`voluntary_ctxt_switches` in proc_pid_status(5)). Of an
    /// idle program: its wake-ups.
    pub sleeps: u64,
}

impl Usage {
    /// Of the processes that still live of `pids`.
    pub fn of(pids: &[u32]) -> Self {
        let mut usage = Self::default();
        for pid in pids {
            usage.cpu += process_time(*pid).unwrap_or_default();
            usage.resident += memory(*pid, "VmRSS:").unwrap_or_default();
            usage.anonymous += memory(*pid, "RssAnon:").unwrap_or_default();
            usage.sleeps += sleeps(*pid);
        }
        usage
    }

    /// Of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            resident: self.resident + other.resident,
            anonymous: self.anonymous + other.anonymous,
            sleeps: self.sleeps + other.sleeps,
        }
    }
}

/// Processor time that the whole machine has spent on anything but waiting, since it started.
///
/// # Errors
/// `/proc/stat` is not as proc_stat(5) has it.
pub fn machine_time() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    busy_ticks(&stat).map(ticks).context("/proc/stat")
}

/// Processor time that others had while this machine wanted it, since it started: what a virtual
/// machine's host gave to somebody else, or withheld.
///
/// # Errors
/// `/proc/stat` is not as proc_stat(5) has it.
pub fn stolen_time() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    sum_of_ticks(&stat, &[7]).map(ticks).context("/proc/stat")
}

/// Sums user, nice, system, irq and softirq; leaves out idle, iowait, and what other machines took
/// (steal). Guests are in user already.
fn busy_ticks(stat: &str) -> Option<u64> {
    sum_of_ticks(stat, &[0, 1, 2, 5, 6])
}

/// Sums fields of the first line.
fn sum_of_ticks(stat: &str, wanted: &[usize]) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    wanted.iter().map(|index| fields.get(*index).copied()).sum()
}

/// The time that a process's threads have run, to the nanosecond: the first field of their
/// `schedstat` (`Documentation/scheduler/sched-stats.rst`). The times in `stat` are sampled by ticks
/// of 10 ms, which is too coarse for a program that does little.
fn process_time(pid: u32) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let times = tasks.flatten().filter_map(|task| {
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Some(Duration::from_nanos(times.sum()))
}

fn memory(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = value(&status, key)?;
    Some(kilobytes * 1024)
}

fn sleeps(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let statuses = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    statuses
        .filter_map(|status| value(&status, "voluntary_ctxt_switches:"))
        .sum()
}

/// The number after a key at the beginning of a line.
fn value(status: &str, key: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn ticks(count: u64) -> Duration {
    let rate = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(count as f64 / rate as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_stolen_time_is_not_busy() {
        let stat = "cpu  1 20 300 90000 90000 4000 50000 70000 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(54321));
        assert_eq!(sum_of_ticks(stat, &[7]), Some(70000));
        assert_eq!(busy_ticks("intr 1 2 3 4 5 6 7 8"), None);
    }

    #[test]
    fn a_key_is_not_found_inside_another() {
        let status = "nonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t3\n";
        assert_eq!(value(status, "voluntary_ctxt_switches:"), Some(3));
        assert_eq!(value("VmRSS:\t    5412 kB\n", "VmRSS:"), Some(5412));
    }

    #[test]
    fn work_done_by_this_process_is_seen() {
        let own = [std::process::id()];
        let before = Usage::of(&own);
        let machine = machine_time().unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while Usage::of(&own).cpu == before.cpu || machine_time().unwrap() == machine {
            assert!(std::time::Instant::now() < end, "not a tick in 20 s");
        }
        assert!(before.resident > 100_000);
    }
}
