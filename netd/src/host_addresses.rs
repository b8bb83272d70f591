//! Keeps the workers told of the host's own addresses, for filters that refuse them (`--no-host`).
//!
//! The first container with such a filter starts the watch; a network without one has none. Addresses
//! are told before the container's port is added, so no packet of it meets an old list.

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use cnet_dataplane::Control;
use cnet_tap::async_fd::AsyncOwnedFd;
use cnet_tap::host_addresses::HostAddresses;
use tokio::io::Interest;
use tokio::sync::OnceCell;

/// The watch, once it is needed.
#[derive(Debug, Default)]
pub(crate) struct HostAddressWatch {
    started: OnceCell<()>,
    /// Opened before there was need, and not used yet.
    opened: Mutex<Option<HostAddresses>>,
}

impl HostAddressWatch {
    /// Opens the netlink sockets now: in the sandbox there are none to be had. Without them only
    /// filters with `--no-host` fail.
    pub(crate) fn open() -> HostAddressWatch {
        let opened = HostAddresses::open();
        HostAddressWatch {
            started: OnceCell::new(),
            opened: Mutex::new(opened.ok()),
        }
    }

    /// Tells the workers the host's addresses, now and after each change until they end.
    ///
    /// # Errors
    ///
    /// What the kernel says about the netlink sockets.
    pub(crate) async fn start(&self, control: &Control) -> std::io::Result<()> {
        let started = self.started.get_or_try_init(|| async {
            let opened = self
                .opened
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let mut addresses = opened.map_or_else(HostAddresses::open, Ok)?;
            // Of all that was told since they were opened, the list tells the outcome.
            addresses.forget_changes();
            let changes = addresses.as_fd().try_clone_to_owned()?;
            let changes = AsyncOwnedFd::new(changes, Interest::READABLE)?;
            control.set_host_addresses(&addresses.list()?);
            tokio::spawn(follow(addresses, changes, control.clone()));
            Ok(())
        });
        started.await.copied()
    }
}

/// Ends with the event loop.
async fn follow(mut addresses: HostAddresses, changes: AsyncOwnedFd, control: Control) {
    while let Ok(mut ready) = changes.ready().await {
        ready.clear_ready();
        addresses.forget_changes();
        match addresses.list() {
            Ok(list) => control.set_host_addresses(&list),
            // The last list stays in force until the next change.
            Err(error) => tracing::warn!(%error, "cannot list the host's addresses"),
        }
    }
}
