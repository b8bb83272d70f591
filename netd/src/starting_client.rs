//! The client that starts a network's process, and waits: leaving it, and telling it how it went.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use cnet_tap::fork::fork;
use cnet_tap::inherited_fd;

/// Why the client cannot be left.
pub(crate) type DetachError = Box<dyn std::error::Error + Send + Sync>;

/// Leaves the client's session, directory and descriptors, and the client: `false` in the process
/// that it waits for.
pub(crate) fn detach() -> Result<bool, DetachError> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&number| number > 2)
        .collect();
    for number in open {
        // The descriptor of the directory itself is closed by now; the others are not ours.
        drop(inherited_fd::take(number));
    }
    // Fails for the leader of a process group, which a child just started is not.
    rustix::process::setsid()
        .map_err(|errno| format!("cannot leave the session: {}", io::Error::from(errno)))?;
    std::env::set_current_dir("/")?;
    // Started by way of /proc/self/exe, it would be called that.
    let _ = rustix::thread::set_name(c"cnet");
    Ok(fork("cannot fork")?.is_none())
}

/// Where the client that waits reads whether the network is ready, until it has been told.
static CLIENT: Mutex<Option<File>> = Mutex::new(None);

/// Has standard output lead nowhere, and keeps where it led until now for the client that waits.
pub(crate) fn keep_client() -> io::Result<()> {
    let client = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    *CLIENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
    let null = File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

/// Tells the client that waits, and lets go of it. One that is gone, or was told before, is no reason
/// not to serve the next one.
pub(crate) fn tell_client(text: &str) {
    let client = CLIENT.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut client) = client {
        let _ = client.write_all(text.as_bytes());
    }
}

/// Lets go of the client without a word, in a process that is not the one which it waits for.
pub(crate) fn let_go() {
    drop(CLIENT.lock().unwrap_or_else(PoisonError::into_inner).take());
}
