//! What clients are told: which containers are there, and what passed.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use cnet::control::{
    ContainerReport, ContainerStatistics, Counters, DnsLogReport, LoggedQuery, NetworkReport,
    StatisticsReport,
};
use cnet::definition::Definition;
use cnet_dataplane::{NetworkConfig, PortId, PortStatistics, Statistics};
use cnet_wire::{DropCounters, DropReason};
use hickory_proto::rr::RecordType;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::dns::{Entry, Outcome, Transport};
use crate::journal::{Liveness, Record};

/// The host refuses ping sockets to users whose group is not in this range (icmp(7)).
const PING_UNAVAILABLE: &str = "the host refuses ping sockets to this user: containers cannot ping the \
    world until net.ipv4.ping_group_range holds the user's group";

/// What is said of a container whose frames are dropped for their source.
const FOREIGN_SOURCES: &str = "frames that do not come from its own addresses are dropped (`spoofed`): \
    `--trust`, on `cnet attach`, `cnet run` and `cnet network create`, lets it send from others";

/// A container on a network that is as `config` says.
pub(crate) fn container(config: &NetworkConfig, record: &Record) -> ContainerReport {
    let mut report = ContainerReport::new(record.id.clone(), record.name.clone());
    match &record.liveness {
        Liveness::Process { pid, member, .. } => report.pid = Some(member.unwrap_or(*pid)),
        Liveness::Path { path } => report.path = Some(path.clone()),
        Liveness::Vm { address } => report.vm = Some(address.clone()),
    }
    let v4 = |address: Ipv4Addr| Ipv4Net::new(address, config.ipv4?.prefix_len).ok();
    let v6 = |address: Ipv6Addr| Ipv6Net::new(address, config.ipv6?.prefix_len).ok();
    report.aliases.clone_from(&record.aliases);
    report.labels.clone_from(&record.labels);
    report.interface.clone_from(&record.interface);
    report.mac = Some(record.mac);
    report.ipv4 = record.ipv4.and_then(v4);
    report.ipv6 = record.ipv6.and_then(v6);
    report.ports.clone_from(&record.ports);
    report
}

/// The network `definition`, whose process is `pid`, and the containers on it.
pub(crate) fn network<'a>(
    definition: &Definition,
    config: &NetworkConfig,
    pid: u32,
    containers: impl Iterator<Item = &'a Record>,
) -> NetworkReport {
    let (name, id) = (definition.name.clone(), definition.id.clone());
    let mut report = NetworkReport::new(name, id, pid);
    report.containers = containers.map(|record| container(config, record)).collect();
    report
}

fn counters<'a>(counted: impl IntoIterator<Item = (&'a str, u64)>) -> Counters {
    let counted = counted.into_iter().filter(|(_, count)| *count > 0);
    counted.map(|(name, n)| (name.to_owned(), n)).collect()
}

/// Drops by the names of their reasons.
pub(crate) fn by_reason(drops: &DropCounters) -> Counters {
    counters(drops.iter().map(|(reason, n)| (reason.name(), n)))
}

/// How often each outcome of DNS queries was.
type DnsOutcomes = [(&'static str, u64); Outcome::COUNT];

/// What a container has asked for by DNS.
pub(crate) fn dns_log(queries: &[Entry]) -> DnsLogReport {
    let told = |query: &Entry| LoggedQuery {
        number: query.number,
        time: humantime::format_rfc3339_millis(query.at).to_string(),
        transport: match query.transport {
            Transport::Udp => "udp".to_owned(),
            Transport::Tcp => "tcp".to_owned(),
        },
        name: match query.name.as_deref() {
            Some("") => ".".to_owned(),
            Some(name) => name.to_owned(),
            None => "?".to_owned(),
        },
        kind: RecordType::from(query.kind).to_string(),
        outcome: query.outcome.name().to_owned(),
        code: code_name(query.code),
        millis: u64::try_from(query.took.as_millis()).unwrap_or(u64::MAX),
    };
    DnsLogReport::new(queries.iter().map(told).collect())
}

/// The mnemonics of answers' codes (RFC 1035 section 4.1.1).
fn code_name(code: u8) -> String {
    const NAMES: [&str; 6] = [
        "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED",
    ];
    let name = NAMES.get(usize::from(code));
    name.map_or_else(|| format!("RCODE{code}"), |name| (*name).to_owned())
}

/// What passed the network of that name, whose containers have these ports.
pub(crate) fn statistics<'a>(
    network: &str,
    statistics: &Statistics,
    (dns, dns_of): (DnsOutcomes, impl Fn(PortId) -> DnsOutcomes),
    (trusts_all, containers): (bool, impl Iterator<Item = (&'a Record, PortId)>),
) -> StatisticsReport {
    let mut report = StatisticsReport::new(network);
    report.flows = statistics.flows as u64;
    report.drops = by_reason(&statistics.drops);
    report.tcp = counters(statistics.tcp.iter());
    report.gateway = counters(statistics.gateway.iter());
    let router = &statistics.router;
    report.router.bytes_sent = router.bytes_in;
    report.router.frames_sent = router.frames_in;
    report.router.bytes_received = router.bytes_out;
    report.router.frames_received = router.frames_out;
    report.router.drops = by_reason(&router.drops);
    report.forwards = counters(statistics.forwards.iter());
    report.workers = counters([
        ("handed_over", statistics.handed_over),
        ("defects", statistics.defects),
    ]);
    report.dns = counters(dns);
    report.ping_unavailable = statistics
        .ping_unavailable
        .map(|_| PING_UNAVAILABLE.to_owned());
    let counted: HashMap<PortId, &PortStatistics> =
        statistics.ports.iter().map(|p| (p.port, p)).collect();
    let containers = containers.filter_map(|(record, port)| {
        let counted = counted.get(&port)?;
        let mut container = of_container(record, counted, dns_of(port));
        let guarded = !(trusts_all || record.trust);
        if guarded && counted.drops.get(DropReason::Spoofed) > 0 {
            container.warnings.push(FOREIGN_SOURCES.to_owned());
        }
        Some(container)
    });
    report.containers = containers.collect();
    report
}

fn of_container(
    record: &Record,
    counted: &PortStatistics,
    dns: DnsOutcomes,
) -> ContainerStatistics {
    let mut container = ContainerStatistics::new(&record.name);
    container.interface.clone_from(&record.interface);
    container.bytes_sent = counted.bytes_in;
    container.frames_sent = counted.frames_in;
    container.bytes_received = counted.bytes_out;
    container.frames_received = counted.frames_out;
    container.drops = by_reason(&counted.drops);
    container.flows = counters([
        ("tcp", counted.flows.tcp as u64),
        ("udp", counted.flows.udp as u64),
        ("ping", counted.flows.ping as u64),
    ]);
    container.dns = counters(dns);
    container
}
