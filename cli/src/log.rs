//! The log, on standard error, which may be closed, and errors in one line.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use cnet::log::Bounded;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The variable that says more exactly what is logged, as `RUST_LOG` does elsewhere.
const VARIABLE: &str = "CNET_LOG";

/// Panics that are logged with the place in the program that they come from.
const PANICS_LOGGED: u32 = 10;

/// Logs what is at least as urgent as `level`, or what the environment variable `CNET_LOG` asks
/// for, to standard error. Call it once.
pub(crate) fn start(level: Level) {
    start_into(level, std::io::stderr);
}

/// The log of a network's process: to its file, which is bounded, or to standard error.
pub(crate) fn start_to(file: Option<Bounded>) {
    match file {
        Some(file) => start_into(Level::INFO, Mutex::new(file)),
        None => start(Level::INFO),
    }
}

/// As [`start`], to what `writer` makes.
fn start_into(level: Level, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::from_level(level).into())
        .with_env_var(VARIABLE)
        .from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        // Otherwise a closed standard error is complained about on standard error, by panicking.
        .log_internal_errors(false)
        .finish();
    // Only a second call fails, and then the first one stands.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let logged = AtomicU32::new(0);
    std::panic::set_hook(Box::new(move |panic| {
        // Workers contain panics, and a container that has found one can repeat it.
        if logged.fetch_add(1, Ordering::Relaxed) < PANICS_LOGGED {
            tracing::error!("{panic}");
        }
    }));
}

/// An error with its causes, in one line.
pub(crate) fn report(error: &anyhow::Error) -> String {
    cnet_netd::in_one_line(error.as_ref())
}
