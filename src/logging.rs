//! The log: lines on standard error, which may be closed.

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The variable that says more exactly what is logged, as `RUST_LOG` does elsewhere.
const VARIABLE: &str = "CNET_LOG";

/// Logs what is at least as urgent as `level`, or what the environment variable `CNET_LOG` asks
/// for. Call it once.
pub fn start(level: Level) {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::from_level(level).into())
        .with_env_var(VARIABLE)
        .from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        // Otherwise a closed standard error is complained about on standard error, by panicking.
        .log_internal_errors(false)
        .finish();
    // Only a second call fails, and then the first one stands.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
