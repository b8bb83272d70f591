//! `cnet-netavark`: the plug-in for podman's netavark, from its version 1.6 on, under the driver's name
//! `cnet`: `podman network create -d cnet NAME`.
//!
//! # Theory of operation
//!
//! netavark starts the program with a verb, and the path of the container's network namespace for `setup`
//! and `teardown`; the request and the answer are JSON on the standard streams. The network of cnet has
//! the name of podman's. `create` makes it, so that podman writes down the subnets that it got, and
//! `setup` makes it again where it is gone. The network answers DNS itself: netavark's own server has no
//! entries for the containers of plug-ins.
//!
//! # Limits
//!
//! netavark has no verb for the end of a network: `cnet network rm` removes what `podman network rm` has
//! left. In rootless podman the plug-in runs in the namespaces of podman's networks, which are the host
//! for a network's process that it starts; one that runs already is asked wherever it is.
//!
//! Source: netavark, `plugin-API.md` and `network/types.rs`, plug-in API 1.0.0.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::log::report;
use crate::plugin::{self, PortMapping};
use crate::program::{event_loop, write_out};
use cnet::definition::Definition;
use cnet::network::{Network, Target};
use cnet::{Attach, Attached, Request};

/// The version of the interface that this program speaks.
const API_VERSION: &str = "1.0.0";

/// A network as podman has written it down. What is not known is passed on.
#[derive(Clone, Debug, Deserialize)]
struct NetworkConfig {
    name: String,
    #[serde(default)]
    subnets: Option<Vec<Subnet>>,
    #[serde(default)]
    internal: bool,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
    #[serde(default)]
    network_dns_servers: Option<Vec<IpAddr>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Subnet {
    subnet: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

/// The request of `setup` and `teardown`.
#[derive(Clone, Debug, Deserialize)]
struct ContainerRequest {
    container_id: String,
    container_name: String,
    #[serde(default)]
    port_mappings: Option<Vec<Mapping>>,
    network: NetworkConfig,
    network_options: NetworkOptions,
}

#[derive(Clone, Debug, Deserialize)]
struct Mapping {
    container_port: u16,
    #[serde(default)]
    host_ip: String,
    host_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    range: u16,
}

#[derive(Clone, Debug, Deserialize)]
struct NetworkOptions {
    #[serde(default)]
    aliases: Option<Vec<String>>,
    interface_name: String,
    #[serde(default)]
    static_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    static_mac: Option<String>,
}

/// The program: does what its first argument says, and tells the exit code.
pub fn main() -> ExitCode {
    if let Some(code) = plugin::network_process() {
        return code;
    }
    plugin::start_log();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (answer, code) = match act(&arguments) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(answer)) => (answer, ExitCode::SUCCESS),
        Err(error) => (json!({"error": report(&error)}), ExitCode::FAILURE),
    };
    match write_out(format!("{answer}\n")) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn act(arguments: &[&str]) -> anyhow::Result<Option<Value>> {
    match arguments {
        ["info"] => Ok(Some(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "api_version": API_VERSION,
        }))),
        ["create"] => create(serde_json::from_slice(&plugin::read_request()?)?).map(Some),
        ["setup", netns] => {
            let request = read()?;
            let done = event_loop()?.block_on(setup(netns, &request));
            done.map(Some)
        }
        ["teardown", _] => {
            let request = read()?;
            event_loop()?.block_on(teardown(&request)).map(|()| None)
        }
        _ => bail!(
            "a plug-in for netavark: its verbs are create, setup NETNS, teardown NETNS and info"
        ),
    }
}

fn read() -> anyhow::Result<ContainerRequest> {
    let text = plugin::read_request()?;
    serde_json::from_slice(&text).context("the request makes no sense")
}

/// Makes the network, and completes the description with its subnets.
fn create(mut described: Value) -> anyhow::Result<Value> {
    let config: NetworkConfig =
        serde_json::from_value(described.clone()).context("the network makes no sense")?;
    let network = plugin::ensure(request(&config)?)?;
    let subnets = subnets(network.definition());
    described["ipv6_enabled"] = subnets.iter().any(|s| s.subnet.addr().is_ipv6()).into();
    described["subnets"] = json!(subnets);
    Ok(described)
}

/// The network as cnet is asked for it.
fn request(config: &NetworkConfig) -> anyhow::Result<Request> {
    let mut request = Request::new(&config.name);
    let subnets = config.subnets.iter().flatten();
    request.gateways = subnets
        .clone()
        .filter_map(|subnet| subnet.gateway)
        .collect();
    request.subnets = subnets.map(|subnet| subnet.subnet).collect();
    request.internal = config.internal;
    let servers = config.network_dns_servers.iter().flatten();
    request.dns = servers.map(|&server| server.into()).collect();
    for (key, value) in config.options.iter().flatten() {
        match key.as_str() {
            "mtu" => {
                let mtu = value.parse();
                request.mtu = mtu.with_context(|| format!("`{value}` is no MTU"))?;
            }
            "isolate" => request.isolate = matches!(value.as_str(), "true" | "1"),
            _ => bail!("the driver cnet has no option `{key}`: it has mtu and isolate"),
        }
    }
    Ok(request)
}

fn subnets(definition: &Definition) -> Vec<Subnet> {
    let (v4, v6) = definition.gateways();
    let gateways = [v4.map(IpAddr::V4), v6.map(IpAddr::V6)];
    let gateway_in = |subnet: &IpNet| {
        let mut gateways = gateways.iter().flatten();
        gateways.find(|gateway| subnet.contains(*gateway)).copied()
    };
    definition
        .subnets()
        .map(|subnet| Subnet {
            gateway: gateway_in(&subnet),
            subnet,
        })
        .collect()
}

async fn setup(netns: &str, request: &ContainerRequest) -> anyhow::Result<Value> {
    let network = plugin::ensure(self::request(&request.network)?)?;
    let options = &request.network_options;
    let mut attach = Attach::new()
        .id(&request.container_id)
        .name(&request.container_name)
        .interface(&options.interface_name);
    for alias in options.aliases.iter().flatten() {
        // podman gives the name and the short id as aliases, too.
        if *alias != request.container_name {
            attach = attach.alias(alias);
        }
    }
    for address in options.static_ips.iter().flatten() {
        attach = attach.address(*address);
    }
    if let Some(mac) = options.static_mac.as_deref().filter(|mac| !mac.is_empty()) {
        attach = attach.mac(mac.parse()?);
    }
    for mapping in request.port_mappings.iter().flatten() {
        let mapping = PortMapping {
            host_ip: &mapping.host_ip,
            host_port: mapping.host_port,
            container_port: mapping.container_port,
            range: mapping.range,
            protocol: &mapping.protocol,
        };
        if let Some(port) = mapping.publish()? {
            attach = attach.publish(port);
        }
    }
    plugin::come_here(&network).await?;
    let joined = network.attach(Target::Path(netns.into()), attach).await?;
    Ok(status(&network, &joined))
}

/// What podman is told of the container's network.
fn status(network: &Network, joined: &Attached) -> Value {
    let container = &joined.container;
    let addresses = container.ipv4.map(IpNet::V4).into_iter();
    let addresses = addresses.chain(container.ipv6.map(IpNet::V6));
    let subnets = addresses.map(|ipnet| {
        let mut gateways = joined.gateways.iter();
        json!({"ipnet": ipnet, "gateway": gateways.find(|gateway| ipnet.contains(*gateway))})
    });
    let mac = container.mac.map(|mac| mac.to_string()).unwrap_or_default();
    json!({
        "dns_search_domains": network.definition().dns_search,
        "dns_server_ips": joined.gateways,
        "interfaces": {
            &container.interface: {"mac_address": mac, "subnets": subnets.collect::<Vec<_>>()},
        },
    })
}

async fn teardown(request: &ContainerRequest) -> anyhow::Result<()> {
    match plugin::find(&request.network.name)? {
        Some(network) => Ok(plugin::detach(&network, &request.container_id).await?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_netavark_writes_them() {
        let text = r#"{
            "container_id": "abababababababababababababababababababababababababababababababab",
            "container_name": "web",
            "port_mappings": [
                {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1}
            ],
            "network": {
                "dns_enabled": true, "driver": "cnet", "id": "53ce4390f2adb1681eb1a90ec8b48c49c015e0a8d336c197637e7f65e365fa9e",
                "internal": false, "ipv6_enabled": false, "name": "lan", "network_interface": "",
                "options": {"mtu": "1400", "isolate": "true"}, "ipam_options": {"driver": "host-local"},
                "subnets": [{"gateway": "10.88.0.1", "subnet": "10.88.0.0/16"}]
            },
            "network_options": {
                "aliases": ["www"], "interface_name": "eth0", "static_ips": ["10.88.0.2"],
                "static_mac": "aa:bb:cc:dd:ee:ff"
            }
        }"#;
        let read: ContainerRequest = serde_json::from_str(text).unwrap();
        let request = request(&read.network).unwrap();
        assert_eq!((request.mtu, request.isolate), (1400, true));
        assert_eq!(request.subnets, ["10.88.0.0/16".parse().unwrap()]);
        assert_eq!(request.gateways, [IpAddr::from([10, 88, 0, 1])]);
        let mut other = read.network;
        other.options = Some([("vlan".to_owned(), "7".to_owned())].into());
        let error = super::request(&other).unwrap_err();
        assert!(error.to_string().contains("no option `vlan`"), "{error}");
    }

    #[test]
    fn verbs_that_are_none_are_told() {
        assert!(act(&["info"]).unwrap().unwrap()["api_version"] == API_VERSION);
        for wrong in [&["setup"][..], &[], &["remove", "x"]] {
            assert!(act(wrong).is_err(), "{wrong:?}");
        }
    }
}
