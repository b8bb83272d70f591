//! The result of ADD in the version that the engine speaks (specification, section 5), and its reading
//! for CHECK.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};

use super::configuration::Configuration;
use super::environment::Environment;
use super::error::{Code, Error};
use cnet::{Attached, ContainerReport, Definition};

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    sandbox: &'a Path,
}

/// The result: what the plug-ins before this one have said, and the container's interface, addresses,
/// default routes and DNS.
pub(super) fn added(
    configuration: &Configuration,
    environment: &Environment,
    definition: &Definition,
    joined: &Attached,
) -> Result<Value, Error> {
    let version = configuration.cni_version.as_str();
    let mut result = match &configuration.prev_result {
        Some(before @ Value::Object(_)) => before.clone(),
        Some(_) => return Err(Error::new(Code::Configuration, "`prevResult` is no object")),
        None => json!({}),
    };
    result["cniVersion"] = version.into();
    let container = &joined.container;
    let index = list(&mut result, "interfaces")?.len();
    let interface = Interface {
        name: &container.interface,
        mac: container.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        // A field of 1.1.0.
        mtu: (version == "1.1.0").then_some(definition.mtu),
        sandbox: environment.netns.as_deref().unwrap_or(Path::new("")),
    };
    list(&mut result, "interfaces")?.push(json!(interface));
    for address in addresses(container) {
        let is_its = |gateway: &&IpAddr| address.contains(*gateway);
        let gateway = joined.gateways.iter().find(is_its);
        let mut ip = json!({"address": address, "interface": index});
        if let Some(gateway) = gateway {
            ip["gateway"] = json!(gateway);
        }
        if version.starts_with("0.") {
            ip["version"] = if address.addr().is_ipv4() { "4" } else { "6" }.into();
        }
        list(&mut result, "ips")?.push(ip);
        // An internal network has no way out.
        if let Some(gateway) = gateway.filter(|_| !definition.internal) {
            let everywhere = if gateway.is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            list(&mut result, "routes")?.push(json!({"dst": everywhere, "gw": gateway}));
        }
    }
    add_dns(&mut result, configuration, definition, joined);
    Ok(result)
}

/// The gateways answer DNS, whatever servers are asked behind them. What a plug-in before this one has
/// said stands.
fn add_dns(
    result: &mut Value,
    configuration: &Configuration,
    definition: &Definition,
    joined: &Attached,
) {
    let told = result["dns"]["nameservers"].as_array();
    if told.is_some_and(|servers| !servers.is_empty()) {
        return;
    }
    let asked = configuration.dns();
    let search = match asked.search.is_empty() {
        true => &definition.dns_search,
        false => &asked.search,
    };
    let mut dns = json!({"nameservers": joined.gateways});
    for (key, list) in [("search", search), ("options", &asked.options)] {
        if !list.is_empty() {
            dns[key] = json!(list);
        }
    }
    if !asked.domain.is_empty() {
        dns["domain"] = json!(asked.domain);
    }
    result["dns"] = dns;
}

fn list<'a>(result: &'a mut Value, name: &str) -> Result<&'a mut Vec<Value>, Error> {
    let entry = &mut result[name];
    if entry.is_null() {
        *entry = json!([]);
    }
    let wrong = || {
        let message = format!("`prevResult.{name}` is no list");
        Error::new(Code::Configuration, message)
    };
    entry.as_array_mut().ok_or_else(wrong)
}

fn addresses(container: &ContainerReport) -> impl Iterator<Item = IpNet> {
    let ipv4 = container.ipv4.map(IpNet::V4);
    ipv4.into_iter().chain(container.ipv6.map(IpNet::V6))
}

/// Whether the container is as `prevResult` tells; what other plug-ins have made is theirs to check.
pub(super) fn check(
    configuration: &Configuration,
    environment: &Environment,
    container: &ContainerReport,
) -> Result<(), Error> {
    let Some(told) = &configuration.prev_result else {
        let message = "CHECK needs `prevResult`, the result of ADD";
        return Err(Error::new(Code::Configuration, message));
    };
    let entries = |name: &str| told[name].as_array().into_iter().flatten();
    let is_ours = |interface: &Value| {
        let is_inside = interface["sandbox"].as_str().is_some_and(|s| !s.is_empty());
        interface["name"] == environment.interface.as_str() && is_inside
    };
    let differs = |what: String| Err(Error::new(Code::Differs, what));
    let Some(index) = entries("interfaces").position(is_ours) else {
        return differs(format!("`prevResult` has no `{}`", environment.interface));
    };
    let mac = told["interfaces"][index]["mac"]
        .as_str()
        .unwrap_or_default();
    let own = container.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !mac.eq_ignore_ascii_case(&own) {
        return differs(format!("the interface has the address {own}, not {mac}"));
    }
    for ip in entries("ips").filter(|ip| ip["interface"] == index) {
        let told: Option<IpNet> = ip["address"].as_str().and_then(|text| text.parse().ok());
        if !told.is_some_and(|told| addresses(container).any(|own| own == told)) {
            return differs(format!(
                "the container does not have the address {}",
                ip["address"]
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::environment::Verb;

    fn environment() -> Environment {
        Environment::read(Verb::Add, |name| {
            let value = match name {
                "CNI_CONTAINERID" => "pod",
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => "/run/netns/x",
                _ => "",
            };
            Some(value.to_owned())
        })
        .unwrap()
    }

    fn joined() -> Attached {
        let mut container = ContainerReport::new("ab".repeat(32), "pod");
        container.interface = "eth0".to_owned();
        container.mac = "02:00:00:00:00:07".parse().ok();
        container.ipv4 = "10.5.0.7/16".parse().ok();
        container.ipv6 = "fd05::7/64".parse().ok();
        let gateways = ["10.5.0.1", "fd05::1"].map(|text| text.parse().unwrap());
        Attached::new(container, gateways.to_vec())
    }

    fn configuration(version: &str, more: &str) -> Configuration {
        let text = format!(r#"{{"cniVersion": "{version}", "name": "pods"{more}}}"#);
        Configuration::read(text.as_bytes()).unwrap()
    }

    fn definition() -> Definition {
        let text = "name = 'pods'\nid = 'x'\ncreated = 'x'\ndriver = 'bridge'\nmtu = 1400\n";
        toml::from_str(text).unwrap()
    }

    #[test]
    fn each_version_has_its_fields() {
        let of = |version: &str| {
            let configuration = configuration(version, "");
            added(&configuration, &environment(), &definition(), &joined()).unwrap()
        };
        for version in super::super::configuration::VERSIONS {
            let result = of(version);
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["interfaces"][0]["sandbox"], "/run/netns/x");
            assert_eq!(result["ips"][0]["address"], "10.5.0.7/16");
            assert_eq!(result["ips"][1]["gateway"], "fd05::1");
            assert_eq!(result["routes"][1], json!({"dst": "::/0", "gw": "fd05::1"}));
            assert_eq!(result["dns"]["nameservers"], json!(["10.5.0.1", "fd05::1"]));
            let old = version.starts_with("0.");
            assert_eq!(result["ips"][1].get("version").is_some(), old);
            let newest = version == "1.1.0";
            assert_eq!(result["interfaces"][0].get("mtu").is_some(), newest);
        }
    }

    #[test]
    fn a_result_before_is_passed_on_and_checked_again() {
        let before = r#", "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "host0", "mac": "02:00:00:00:00:99"}],
            "ips": [{"address": "192.0.2.9/24", "interface": 0}],
            "dns": {"nameservers": ["192.0.2.53"]}
        }"#;
        let configuration = configuration("1.0.0", before);
        let (environment, joined) = (environment(), joined());
        let result = added(&configuration, &environment, &definition(), &joined).unwrap();
        assert_eq!(result["interfaces"][0]["name"], "host0");
        assert_eq!(result["ips"][1]["interface"], 1);
        assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.53"]));

        let mut later = configuration;
        later.prev_result = Some(result);
        assert_eq!(check(&later, &environment, &joined.container), Ok(()));
        let mut other = joined.container.clone();
        other.ipv4 = "10.5.0.8/16".parse().ok();
        assert_eq!(
            check(&later, &environment, &other).unwrap_err().code,
            Code::Differs
        );
        let mut other = joined.container;
        other.mac = "02:00:00:00:00:08".parse().ok();
        assert_eq!(
            check(&later, &environment, &other).unwrap_err().code,
            Code::Differs
        );
        later.prev_result = None;
        assert_eq!(
            check(&later, &environment, &other).unwrap_err().code,
            Code::Configuration
        );
    }
}
