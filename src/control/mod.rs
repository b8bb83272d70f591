//! The control API of a network process: what can be asked of a running network, and the answers.
//!
//! `docs/protocol.md` describes the same for other languages: framing, descriptors, bounds, and an
//! example of each action and answer.
//!
//! # On the wire
//!
//! HTTP/1.1 on the network's Unix socket, one request a connection: `POST /v1/actions` with an
//! [`Action`] as JSON, answered with 200 and JSON, or with an error status and
//! `{"message": "…"}`. Descriptors that an action needs come by SCM_RIGHTS with the request's
//! bytes. By hand: `curl --unix-socket …/api.sock -d '{"inspect":{}}' http://cnet/v1/actions`.
//! `GET /v1/events` is answered with a stream of [`Event`]s, one line of JSON each, and `GET /metrics`
//! with the counters of [`StatisticsReport`] as Prometheus reads them.
//!
//! # Bounds
//!
//! A body holds at most [`MAX_BODY`] bytes, JSON at most 128 levels, a request at most
//! [`MAX_DESCRIPTORS`] descriptors. Unknown actions and fields are refused. A client that sends
//! nothing for [`REQUEST_TIMEOUT`] is disconnected. Server and client accept a peer of the same
//! user or of root alone: a request carries a container's namespace.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use cnet_wire::{MacAddr, Protocol};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::auto_publish::AutoPublish;
use crate::definition::DnsServer;
use crate::filter::Filter;
use crate::publish::PublishSpec;
use crate::vm::VmAddress;

pub mod client;
mod dns_log;
mod event;
mod policy;
mod statistics;
pub mod stream;
pub(crate) mod text;
mod uplink;

pub use dns_log::{DnsLog, DnsLogReport, LoggedQuery};
pub use event::{Event, Events};
pub use policy::{ApplyPolicies, PolicyReport, RemovePolicies};
pub use statistics::{
    AnswerTimes, ContainerStatistics, Counters, ProcessStatistics, RouterStatistics,
    StatisticsReport, TimeBucket,
};
pub use uplink::{PeerReport, StationReport, UplinkReport};

/// The path of actions.
pub const PATH: &str = "/v1/actions";

/// The path of the metrics, in the text formats of Prometheus and OpenMetrics.
pub const METRICS_PATH: &str = "/metrics";

/// The path of the stream of events.
pub const EVENTS_PATH: &str = "/v1/events";

/// Events that a client may be behind with. One that is further behind loses the oldest, and is
/// told how many ([`Event::Lost`]).
pub const MAX_EVENTS_BEHIND: usize = 256;

/// The largest request or answer body in bytes that is read.
pub const MAX_BODY: usize = 64 * 1024;

/// The largest answer in bytes that a client reads: some hundred bytes a container.
pub const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// The most labels a container may have.
pub const MAX_LABELS: usize = 64;

/// Bytes of a label's key, and of its value.
pub const MAX_LABEL: usize = 512;

/// How long a client may take to send its request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Descriptors with one request; more are closed unseen.
pub const MAX_DESCRIPTORS: usize = 4;

/// What a client can ask for. Every action is legal at any time while the network runs; what each
/// needs beyond that stands beside it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Action {
    /// Tells who is on the network. Answered with a [`NetworkReport`].
    Inspect(Nothing),
    /// Gives a container an interface on the network. Needs a descriptor of its network namespace,
    /// and for a target that is a process a pidfd behind it. Refused with 409 if the name, the
    /// id or an address is taken or the container is on the network already, with 400 for the
    /// namespace that the network itself goes out by, and with 422 if the interface cannot be made,
    /// or for ports on an internal network. Answered with an [`Attached`].
    Attach(Box<Attach>),
    /// Takes a container's interface away. 404 if there is no such container. Answered with
    /// [`Nothing`].
    Detach(Detach),
    /// Opens ports of the host and leads them to a container; all or none. 404 if there is no such
    /// container, 409 if a port is taken, 422 on an internal network. Answered with [`Published`].
    Publish(PublishPorts),
    /// Closes ports of the host. 404 if none was open. Answered with [`Published`]: those closed.
    Unpublish(PublishPorts),
    /// Tells what passed and what was dropped. Answered with a [`StatisticsReport`].
    Statistics(Nothing),
    /// Tells what a container has asked for by DNS. 404 if there is no such container. Answered with
    /// a [`DnsLogReport`].
    DnsLog(DnsLog),
    /// Takes policies in, and applies them to what is there and what is open. 400 if one is not
    /// understood: none is taken in then. Answered with a [`PolicyReport`].
    ApplyPolicies(ApplyPolicies),
    /// Takes policies out. 404 if there is none of a name: none is taken out then. Answered with a
    /// [`PolicyReport`].
    RemovePolicies(RemovePolicies),
    /// Tells the policies. Answered with a [`PolicyReport`].
    Policies(Nothing),
    /// Ends the network process. 409 while containers are on the network, unless `force` is given,
    /// which detaches them. Answered with [`Nothing`], then done.
    Stop(Stop),
}

/// No fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// A container that is to join, as a runtime, a command line and the control API have it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use cnet::Attach;
///
/// let attach = Attach::new().name("web").alias("www").publish("8080:80".parse()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Attach {
    /// What it is called on this network; by default the first twelve digits of its id.
    pub name: Option<String>,
    /// Its id, 64 hexadecimal digits; by default a random one.
    pub id: Option<String>,
    /// Further names.
    pub aliases: Vec<String>,
    /// Notes for programs and for policy; at most [`MAX_LABELS`], each with key and value of at most
    /// [`MAX_LABEL`] bytes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The IPv4 address that it asks for; by default the network chooses.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address that it asks for; by default the network chooses.
    pub ipv6: Option<Ipv6Addr>,
    /// The DNS servers that are asked for it, in JSON as `--dns` has them; by default the network's.
    pub dns: Vec<DnsServer>,
    /// The hardware address that it asks for, in JSON as `02:00:00:00:00:01`; by default the
    /// network chooses.
    #[serde(with = "text::option")]
    pub mac: Option<MacAddr>,
    /// What the interface is called; by default the first free `ethN`.
    pub interface: Option<String>,
    /// Ports to open, in JSON as `-p` has them.
    pub publish: Vec<PublishSpec>,
    /// Whether what it listens on is published too, as it begins and ends; in JSON as
    /// `auto,~PORT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_auto: Option<AutoPublish>,
    /// Whether it may send from other addresses than its own, for machines behind it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub trust: bool,
    /// Whether it joins only if the network's process is in its whole sandbox.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub require_sandbox: bool,
    /// The far ends that it may talk with, besides the network's own filter.
    #[serde(skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    /// The path of the network namespace, if the container is known by that: it leaves when the
    /// path does. Without a path it is known by its process. [`crate::Network::attach`] sets it.
    pub path: Option<PathBuf>,
    /// A process in the namespace, if the one behind the pidfd is not: by it the namespace is found
    /// again after a crash of the network's process. Its number is the network's process's, and not
    /// for a container that is known by a path. [`crate::Network::attach`] sets it.
    pub member: Option<i32>,
    /// Where a virtual machine meets the network, as `stream:PATH` or `dgram:LOCAL:REMOTE`: then
    /// there is no namespace and no descriptor, and it stays until it is detached.
    /// [`crate::Network::attach`] sets it.
    pub vm: Option<VmAddress>,
}

impl Attach {
    /// A container for which the network chooses everything.
    pub fn new() -> Attach {
        Attach::default()
    }

    /// Calls it `name` on this network.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Attach {
        self.name = Some(name.into());
        self
    }

    /// Gives it this id, 64 hexadecimal digits.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Attach {
        self.id = Some(id.into());
        self
    }

    /// Gives it a further name.
    #[must_use]
    pub fn alias(mut self, alias: impl Into<String>) -> Attach {
        self.aliases.push(alias.into());
        self
    }

    /// Notes something about it.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Attach {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Asks for this address, of either family.
    #[must_use]
    pub fn address(mut self, address: impl Into<IpAddr>) -> Attach {
        match address.into() {
            IpAddr::V4(address) => self.ipv4 = Some(address),
            IpAddr::V6(address) => self.ipv6 = Some(address),
        }
        self
    }

    /// Lets it talk with the far ends that `filter` allows.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Attach {
        self.filter = filter;
        self
    }

    /// Has this DNS server asked for it.
    #[must_use]
    pub fn dns(mut self, server: DnsServer) -> Attach {
        self.dns.push(server);
        self
    }

    /// Asks for this hardware address.
    #[must_use]
    pub fn mac(mut self, mac: MacAddr) -> Attach {
        self.mac = Some(mac);
        self
    }

    /// Calls its interface so.
    #[must_use]
    pub fn interface(mut self, interface: impl Into<String>) -> Attach {
        self.interface = Some(interface.into());
        self
    }

    /// Opens a port of the host, or several, that lead to it.
    #[must_use]
    pub fn publish(mut self, ports: PublishSpec) -> Attach {
        self.publish.push(ports);
        self
    }
}

/// A container that is to leave.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Its name, its id or the start of it, or the number of its process.
    pub container: String,
}

/// Ports of a container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishPorts {
    /// Its name, its id or the start of it, or the number of its process.
    pub container: String,
    /// The ports, in JSON as `-p` has them.
    pub ports: Vec<PublishSpec>,
}

/// How to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Whether containers are detached that are on the network still.
    pub force: bool,
}

/// A container that has joined.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attached {
    /// The container, as [`Action::Inspect`] tells of it.
    #[serde(flatten)]
    pub container: ContainerReport,
    /// The network's gateways, which are also its DNS servers.
    pub gateways: Vec<IpAddr>,
}

impl Attached {
    /// `container`, which has these gateways.
    pub fn new(container: ContainerReport, gateways: Vec<IpAddr>) -> Attached {
        Attached {
            container,
            gateways,
        }
    }
}

/// Ports of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Published {
    /// One entry a socket of the host.
    pub ports: Vec<PublishedPort>,
}

/// An open port of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PublishedPort {
    /// Transport, in JSON `tcp` or `udp`.
    #[serde(with = "text")]
    pub protocol: Protocol,
    /// Where it is open.
    pub host: SocketAddr,
    /// Where it leads.
    pub container: SocketAddr,
}

impl PublishedPort {
    /// The port `host`, which leads to `container`.
    pub fn new(protocol: Protocol, host: SocketAddr, container: SocketAddr) -> PublishedPort {
        PublishedPort {
            protocol,
            host,
            container,
        }
    }
}

/// A running network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkReport {
    /// Its name.
    pub name: String,
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// The network process.
    pub pid: u32,
    /// The containers on it, by name.
    pub containers: Vec<ContainerReport>,
    /// What leads to other hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplinks: Vec<UplinkReport>,
}

impl NetworkReport {
    /// The network of that name and id, which the process `pid` serves, without containers.
    pub fn new(name: impl Into<String>, id: impl Into<String>, pid: u32) -> NetworkReport {
        NetworkReport {
            name: name.into(),
            id: id.into(),
            pid,
            containers: Vec::new(),
            uplinks: Vec::new(),
        }
    }
}

/// A container on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContainerReport {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name on this network.
    pub name: String,
    /// Its further names.
    pub aliases: Vec<String>,
    /// What was noted about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The process it is known by.
    pub pid: Option<i32>,
    /// The path of its network namespace, if it is known by that.
    pub path: Option<PathBuf>,
    /// Where it meets the network, if it is a virtual machine.
    pub vm: Option<VmAddress>,
    /// The interface inside; empty for a virtual machine, which alone knows.
    pub interface: String,
    /// The interface's hardware address, in JSON as `02:00:00:00:00:01`. Every container on a
    /// network has one; of others that are listed beside them it is not known, and empty in JSON.
    #[serde(with = "text::or_empty")]
    pub mac: Option<MacAddr>,
    /// Its address, with the prefix length of the network.
    pub ipv4: Option<Ipv4Net>,
    /// Its address, with the prefix length of the network.
    pub ipv6: Option<Ipv6Net>,
    /// Open ports of the host that lead to it.
    pub ports: Vec<PublishedPort>,
}

impl ContainerReport {
    /// A container of which nothing but this is known.
    pub fn new(id: impl Into<String>, name: impl Into<String>) -> ContainerReport {
        ContainerReport {
            id: id.into(),
            name: name.into(),
            aliases: Vec::new(),
            labels: BTreeMap::new(),
            pid: None,
            path: None,
            vm: None,
            interface: String::new(),
            mac: None,
            ipv4: None,
            ipv6: None,
            ports: Vec::new(),
        }
    }
}

/// Any answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Answer {
    /// To [`Action::Inspect`].
    Network(NetworkReport),
    /// To [`Action::Attach`].
    Attached(Attached),
    /// To [`Action::Publish`] and [`Action::Unpublish`].
    Published(Published),
    /// To [`Action::Statistics`].
    Statistics(StatisticsReport),
    /// To [`Action::DnsLog`].
    DnsLog(DnsLogReport),
    /// To [`Action::ApplyPolicies`], [`Action::RemovePolicies`] and [`Action::Policies`].
    Policies(PolicyReport),
    /// To the rest.
    Done(Nothing),
}

/// Why an action was refused: what the status of the answer tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// 400: the request makes no sense.
    Invalid,
    /// 403: the client is not let in from where it is.
    Forbidden,
    /// 404: no such container or port.
    NotFound,
    /// 409: another container has it.
    Conflict,
    /// 413: over [`MAX_BODY`].
    TooLarge,
    /// 422: it makes sense, but cannot be done.
    Impossible,
    /// 503: the network is ending.
    Ending,
    /// 500: a failure of ours.
    Internal,
}

impl Kind {
    /// The status code of HTTP.
    pub fn status(self) -> u16 {
        match self {
            Kind::Invalid => 400,
            Kind::Forbidden => 403,
            Kind::NotFound => 404,
            Kind::Conflict => 409,
            Kind::TooLarge => 413,
            Kind::Impossible => 422,
            Kind::Ending => 503,
            Kind::Internal => 500,
        }
    }

    /// What a status code stands for.
    pub fn of_status(status: u16) -> Kind {
        match status {
            403 => Kind::Forbidden,
            404 => Kind::NotFound,
            409 => Kind::Conflict,
            413 => Kind::TooLarge,
            422 => Kind::Impossible,
            503 => Kind::Ending,
            400..=499 => Kind::Invalid,
            _ => Kind::Internal,
        }
    }
}

/// An action that was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Which sort of refusal it is.
    pub kind: Kind,
    /// Why, and what to do about it.
    pub message: String,
}

impl Refusal {
    /// Of that kind, for that reason.
    pub fn new(kind: Kind, message: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            message: message.into(),
        }
    }
}

/// The body of an error.
#[derive(Serialize, Deserialize)]
pub struct ErrorBody {
    /// What a person is told.
    pub message: String,
}

#[cfg(test)]
mod examples;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_read_as_documented() {
        let read = |text: &str| serde_json::from_str::<Action>(text);
        assert_eq!(
            read(r#"{"inspect":{}}"#).unwrap(),
            Action::Inspect(Nothing {})
        );
        let attach = read(r#"{"attach":{"name":"web","aliases":["www"],"ipv4":"10.88.0.7"}}"#);
        let Action::Attach(attach) = attach.unwrap() else {
            panic!("another action");
        };
        assert_eq!(attach.name.as_deref(), Some("web"));
        assert_eq!(attach.aliases, ["www"]);
        assert_eq!(attach.ipv4, Some([10, 88, 0, 7].into()));
        for refused in [
            r#"{"inspect":{"all":true}}"#,
            r#"{"inspect":{},"stop":{}}"#,
            r#"{"attach":{"nmae":"web"}}"#,
            r#"{"attach":{"ipv4":"10.88.0.256"}}"#,
            r#"{"detach":{}}"#,
            r#"{"reboot":{}}"#,
            r#"{"stop":{"force":1}}"#,
            r#""inspect""#,
            "",
            "{}",
            "[]",
        ] {
            assert!(read(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn kinds_cross_as_statuses() {
        for kind in [
            Kind::Invalid,
            Kind::Forbidden,
            Kind::NotFound,
            Kind::Conflict,
            Kind::TooLarge,
            Kind::Impossible,
            Kind::Ending,
            Kind::Internal,
        ] {
            assert_eq!(Kind::of_status(kind.status()), kind);
        }
        assert_eq!(Kind::of_status(405), Kind::Invalid);
        assert_eq!(Kind::of_status(502), Kind::Internal);
    }
}
