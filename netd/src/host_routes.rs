//! Says in the log when a route of the host comes up within the network's subnets: what is behind it
//! the containers do not reach. `cnet ps` and `cnet network inspect` tell so as long as it is there.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Duration;

use cnet::definition::Definition;
use cnet_tap::async_fd::AsyncOwnedFd;
use cnet_tap::host_addresses::RouteChanges;
use ipnet::IpNet;
use tokio::io::Interest;
use tokio::time::sleep;

use crate::outside::Host;

/// How long after a change the routes are looked at: a daemon that changes thousands costs one look.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The watch, opened and not in use yet.
pub(crate) struct HostRouteWatch(Option<RouteChanges>);

impl HostRouteWatch {
    /// Opens the netlink socket now: in the sandbox there is none to be had. Without it routes that come
    /// later are not logged.
    pub(crate) fn open() -> HostRouteWatch {
        HostRouteWatch(RouteChanges::open().ok())
    }

    /// Watches until the event loop ends. What is there already was told at the start.
    pub(crate) fn start(self, definition: Definition, host: Host) {
        let Some(changes) = self.0 else { return };
        let copy = changes.as_fd().try_clone_to_owned();
        if let Ok(fd) = copy.and_then(|fd| AsyncOwnedFd::new(fd, Interest::READABLE)) {
            tokio::spawn(follow(changes, fd, definition, host));
        }
    }
}

async fn follow(changes: RouteChanges, fd: AsyncOwnedFd, definition: Definition, host: Host) {
    let subnets: Vec<IpNet> = definition.subnets().collect();
    let hidden = || -> BTreeSet<String> {
        // An outside that does not answer has its own way of being noticed.
        let routes = host.routes_within(&subnets).unwrap_or_default();
        definition.hidden_routes(&routes).into_iter().collect()
    };
    let mut told = hidden();
    while let Ok(mut ready) = fd.ready().await {
        ready.clear_ready();
        drop(ready);
        sleep(LOOK_INTERVAL).await;
        changes.forget();
        let now = hidden();
        for text in now.difference(&told) {
            tracing::warn!("{text}");
        }
        told = now;
    }
}
