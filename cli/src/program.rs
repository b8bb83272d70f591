//! What every program needs: standard streams, which may be closed, and an event loop.

use std::io::{self, Write};

use anyhow::Context;

/// Writes to standard output.
///
/// # Errors
///
/// As write(2); `BrokenPipe` once nothing reads the output any more.
pub(crate) fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes to standard error, as far as that goes.
pub(crate) fn write_err(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// An event loop on this thread.
///
/// # Errors
///
/// At a limit of descriptors.
pub(crate) fn event_loop() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}
