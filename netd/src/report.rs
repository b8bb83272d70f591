//! What clients are told: which containers are there, and what passed.

use std::net::{Ipv4Addr, Ipv6Addr};

use cnet::control::{
    ContainerReport, ContainerStatistics, Counters, Kind, NetworkReport, Refusal, StatisticsReport,
};
use cnet_dataplane::NetworkConfig;
use cnet_wire::DropCounters;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::journal::{Liveness, Record};
use crate::members::Members;

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
    report.interface.clone_from(&record.interface);
    report.mac = Some(record.mac);
    report.ipv4 = record.ipv4.and_then(v4);
    report.ipv6 = record.ipv6.and_then(v6);
    report.ports.clone_from(&record.ports);
    report
}

/// The containers that are there. Those that are about to join are not.
pub(crate) fn network(members: &Members) -> NetworkReport {
    let definition = &members.definition;
    let (name, id) = (definition.name.clone(), definition.id.clone());
    let mut report = NetworkReport::new(name, id, std::process::id());
    let table = members.table();
    let joined = table.members().filter(|member| member.has_joined());
    let containers = joined.map(|member| container(&members.config, &member.record));
    report.containers = containers.collect();
    report
}

fn counters<'a>(counted: impl IntoIterator<Item = (&'a str, u64)>) -> Counters {
    let counted = counted.into_iter().filter(|(_, count)| *count > 0);
    counted.map(|(name, n)| (name.to_owned(), n)).collect()
}

fn by_reason(drops: &DropCounters) -> Counters {
    counters(drops.iter().map(|(reason, n)| (reason.name(), n)))
}

/// What passed.
pub(crate) async fn statistics(members: &Members) -> Result<StatisticsReport, Refusal> {
    let statistics = members.instance.statistics().await;
    let statistics = statistics.map_err(|e| Refusal::new(Kind::Ending, e.to_string()))?;
    let tcp = &statistics.tcp;
    let mut report = StatisticsReport::new(members.definition.name.clone());
    report.flows = statistics.flows as u64;
    report.drops = by_reason(&statistics.drops);
    report.tcp = counters([
        ("opened", tcp.opened),
        ("accepted", tcp.accepted),
        ("evicted", tcp.evicted),
    ]);
    report.dns = counters(members.instance.dns_outcomes());
    let table = members.table();
    let containers = table.members().filter_map(|member| {
        let port = member.port()?;
        let counted = statistics.ports.iter().find(|p| p.port == port)?;
        let mut container = ContainerStatistics::new(member.record.name.clone());
        container.bytes_sent = counted.bytes_in;
        container.frames_sent = counted.frames_in;
        container.bytes_received = counted.bytes_out;
        container.frames_received = counted.frames_out;
        container.drops = by_reason(&counted.drops);
        let flows = &counted.flows;
        container.flows = counters([
            ("tcp", flows.tcp as u64),
            ("udp", flows.udp as u64),
            ("ping", flows.ping as u64),
        ]);
        Some(container)
    });
    report.containers = containers.collect();
    Ok(report)
}
