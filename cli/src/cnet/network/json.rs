//! Networks as programs see them: the JSON of `docker network inspect`.
//!
//! Names, order and types of the fields are those of Docker's API (`GET /networks/{id}`, version
//! 1.47), so that what reads Docker's output reads this. What Docker has no word for stands under
//! `Cnet`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cnet::format::short;
use cnet::control::{Counters, RouterStatistics, StatisticsReport, UplinkReport};
use cnet::definition::{Definition, DnsServer};

/// Where Docker's bridge driver has the MTU.
const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// Where Docker's overlay driver has the VNI.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";
const PORT_OPTION: &str = "cnet.overlay.port";
const PEERS_OPTION: &str = "cnet.overlay.peers";

/// A network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network {
    /// What it is called.
    pub(crate) name: String,
    /// Its id.
    pub(crate) id: String,
    /// When it was made (RFC 3339).
    pub(crate) created: String,
    /// `local`: of this machine.
    pub(crate) scope: String,
    /// `bridge`, `overlay` or `macvlan`.
    pub(crate) driver: String,
    /// Whether it has IPv4.
    #[serde(rename = "EnableIPv4")]
    pub(crate) enable_ipv4: bool,
    /// Whether it has IPv6.
    #[serde(rename = "EnableIPv6")]
    pub(crate) enable_ipv6: bool,
    /// Its subnets.
    #[serde(rename = "IPAM")]
    pub(crate) ipam: Ipam,
    /// Whether it has no way out.
    pub(crate) internal: bool,
    /// Whether containers can be attached by hand: always.
    pub(crate) attachable: bool,
    /// Whether it is a swarm's: never.
    pub(crate) ingress: bool,
    /// The network it has its configuration from: none.
    pub(crate) config_from: ConfigFrom,
    /// Whether it is nothing but a configuration: never.
    pub(crate) config_only: bool,
    /// The containers on it now, by id.
    pub(crate) containers: BTreeMap<String, Container>,
    /// The driver's options.
    pub(crate) options: BTreeMap<String, String>,
    /// What its maker noted.
    pub(crate) labels: BTreeMap<String, String>,
    /// What Docker does not have.
    pub(crate) cnet: Own,
}

/// The subnets of a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Ipam {
    /// `default`.
    pub(crate) driver: String,
    /// None.
    pub(crate) options: BTreeMap<String, String>,
    /// One a family.
    pub(crate) config: Vec<IpamConfig>,
}

/// One subnet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct IpamConfig {
    /// The subnet.
    pub(crate) subnet: String,
    /// Where containers get their addresses from, if not from all of it.
    #[serde(rename = "IPRange", default, skip_serializing_if = "Option::is_none")]
    pub(crate) ip_range: Option<String>,
    /// The gateway's address.
    pub(crate) gateway: String,
}

impl IpamConfig {
    fn new<N: ToString>(subnet: &N, ip_range: Option<&N>, gateway: &impl ToString) -> IpamConfig {
        IpamConfig {
            subnet: subnet.to_string(),
            ip_range: ip_range.map(N::to_string),
            gateway: gateway.to_string(),
        }
    }
}

/// Where a network has its configuration from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ConfigFrom {
    /// Empty.
    pub(crate) network: String,
}

/// A container on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Container {
    /// What it is called.
    pub(crate) name: String,
    /// The id of its place on the network.
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint_id: String,
    /// Its MAC address.
    pub(crate) mac_address: String,
    /// `ADDRESS/LENGTH`, or empty.
    #[serde(rename = "IPv4Address")]
    pub(crate) ipv4_address: String,
    /// `ADDRESS/LENGTH`, or empty.
    #[serde(rename = "IPv6Address")]
    pub(crate) ipv6_address: String,
}

/// What Docker does not have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Own {
    /// Whether the network's process runs.
    pub(crate) running: bool,
    /// Whether containers reach the gateway alone, and not each other.
    pub(crate) isolate: bool,
    /// Bytes of the largest packet.
    #[serde(rename = "MTU")]
    pub(crate) mtu: u16,
    /// The gateway's MAC address.
    pub(crate) gateway_mac: String,
    /// The DNS servers that are asked, if not the host's.
    #[serde(rename = "DNS")]
    pub(crate) dns: Vec<DnsServer>,
    /// The domains that containers search, if not the host's.
    #[serde(rename = "DNSSearch")]
    pub(crate) dns_search: Vec<String>,
    /// What it has counted, if its process runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counters: Option<NetworkCounters>,
    /// What leads to other hosts, and what is behind it, if its process runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) uplinks: Vec<UplinkReport>,
    /// What is wrong with it: routes of the host within its subnets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
}

/// What a network's process tells, if it runs.
pub(crate) type Live = Option<Running>;

/// What a network's process tells.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Running {
    /// The containers on the network, by id.
    pub(crate) containers: BTreeMap<String, Container>,
    /// What it has counted.
    pub(crate) counters: Option<NetworkCounters>,
    /// What leads to other hosts.
    pub(crate) uplinks: Vec<UplinkReport>,
}

/// What a network has counted since it started; a counter that is 0 may be absent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkCounters {
    /// Connections and mappings that are open now.
    pub(crate) flows: u64,
    /// Packets the router dropped, by reason.
    pub(crate) drops: Counters,
    /// TCP connections, by what became of them.
    #[serde(rename = "TCP")]
    pub(crate) tcp: Counters,
    /// What the gateway's services did.
    pub(crate) gateway: Counters,
    /// What passed the router's port of the switch.
    #[serde(default)]
    pub(crate) router: RouterStatistics,
    /// Clients of published TCP ports, by the way they took.
    #[serde(default)]
    pub(crate) forwards: Counters,
    /// What workers told each other.
    #[serde(default)]
    pub(crate) workers: Counters,
    /// DNS queries, by what became of them.
    #[serde(rename = "DNS")]
    pub(crate) dns: Counters,
    /// Why containers cannot ping the world, if the host has refused a ping socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ping_unavailable: Option<String>,
}

impl From<StatisticsReport> for NetworkCounters {
    fn from(report: StatisticsReport) -> NetworkCounters {
        NetworkCounters {
            flows: report.flows,
            drops: report.drops,
            tcp: report.tcp,
            gateway: report.gateway,
            router: report.router,
            forwards: report.forwards,
            workers: report.workers,
            dns: report.dns,
            ping_unavailable: report.ping_unavailable,
        }
    }
}

impl Network {
    /// The network `definition`, with what is on it now.
    pub(crate) fn new(definition: &Definition, live: Live) -> Network {
        let running = live.is_some();
        let live = live.unwrap_or_default();
        let ipv4 = definition
            .ipv4
            .map(|pool| IpamConfig::new(&pool.subnet, pool.ip_range.as_ref(), &pool.gateway));
        let ipv6 = definition
            .ipv6
            .map(|pool| IpamConfig::new(&pool.subnet, pool.ip_range.as_ref(), &pool.gateway));
        Network {
            name: definition.name.clone(),
            id: definition.id.clone(),
            created: definition.created.clone(),
            scope: "local".to_owned(),
            driver: definition.driver.clone(),
            enable_ipv4: ipv4.is_some(),
            enable_ipv6: ipv6.is_some(),
            ipam: Ipam {
                driver: "default".to_owned(),
                options: BTreeMap::new(),
                config: ipv4.into_iter().chain(ipv6).collect(),
            },
            internal: definition.internal,
            attachable: true,
            ingress: false,
            config_from: ConfigFrom::default(),
            config_only: false,
            options: options(definition),
            labels: definition.labels.clone(),
            cnet: Own {
                running,
                isolate: definition.isolate,
                mtu: definition.mtu,
                gateway_mac: definition.gateway_mac().to_string(),
                dns: definition.dns.clone(),
                dns_search: definition.dns_search.clone(),
                counters: live.counters,
                uplinks: live.uplinks,
                warnings: Vec::new(),
            },
            containers: live.containers,
        }
    }
}

/// The driver's options, by Docker's names where it has them.
fn options(definition: &Definition) -> BTreeMap<String, String> {
    let mut options = BTreeMap::from([(MTU_OPTION.to_owned(), definition.mtu.to_string())]);
    if let Some(overlay) = &definition.overlay {
        options.insert(VNI_OPTION.to_owned(), overlay.vni.to_string());
        let peers = overlay.peers.iter().map(ToString::to_string);
        options.insert(PEERS_OPTION.to_owned(), peers.collect::<Vec<_>>().join(","));
        options.insert(PORT_OPTION.to_owned(), overlay.port.to_string());
    }
    if let Some(lan) = &definition.lan {
        options.insert("parent".to_owned(), lan.parent.clone());
    }
    options
}

/// The id of a container's place on a network: 64 hexadecimal digits, the same for as long as both
/// keep their ids, and another one for each network.
pub(crate) fn endpoint_id(network: &str, container: &str) -> String {
    let mut hash = Sha256::new();
    for part in ["endpoint", network, container] {
        hash.update(part);
        // Which no id contains.
        hash.update([0]);
    }
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The line of a network in `cnet network ls --format json`, whose fields are all text, as
/// Docker's are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Line {
    /// When it was made.
    pub(crate) created_at: String,
    /// `bridge`, `overlay` or `macvlan`.
    pub(crate) driver: String,
    /// The beginning of its id.
    #[serde(rename = "ID")]
    pub(crate) id: String,
    /// `true` or `false`.
    #[serde(rename = "IPv4")]
    pub(crate) ipv4: String,
    /// `true` or `false`.
    #[serde(rename = "IPv6")]
    pub(crate) ipv6: String,
    /// `true` or `false`.
    pub(crate) internal: String,
    /// `KEY=VALUE`, with commas between.
    pub(crate) labels: String,
    /// What it is called.
    pub(crate) name: String,
    /// `local`.
    pub(crate) scope: String,
    /// Its subnets, with commas between, which Docker does not tell.
    pub(crate) subnets: String,
}

impl Line {
    /// That of the network `definition`, with all of its id if `whole`.
    pub(crate) fn new(definition: &Definition, whole: bool) -> Line {
        let labels = definition.labels.iter();
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let subnets: Vec<String> = definition.subnets().map(|s| s.to_string()).collect();
        let id = if whole {
            &definition.id
        } else {
            short(&definition.id)
        };
        Line {
            created_at: definition.created.clone(),
            driver: definition.driver.clone(),
            id: id.to_owned(),
            ipv4: definition.ipv4.is_some().to_string(),
            ipv6: definition.ipv6.is_some().to_string(),
            internal: definition.internal.to_string(),
            labels: labels.join(","),
            name: definition.name.clone(),
            scope: "local".to_owned(),
            subnets: subnets.join(","),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use cnet::definition::{Ipv4Pool, Ipv6Pool};

    fn definition() -> Definition {
        let range = Some("172.27.1.0/24".parse().unwrap());
        let mut definition = Definition::new("web", "0123456789abcdef".repeat(4));
        definition.created = "2026-01-02T03:04:05Z".into();
        definition.internal = true;
        definition.mtu = 1500;
        definition.dns_search = vec!["corp.example".into()];
        let ipv4 = Ipv4Pool::new("172.27.0.0/16".parse().unwrap(), None, range);
        definition.ipv4 = Some(ipv4.unwrap());
        let ipv6 = Ipv6Pool::new("fd12::/64".parse().unwrap(), None, None);
        definition.ipv6 = Some(ipv6.unwrap());
        definition.labels = BTreeMap::from([("a".into(), "b".into())]);
        definition
    }

    // Longer than 60 lines: it holds one whole document as it is printed.
    #[test]
    fn the_shape_is_docker_s() {
        let container = Container {
            name: "one".to_owned(),
            endpoint_id: "e".repeat(64),
            mac_address: "02:42:ac:1b:01:02".to_owned(),
            ipv4_address: "172.27.1.2/16".to_owned(),
            ipv6_address: String::new(),
        };
        let mut report = StatisticsReport::new("web");
        report.flows = 3;
        report.tcp = BTreeMap::from([("opened".to_owned(), 5)]);
        report.drops = BTreeMap::from([("no-route".to_owned(), 1)]);
        let running = Running {
            uplinks: Vec::new(),
            containers: BTreeMap::from([("c".repeat(64), container)]),
            counters: Some(report.into()),
        };
        let network = Network::new(&definition(), Some(running));
        let expected = json!({
            "Name": "web",
            "Id": "0123456789abcdef".repeat(4),
            "Created": "2026-01-02T03:04:05Z",
            "Scope": "local",
            "Driver": "bridge",
            "EnableIPv4": true,
            "EnableIPv6": true,
            "IPAM": {
                "Driver": "default",
                "Options": {},
                "Config": [
                    {"Subnet": "172.27.0.0/16", "IPRange": "172.27.1.0/24", "Gateway": "172.27.0.1"},
                    {"Subnet": "fd12::/64", "Gateway": "fd12::1"}
                ]
            },
            "Internal": true,
            "Attachable": true,
            "Ingress": false,
            "ConfigFrom": {"Network": ""},
            "ConfigOnly": false,
            "Containers": {
                "c".repeat(64): {
                    "Name": "one",
                    "EndpointID": "e".repeat(64),
                    "MacAddress": "02:42:ac:1b:01:02",
                    "IPv4Address": "172.27.1.2/16",
                    "IPv6Address": ""
                }
            },
            "Options": {"com.docker.network.driver.mtu": "1500"},
            "Labels": {"a": "b"},
            "Cnet": {
                "Running": true,
                "Isolate": false,
                "MTU": 1500,
                "GatewayMac": "52:55:ac:1b:00:01",
                "DNS": [],
                "DNSSearch": ["corp.example"],
                "Counters": {
                    "Flows": 3,
                    "Drops": {"no-route": 1},
                    "TCP": {"opened": 5},
                    "Gateway": {},
                    "Router": {
                        "bytes_received": 0,
                        "bytes_sent": 0,
                        "drops": {},
                        "frames_received": 0,
                        "frames_sent": 0
                    },
                    "Forwards": {},
                    "Workers": {},
                    "DNS": {}
                }
            }
        });
        assert_eq!(serde_json::to_value(&network).unwrap(), expected);
        let back: Network = serde_json::from_value(expected).unwrap();
        assert_eq!(back, network);
    }

    #[test]
    fn a_place_is_neither_the_container_s_nor_another_network_s() {
        let (net, other, container) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        let id = endpoint_id(&net, &container);
        assert_eq!(id, endpoint_id(&net, &container));
        assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()));
        for another in [
            container.clone(),
            endpoint_id(&other, &container),
            endpoint_id(&net, &other),
            endpoint_id(&container, &net),
        ] {
            assert_ne!(id, another);
        }
    }

    #[test]
    fn a_line_is_all_text() {
        let line = serde_json::to_value(Line::new(&definition(), false)).unwrap();
        let fields = line.as_object().unwrap();
        assert!(fields.values().all(serde_json::Value::is_string));
        assert_eq!(fields["ID"], "0123456789ab");
        assert_eq!(fields["Subnets"], "172.27.0.0/16,fd12::/64");
        assert_eq!(
            (&fields["Labels"], &fields["IPv6"]),
            (&json!("a=b"), &json!("true"))
        );
    }
}
