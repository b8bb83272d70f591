//! The host's `/etc/resolv.conf`: which servers to ask, and how.
//!
//! # Theory of operation
//!
//! [`Servers::current`] is called for each query. At most once in [`RECHECK`] it reads the file
//! again and compares: a file that was changed, replaced or whose symbolic link points elsewhere
//! is in force for the first query after that, with nothing to watch and no task to wake. While the
//! file cannot be read, the last content stays in force. A file that names no server, or that never
//! was there, means the server on this host ([`LOCAL`]).
//!
//! # Limits
//!
//! As the resolver of the C library does, at most [`MAX_SERVERS`] servers are used and lines that
//! make no sense are skipped. Of the options, `timeout`, `attempts` and `rotate` count here, but a
//! server has at most one second before the next is asked as well. The rest are for the container,
//! which gets them in its own file.
//!
//! Source: resolv.conf(5).

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Where the host keeps it.
pub const PATH: &str = "/etc/resolv.conf";

/// The server of a file that names none (resolv.conf(5)).
pub const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// The most servers that are used (`MAXNS` in `<resolv.h>`).
pub const MAX_SERVERS: usize = 3;

/// How long a file that was read is trusted.
pub const RECHECK: Duration = Duration::from_secs(1);

/// The port of a DNS server.
const DNS_PORT: u16 = 53;

/// Rounds over the servers, unless the file says otherwise (resolv.conf(5)).
const DEFAULT_ATTEMPTS: u32 = 2;
/// The most rounds it can ask for (`RES_MAXRETRY`).
const MAX_ATTEMPTS: u32 = 5;
/// How long a server is waited for, in seconds, unless the file says otherwise (`RES_TIMEOUT`).
const DEFAULT_TIMEOUT: u32 = 5;
/// The longest time it can ask for (`RES_MAXRETRANS`).
const MAX_TIMEOUT: u32 = 30;

/// How long a server is waited for before the next one is asked as well, at most.
const HEAD_START: Duration = Duration::from_secs(1);
/// How long the last server that is asked has at least.
const LAST_CHANCE: Duration = Duration::from_secs(2);

/// The most bytes of a file that are read. Real ones have a few hundred.
pub const MAX_FILE: u64 = 64 * 1024;

/// One server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Nameserver {
    address: IpAddr,
    port: u16,
    /// The interface of a link-local address, by name or by index.
    scope: Option<String>,
}

impl Nameserver {
    fn parse(text: &str) -> Option<Nameserver> {
        let (address, scope) = match text.split_once('%') {
            Some((address, scope)) => (address, Some(scope.to_owned())),
            None => (text, None),
        };
        let address = address.parse().ok()?;
        Some(Nameserver {
            address,
            port: DNS_PORT,
            scope: scope.filter(|_| matches!(address, IpAddr::V6(_))),
        })
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Where to send to.
    ///
    /// # Errors
    ///
    /// The interface of its scope does not exist now.
    pub fn socket_addr(&self) -> io::Result<SocketAddr> {
        match (self.address, &self.scope) {
            (IpAddr::V6(address), Some(scope)) => {
                let index = interface_index(scope)?;
                Ok(SocketAddrV6::new(address, self.port, 0, index).into())
            }
            (address, _) => Ok(SocketAddr::new(address, self.port)),
        }
    }
}

impl From<IpAddr> for Nameserver {
    fn from(address: IpAddr) -> Nameserver {
        SocketAddr::new(address, DNS_PORT).into()
    }
}

impl From<SocketAddr> for Nameserver {
    fn from(server: SocketAddr) -> Nameserver {
        Nameserver {
            address: server.ip(),
            port: server.port(),
            scope: None,
        }
    }
}

/// The number of an interface that is named, or numbered already.
pub(crate) fn interface_index(scope: &str) -> io::Result<u32> {
    if let Ok(index) = scope.parse() {
        return Ok(index);
    }
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    Ok(rustix::net::netdevice::name_to_index(&socket, scope)?)
}

/// What a `resolv.conf` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvConf {
    /// The servers, in order.
    pub nameservers: Vec<Nameserver>,
    /// The search list, from the last `search` or `domain` line.
    pub search: Vec<String>,
    /// All options, as written.
    pub options: Vec<String>,
    /// Rounds over the servers.
    pub attempts: u32,
    /// Seconds to wait in each round.
    pub timeout: u32,
    /// Whether each query starts with another server.
    pub rotate: bool,
}

impl Default for ResolvConf {
    fn default() -> Self {
        ResolvConf {
            nameservers: Vec::new(),
            search: Vec::new(),
            options: Vec::new(),
            attempts: DEFAULT_ATTEMPTS,
            timeout: DEFAULT_TIMEOUT,
            rotate: false,
        }
    }
}

impl ResolvConf {
    /// Parses a file's content.
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            // A comment starts in the first column (resolv.conf(5)); elsewhere these characters
            // could stand in a name, so only a word that starts with one ends the line.
            let mut words = line
                .split_whitespace()
                .take_while(|word| !word.starts_with(['#', ';']));
            match words.next() {
                Some("nameserver") if conf.nameservers.len() < MAX_SERVERS => {
                    let server = words.next().and_then(Nameserver::parse);
                    conf.nameservers.extend(server);
                }
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("domain") => conf.search = words.take(1).map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        if conf.nameservers.is_empty() {
            conf.nameservers.push(LOCAL.into());
        }
        for option in &conf.options {
            match option.split_once(':') {
                Some(("attempts", n)) => {
                    let n = n.parse().unwrap_or(DEFAULT_ATTEMPTS);
                    conf.attempts = n.clamp(1, MAX_ATTEMPTS);
                }
                Some(("timeout", n)) => {
                    let n = n.parse().unwrap_or(DEFAULT_TIMEOUT);
                    conf.timeout = n.clamp(1, MAX_TIMEOUT);
                }
                None if option == "rotate" => conf.rotate = true,
                _ => {}
            }
        }
        conf
    }

    /// How long its servers are waited for.
    pub fn patience(&self) -> Patience {
        Patience {
            servers: u32::try_from(self.nameservers.len()).unwrap_or(1).max(1),
            round: Duration::from_secs(self.timeout.into()),
            attempts: self.attempts,
        }
    }

    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    ///
    /// What open(2) or read(2) says.
    pub fn read(path: &Path) -> io::Result<ResolvConf> {
        read_text(path).map(|text| ResolvConf::parse(&text))
    }
}

/// How long servers are waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    servers: u32,
    round: Duration,
    attempts: u32,
}

impl Patience {
    /// Rounds over the servers.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long a server is waited for before the next one is asked as well. All of a round are
    /// asked within it.
    pub fn head_start(&self) -> Duration {
        HEAD_START.min(self.round / self.servers)
    }

    /// When the server of number `n` is asked, counted over all rounds, from the beginning.
    pub fn turn(&self, n: u32) -> Duration {
        self.round * (n / self.servers) + self.head_start() * (n % self.servers)
    }

    /// How long a query may take in all: as many rounds as there are attempts, and for the last
    /// server that is asked at least the time of a round or two seconds.
    pub fn deadline(&self) -> Duration {
        let last = self.turn(self.servers * self.attempts - 1);
        let chance = self.round.min(LAST_CHANCE);
        (self.round * self.attempts).max(last + chance)
    }

    /// The options for the `resolv.conf` of a resolver that asks one service which waits so long,
    /// where they differ from what the C library takes without options.
    pub fn options(&self) -> Vec<String> {
        let seconds = self.deadline().as_secs_f64() / f64::from(self.attempts);
        let timeout = seconds.ceil() as u32;
        let timeout = (timeout != DEFAULT_TIMEOUT).then(|| format!("timeout:{timeout}"));
        let attempts = self.attempts;
        let attempts = (attempts != DEFAULT_ATTEMPTS).then(|| format!("attempts:{attempts}"));
        timeout.into_iter().chain(attempts).collect()
    }
}

pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How the host's file is read: a process in the sandbox cannot see it, and asks for its text.
#[derive(Clone)]
pub struct HostConf(Arc<dyn Fn() -> io::Result<String> + Send + Sync>);

impl HostConf {
    /// By `read`.
    pub fn read_by(read: impl Fn() -> io::Result<String> + Send + Sync + 'static) -> HostConf {
        HostConf(Arc::new(read))
    }

    /// From `path`.
    pub fn at(path: impl Into<PathBuf>) -> HostConf {
        let path = path.into();
        HostConf::read_by(move || read_text(&path))
    }
}

impl Default for HostConf {
    fn default() -> HostConf {
        HostConf::at(PATH)
    }
}

impl std::fmt::Debug for HostConf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostConf")
    }
}

/// The servers in force.
#[derive(Debug)]
pub struct Servers {
    /// `None` when they never change.
    source: Option<HostConf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    checked: Option<Instant>,
    text: String,
    conf: Arc<ResolvConf>,
}

impl Servers {
    /// Those of the host's file, followed as it changes.
    pub fn of_host(host: &HostConf) -> Servers {
        Servers::with(Some(host.clone()), ResolvConf::parse(""))
    }

    /// These, for good.
    pub fn fixed(nameservers: Vec<Nameserver>) -> Servers {
        let conf = ResolvConf {
            nameservers,
            ..ResolvConf::default()
        };
        Servers::with(None, conf)
    }

    fn with(source: Option<HostConf>, conf: ResolvConf) -> Servers {
        let state = State {
            checked: None,
            text: String::new(),
            conf: Arc::new(conf),
        };
        Servers {
            source,
            state: Mutex::new(state),
        }
    }

    /// What is in force now.
    pub fn current(&self) -> Arc<ResolvConf> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = state.checked.is_some_and(|at| at.elapsed() < RECHECK);
        if !fresh && let Some(HostConf(read)) = &self.source {
            state.checked = Some(Instant::now());
            match read() {
                Ok(text) if text != state.text => {
                    state.conf = Arc::new(ResolvConf::parse(&text));
                    state.text = text;
                    tracing::debug!(servers = ?state.conf.nameservers, "resolv.conf read");
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "resolv.conf cannot be read"),
            }
        }
        state.conf.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(conf: &ResolvConf) -> Vec<String> {
        let text = |s: &Nameserver| s.address.to_string();
        conf.nameservers.iter().map(text).collect()
    }

    #[test]
    fn an_ordinary_file() {
        let conf = ResolvConf::parse(
            "# made by hand\n; old style\nnameserver 192.0.2.1\nnameserver\t2001:db8::1   # second\n\
             domain example.net\nsearch example.org corp.example.org\n\
             options timeout:3 attempts:4\noptions rotate edns0\n",
        );
        assert_eq!(addresses(&conf), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(conf.search, ["example.org", "corp.example.org"]);
        assert_eq!(conf.options, ["timeout:3", "attempts:4", "rotate", "edns0"]);
        assert_eq!((conf.attempts, conf.rotate), (4, true));
    }

    #[test]
    fn servers_are_waited_for_as_the_file_says() {
        let patience = |text: &str| ResolvConf::parse(text).patience();
        let told = |text: &str| {
            let patience = patience(text);
            let seconds = |duration: Duration| duration.as_secs_f64();
            let turns = (0..patience.servers * patience.attempts).map(|n| patience.turn(n));
            let turns: Vec<f64> = turns.map(seconds).collect();
            (
                turns,
                seconds(patience.deadline()),
                patience.options().join(" "),
            )
        };
        assert_eq!(told(""), (vec![0., 5.], 10., String::new()));
        let three = "nameserver 192.0.2.1\n".repeat(3);
        let turns = vec![0., 1., 2., 5., 6., 7.];
        assert_eq!(told(&three), (turns, 10., String::new()));
        let quick = "nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions timeout:1 attempts:1\n";
        let options = "timeout:2 attempts:1".to_owned();
        assert_eq!(told(quick), (vec![0., 0.5], 1.5, options));
        let options = "timeout:3 attempts:4".to_owned();
        let slow = told("options timeout:3 attempts:4\n");
        assert_eq!((slow.1, slow.2), (12., options));
        for (option, timeout) in [("timeout:0", 1), ("timeout:99", 30), ("timeout:x", 5)] {
            let conf = ResolvConf::parse(&format!("options {option}\n"));
            assert_eq!(conf.timeout, timeout, "{option}");
        }
    }

    #[test]
    fn the_last_of_domain_and_search_counts() {
        let conf = ResolvConf::parse("search a b\ndomain c d\n");
        assert_eq!(conf.search, ["c"]);
    }

    #[test]
    fn scopes() {
        let conf = ResolvConf::parse("nameserver fe80::1%lo\nnameserver fe80::2%7\n");
        let resolved: Vec<_> = conf
            .nameservers
            .iter()
            .map(|s| s.socket_addr().unwrap().to_string())
            .collect();
        assert_eq!(resolved, ["[fe80::1%1]:53", "[fe80::2%7]:53"]);
        let gone = Nameserver::parse("fe80::1%no-such-if").unwrap();
        assert!(gone.socket_addr().is_err());
    }

    #[test]
    fn a_file_without_a_server_means_the_one_on_this_host() {
        for text in [
            "",
            "# nobody\n",
            "search a\noptions rotate\n",
            "nameserver one.one\n",
        ] {
            assert_eq!(addresses(&ResolvConf::parse(text)), ["127.0.0.1"], "{text}");
        }
        assert!(Servers::fixed(vec![]).current().nameservers.is_empty());
    }

    #[test]
    fn nonsense_is_skipped() {
        let conf = ResolvConf::parse(
            "nameserver\nnameserver one.one\nnameserver 1.2.3\nnameservers 192.0.2.1\n\
             options attempts:x\n\u{0}\nnameserver 192.0.2.9\n",
        );
        assert_eq!(addresses(&conf), ["192.0.2.9"]);
        assert_eq!(conf.attempts, 2);
        let many = "nameserver 192.0.2.1\n".repeat(9);
        assert_eq!(ResolvConf::parse(&many).nameservers.len(), MAX_SERVERS);
        assert_eq!(ResolvConf::parse("options attempts:0").attempts, 1);
        assert_eq!(ResolvConf::parse("options attempts:99").attempts, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_adopted_within_two_seconds() {
        let dir = std::env::temp_dir().join(format!("cnet-resolv-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("resolv.conf");
        let servers = Servers::of_host(&HostConf::at(&path));
        assert_eq!(addresses(&servers.current()), ["127.0.0.1"]);

        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(
            addresses(&servers.current()),
            ["127.0.0.1"],
            "trusted for a second"
        );
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert_eq!(addresses(&servers.current()), ["192.0.2.1"]);

        let new = dir.join("new");
        std::fs::write(&new, "nameserver 192.0.2.2\n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert_eq!(addresses(&servers.current()), ["192.0.2.2"]);

        std::fs::remove_dir_all(&dir).unwrap();
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert_eq!(
            addresses(&servers.current()),
            ["192.0.2.2"],
            "kept while it is gone"
        );
    }
}
