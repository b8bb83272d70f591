//! What clients are told: who is there, and what passed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cnet_wire::{DropCounters, MacAddr};

use super::hub::Hub;
use super::state::{Life, Port, Record};
use cnet::control::{
    ContainerReport, ContainerStatistics, Kind, NetworkReport, PublishedPort, Refusal,
    StatisticsReport,
};

/// An open port.
pub(super) fn port(port: Port) -> PublishedPort {
    PublishedPort {
        protocol: if port.udp { "udp" } else { "tcp" }.to_owned(),
        host: port.host,
        container: port.container,
    }
}

/// A container.
pub(super) fn container(hub: &Hub, record: &Record) -> ContainerReport {
    let (pid, path, vm) = match &record.life {
        Life::Process { pid, member, .. } => (Some(member.unwrap_or(*pid)), None, None),
        Life::Path { path } => (None, Some(path.clone()), None),
        Life::Machine { address } => (None, None, Some(address.to_string())),
    };
    let (v4, v6) = (hub.config.ipv4, hub.config.ipv6);
    let with_prefix = |address: Option<IpAddr>, length: Option<u8>| {
        let (address, length) = (address?, length?);
        Some(format!("{address}/{length}"))
    };
    ContainerReport {
        id: record.id.clone(),
        name: record.name.clone(),
        aliases: record.aliases.clone(),
        pid,
        path,
        vm,
        interface: record.interface.clone(),
        mac: MacAddr(record.mac).to_string(),
        ipv4: with_prefix(record.ipv4.map(IpAddr::V4), v4.map(|plan| plan.prefix_len)),
        ipv6: with_prefix(record.ipv6.map(IpAddr::V6), v6.map(|plan| plan.prefix_len)),
        ports: record.ports.iter().copied().map(port).collect(),
    }
}

fn by_reason(drops: &DropCounters) -> BTreeMap<String, u64> {
    let counted = drops.iter().filter(|(_, count)| *count > 0);
    counted
        .map(|(reason, n)| (reason.name().to_owned(), n))
        .collect()
}

impl Hub {
    /// Who is there. Those who are about to join are not.
    pub(super) fn report(&self) -> NetworkReport {
        let tables = self.tables();
        let joined = tables.stays.values().filter(|stay| stay.has_joined());
        NetworkReport {
            name: self.definition.name.clone(),
            id: self.definition.id.clone(),
            pid: std::process::id(),
            containers: joined.map(|stay| container(self, &stay.record)).collect(),
        }
    }

    /// What passed.
    pub(super) async fn statistics(&self) -> Result<StatisticsReport, Refusal> {
        let statistics = self.control.statistics().await;
        let statistics = statistics.map_err(|e| Refusal::new(Kind::Ending, e.to_string()))?;
        let tables = self.tables();
        let containers = tables.stays.values().filter_map(|stay| {
            let port = stay.port()?;
            let counted = statistics.ports.iter().find(|p| p.port == port)?;
            Some(ContainerStatistics {
                name: stay.record.name.clone(),
                bytes_sent: counted.bytes_in,
                frames_sent: counted.frames_in,
                bytes_received: counted.bytes_out,
                frames_received: counted.frames_out,
                drops: by_reason(&counted.drops),
            })
        });
        Ok(StatisticsReport {
            network: self.definition.name.clone(),
            flows: statistics.flows as u64,
            drops: by_reason(&statistics.drops),
            containers: containers.collect(),
        })
    }
}
