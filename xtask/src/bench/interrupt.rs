//! Ctrl-C, kindly: a run that is interrupted still takes its namespaces down and reports what it
//! has measured so far.
//!
//! The handler sets a flag and nothing else. Every wait of a run is short or goes through
//! [`sleep`], so the flag is seen soon.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How long a sleep goes without a look at the flag.
const SLICE: Duration = Duration::from_millis(50);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Takes over the signals that ask a program to end.
pub fn watch() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler = note as extern "C" fn(libc::c_int);
        // SAFETY: the handler stores to an atomic, which is async-signal-safe, and lives for ever.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether the run is to end.
pub fn pending() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sleeps for `duration`.
///
/// # Errors
/// The run is to end.
pub fn sleep(duration: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + duration;
    loop {
        if pending() {
            bail!("interrupted");
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(SLICE));
    }
}
