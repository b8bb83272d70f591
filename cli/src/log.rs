//! The log, on standard error, which may be closed, and errors in one line.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    start_at(Level::INFO, file);
}

/// As [`start`], to a file if there is one.
pub(crate) fn start_at(level: Level, file: Option<Bounded>) {
    match file {
        Some(file) => start_into(level, Mutex::new(file)),
        None => start(level),
    }
}

/// A standard error that the log can let go of, where no descriptor can be put in the place of another.
static STANDARD_ERROR: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// As [`start`], until [`let_go`] is called; nothing is logged after that.
pub(crate) fn start_for_now(level: Level) {
    *standard_error() = std::io::stderr().as_fd().try_clone_to_owned().ok();
    start_into(level, || ForNow);
}

/// Closes the descriptor that [`start_for_now`] logs to.
pub(crate) fn let_go() {
    *standard_error() = None;
}

fn standard_error() -> MutexGuard<'static, Option<OwnedFd>> {
    STANDARD_ERROR
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

struct ForNow;

impl Write for ForNow {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match &*standard_error() {
            Some(fd) => Ok(rustix::io::write(fd, line)?),
            None => Ok(line.len()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
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
        .with_writer(Plain(writer))
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
    without_numbers(&cnet_netd::in_one_line(error.as_ref()))
}

/// `text` without the numbers of the kernel's errors, which the standard library puts behind their
/// texts, as in `Permission denied (os error 13)`.
pub(crate) fn without_numbers(text: &str) -> String {
    const BEGIN: &str = " (os error ";
    let mut parts = text.split(BEGIN);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                plain.push_str(rest);
            }
            _ => {
                plain.push_str(BEGIN);
                plain.push_str(part);
            }
        }
    }
    plain
}

/// What is logged, without the numbers of the kernel's errors.
struct Plain<W>(W);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Plain<M> {
    type Writer = Plain<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Plain(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for Plain<W> {
    /// Takes a line at a time, which is how the subscriber writes.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.write_all(without_numbers(text).as_bytes())?,
            Err(_) => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn numbers_of_errors_are_left_out() {
        let errno = |number| io::Error::from_raw_os_error(number).to_string();
        let text = format!("cannot open x: {}; {} again", errno(2), errno(13));
        let plain = "cannot open x: No such file or directory; Permission denied again";
        assert_eq!(without_numbers(&text), plain);
        for other in ["", "(os error 2", " (os error x)", "a (b)"] {
            assert_eq!(without_numbers(other), other);
        }
        let mut line = Plain(Vec::new());
        line.write_all(text.as_bytes()).unwrap();
        assert_eq!(line.0, plain.as_bytes());
    }
}
