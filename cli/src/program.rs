//! What every program needs: standard streams, which may be closed, exit codes, one error for many,
//! and an event loop.

use std::ffi::OsString;
use std::io::{self, Write};

use anyhow::{Context, bail};

use crate::log::{report, without_numbers};

/// The exit code when `cnet run` itself fails, as `env`, `timeout` and `docker run` have it; the
/// others exit with 1.
pub(crate) const OWN_FAILURE: u8 = 125;

/// Writes to standard output.
///
/// # Errors
///
/// As write(2); `BrokenPipe` once nothing reads the output any more.
pub(crate) fn write_out(text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())?;
    out.flush()
}

/// Writes to standard error, as far as that goes.
pub(crate) fn write_err(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// A line to the person at the terminal.
pub(crate) fn tell(text: &str) {
    write_err(&format!("cnet: {}\n", without_numbers(text)));
}

/// One error for all that went wrong, a line each.
pub(crate) fn all_of(results: impl IntoIterator<Item = anyhow::Result<()>>) -> anyhow::Result<()> {
    let errors = results.into_iter().filter_map(Result::err);
    let texts: Vec<String> = errors.map(|error| report(&error)).collect();
    match texts.as_slice() {
        [] => Ok(()),
        texts => bail!("{}", texts.join("\n")),
    }
}

/// An event loop on this thread.
///
/// # Errors
///
/// At a limit of descriptors.
pub(crate) fn event_loop() -> anyhow::Result<tokio::runtime::Runtime> {
    cnet_dataplane::check_descriptors()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// The variable of the environment that refuses the cloud's instance metadata, for programs whose
/// callers have no option for it.
pub(crate) const DENY_METADATA: &str = "CNET_DENY_METADATA";

/// Whether [`DENY_METADATA`] says so: any value but `0` and none at all does.
pub(crate) fn metadata_is_denied() -> bool {
    says_yes(std::env::var_os(DENY_METADATA))
}

fn says_yes(value: Option<OsString>) -> bool {
    value.is_some_and(|value| !value.is_empty() && value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_denied_by_any_value_that_says_yes() {
        let denied = |value: &str| says_yes(Some(value.into()));
        assert!(denied("1") && denied("yes"));
        assert!(!denied("0") && !denied("") && !says_yes(None));
    }
}
