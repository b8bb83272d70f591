//! Letting the command's last data go out.
//!
//! When a process ends, its kernel still holds what it had written to its TCP connections, and
//! sends it on, with a FIN behind. Elsewhere that goes on unseen; here the network would be taken
//! away under it. So the end waits until no socket of the namespace has anything left to send:
//! the states between the FIN's sending and its acknowledgement (RFC 9293 section 3.3.2).
//!
//! What has left the namespace is acknowledged before it is out: a spliced connection ends at a
//! socket of ours, and the workers keep what a socket of the host has no room for. It is out when
//! the network has passed it on ([`PrivateNetwork::delivered`]); from there it is the host's kernel's.
//!
//! The tables are `/proc/net/tcp` and `tcp6`, opened by the child in its namespace: an open one
//! goes on telling of the namespace it was opened in, after all its processes are gone.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::private::PrivateNetwork;
use super::supervise::Supervisor;

/// How long a peer that takes nothing is waited for. A signal that asks for the end ends it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The same, when such a signal has ended the command: all is to be over within a second.
const ASKED_DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// The first interval between two looks; each is twice as long as the one before.
const FIRST_LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// The longest interval.
const LAST_LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The tables of a namespace's TCP sockets.
#[derive(Debug, Default)]
pub(super) struct TcpTables(Vec<File>);

impl TcpTables {
    /// Those of the network namespace this process is in. A missing one (no IPv6) is left out.
    pub(super) fn open() -> TcpTables {
        let open = |path| File::open(path).ok();
        let paths = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
        TcpTables(paths.into_iter().filter_map(open).collect())
    }

    pub(super) fn new(fds: Vec<OwnedFd>) -> TcpTables {
        TcpTables(fds.into_iter().map(File::from).collect())
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// Whether a socket still has a FIN, and data before it, to send.
    fn busy(&mut self) -> io::Result<bool> {
        for table in &mut self.0 {
            let mut text = String::new();
            table.rewind()?;
            table.read_to_string(&mut text)?;
            if text.lines().skip(1).any(has_unsent) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Looks at the state in the fourth column of a line (proc(5)).
fn has_unsent(line: &str) -> bool {
    // TCP_FIN_WAIT1, TCP_LAST_ACK and TCP_CLOSING of include/net/tcp_states.h.
    matches!(line.split_whitespace().nth(3), Some("04" | "09" | "0B"))
}

/// Waits until everything is out, the time is over, or a signal asks us to end. `network` is the
/// one of the command's own.
pub(super) async fn wait(
    mut tables: TcpTables,
    network: Option<&PrivateNetwork>,
    supervisor: &mut Supervisor,
) {
    let drained = async {
        let mut interval = FIRST_LOOK_INTERVAL;
        while tables.busy().unwrap_or(false) {
            sleep(interval).await;
            interval = (interval * 2).min(LAST_LOOK_INTERVAL);
        }
        if let Some(network) = network {
            network.delivered().await;
        }
    };
    let limit = match supervisor.end_was_asked() {
        true => ASKED_DRAIN_TIMEOUT,
        false => DRAIN_TIMEOUT,
    };
    tokio::select! {
        outcome = timeout(limit, drained) => {
            if outcome.is_err() {
                tracing::warn!("a peer has not taken all of the command's last data");
            }
        }
        () = supervisor.end_asked() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn states() {
        let line = |state: &str| {
            format!("   0: 0100007F:1F90 0100007F:C350 {state} 00000000:00000001 00:00000000")
        };
        for (state, unsent) in [
            ("01", false),
            ("04", true),
            ("05", false),
            ("06", false),
            ("08", false),
            ("09", true),
            ("0A", false),
            ("0B", true),
        ] {
            assert_eq!(has_unsent(&line(state)), unsent, "{state}");
        }
        assert!(!has_unsent(""));
    }

    #[test]
    fn the_tables_can_be_read_again() {
        let mut tables = TcpTables::open();
        assert!(tables.descriptors().count() >= 1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        tables.busy().unwrap();
        tables.busy().unwrap();
    }
}
