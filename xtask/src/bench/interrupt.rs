//! Ctrl-C, kindly: a run that is interrupted still takes its namespaces down and reports what it
//! has measured so far.
//!
//! The handler sets a flag and nothing else. Every wait of a run is short or goes through
//! [`sleep`], so the flag is seen soon.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// How long a sleep goes without a look at the flag.
const SLICE: Duration = Duration::from_millis(50);

/// Takes over the signals that ask a program to end.
///
/// # Errors
/// The kernel refuses a handler.
pub fn watch() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED))?;
    }
    Ok(())
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
