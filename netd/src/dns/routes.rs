//! Which servers are asked for a name, and for whom.
//!
//! # Theory of operation
//!
//! A list of servers ([`DnsServer`]) says for each name who is asked: those for the longest domain
//! that the name is in; failing that, those without a domain; failing that, the host's. Each set of
//! servers that comes of this is a [`Route`], with what is known of its servers and the answers that
//! they gave: what one container's servers say is not told to another container that asks others.
//!
//! # Invariants
//!
//! A route's answers are forgotten when its servers change, as the host's do when it moves to
//! another network.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cnet::definition::DnsServer;

use super::cache::Cache;
use super::forward::Forwarder;
use super::resolv_conf::{HostConf, Nameserver, ResolvConf, Servers};
use super::upstream::{Sources, Upstream};

/// Routes that are kept. Networks have few; containers that come and go with servers of their own
/// leave some behind.
const MAX_ROUTES: usize = 256;

/// Servers, and what they have said.
pub(super) struct Route {
    /// Not used for another one.
    pub(super) id: u64,
    pub(super) forwarder: Forwarder,
    known: Mutex<Known>,
}

struct Known {
    cache: Cache,
    servers: Arc<ResolvConf>,
}

impl Route {
    /// The servers now, with what was kept of their answers.
    pub(super) fn with_cache<T>(&self, action: impl FnOnce(&mut Cache) -> T) -> T {
        let servers = self.forwarder.servers();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.servers, &servers) {
            if known.servers.nameservers != servers.nameservers {
                known.cache.clear();
            }
            known.servers = servers;
        }
        action(&mut known.cache)
    }
}

/// All routes of a network.
pub(super) struct Routes {
    host: HostConf,
    upstream: Arc<Upstream>,
    /// How long answers serve beyond their time.
    stale: Duration,
    next: AtomicU64,
    /// By their servers; none for the host's.
    by_servers: Mutex<HashMap<Vec<Nameserver>, Arc<Route>>>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self.lock().len();
        f.debug_struct("Routes").field("routes", &routes).finish()
    }
}

impl Routes {
    pub(super) fn new(host: HostConf, sources: Sources, stale: Duration) -> Routes {
        Routes {
            host,
            upstream: Arc::new(Upstream::new(sources)),
            stale,
            next: AtomicU64::new(0),
            by_servers: Mutex::default(),
        }
    }

    /// Whether answers serve beyond their time.
    pub(super) fn serves_stale(&self) -> bool {
        !self.stale.is_zero()
    }

    /// Who is asked for `name`, which is in lower case, if `list` says.
    pub(super) fn find(&self, list: &[DnsServer], name: Option<&str>) -> Arc<Route> {
        let servers: Vec<Nameserver> = responsible(list, name).collect();
        let mut routes = self.lock();
        if let Some(route) = routes.get(&servers) {
            return Arc::clone(route);
        }
        if routes.len() >= MAX_ROUTES {
            // What is on its way keeps its own.
            routes.clear();
        }
        let followed = match servers.is_empty() {
            true => Servers::of_host(&self.host),
            false => Servers::fixed(servers.clone()),
        };
        let forwarder = Forwarder::new(followed, Arc::clone(&self.upstream));
        let route = Arc::new(Route {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            known: Mutex::new(Known {
                cache: Cache::new(self.stale),
                servers: forwarder.servers(),
            }),
            forwarder,
        });
        routes.insert(servers, Arc::clone(&route));
        route
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<Nameserver>, Arc<Route>>> {
        self.by_servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The servers of `list` for `name`.
fn responsible<'a>(
    list: &'a [DnsServer],
    name: Option<&'a str>,
) -> impl Iterator<Item = Nameserver> + use<'a> {
    let is_in = |domain: &str| {
        name.and_then(|name| name.strip_suffix(domain))
            .is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    let domains = list.iter().filter_map(|server| server.domain.as_deref());
    let longest = domains.filter(|d| is_in(d)).max_by_key(|d| d.len());
    let chosen = list.iter().filter(move |s| s.domain.as_deref() == longest);
    chosen.map(|server| Nameserver::from(server.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_the_longest_domain_that_it_is_in() {
        let list = [
            "192.0.2.1",
            "corp.example=10.1.1.1",
            "dev.corp.example=10.1.1.2",
            "corp.example=10.1.1.3",
        ]
        .map(|text| text.parse().unwrap());
        let of = |name: Option<&str>| -> Vec<String> {
            let servers = responsible(&list, name);
            servers.map(|s| s.address().to_string()).collect()
        };
        assert_eq!(of(Some("example")), ["192.0.2.1"]);
        assert_eq!(of(Some("xcorp.example")), ["192.0.2.1"]);
        assert_eq!(of(Some("corp.example")), ["10.1.1.1", "10.1.1.3"]);
        assert_eq!(of(Some("a.b.corp.example")), ["10.1.1.1", "10.1.1.3"]);
        assert_eq!(of(Some("x.dev.corp.example")), ["10.1.1.2"]);
        assert_eq!(of(None), ["192.0.2.1"]);
        assert_eq!(responsible(&list[1..], Some("example")).count(), 0);
    }

    #[tokio::test]
    async fn the_same_servers_are_one_route() {
        let routes = Routes::new(HostConf::default(), Sources::default(), Duration::ZERO);
        let list = ["corp.example=10.1.1.1", "example=10.1.1.1"].map(|t| t.parse().unwrap());
        let one = routes.find(&list, Some("corp.example"));
        let other = routes.find(&list, Some("x.example"));
        assert!(Arc::ptr_eq(&one, &other));
        let host = routes.find(&list, Some("example.org"));
        assert_ne!(one.id, host.id);
        assert!(Arc::ptr_eq(&host, &routes.find(&[], None)));
        for n in 0..2 * MAX_ROUTES {
            let server = DnsServer::from(std::net::IpAddr::from([10, 1, (n / 256) as u8, n as u8]));
            routes.find(&[server], None);
            assert!(routes.lock().len() <= MAX_ROUTES);
        }
    }
}
