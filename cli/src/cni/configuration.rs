//! A network's configuration as an engine gives it (specification, section 1), and what cnet makes of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::environment::{Environment, is_name};
use super::error::{Code, Error};
use crate::plugin::PortMapping;
use cnet::definition::{DnsServer, MTU_RANGE, check_name, is_id};
use cnet::{Attach, Request};
use sha2::{Digest, Sha256};

/// The versions of the specification that are spoken.
pub(super) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The version of a configuration that names none, which is not spoken.
const UNSAID: &str = "0.1.0";

/// The labels by which an attachment is found again: the configuration's name, and what the environment
/// says.
pub(super) const NETWORK_LABEL: &str = "cni.network";
/// As above.
pub(super) const CONTAINER_LABEL: &str = "cni.container";
/// As above.
pub(super) const INTERFACE_LABEL: &str = "cni.interface";

/// The label that a `namespaceSelector` looks at, and the one of the pod's name.
const NAMESPACE_LABEL: &str = "namespace";
const POD_LABEL: &str = "io.kubernetes.pod.name";

/// The configuration. Unknown keys are others': of the engine, or of plug-ins before and after.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Configuration {
    #[serde(default = "unsaid")]
    pub(super) cni_version: String,
    pub(super) name: String,
    /// The network of cnet, if it is not called like the configuration.
    network: Option<String>,
    subnet: OneOrMore<IpNet>,
    gateway: OneOrMore<IpAddr>,
    ip_range: OneOrMore<IpNet>,
    internal: bool,
    isolate: bool,
    mtu: Option<u16>,
    driver: Option<String>,
    host_port: bool,
    pub(super) dns: Dns,
    args: Args,
    pub(super) runtime_config: RuntimeConfig,
    pub(super) prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    pub(super) valid_attachments: Option<Vec<Attachment>>,
}

fn unsaid() -> String {
    UNSAID.to_owned()
}

/// One value, or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        OneOrMore::More(Vec::new())
    }
}

impl<T: Clone> OneOrMore<T> {
    fn to_vec(&self) -> Vec<T> {
        match self {
            OneOrMore::One(one) => vec![one.clone()],
            OneOrMore::More(more) => more.clone(),
        }
    }
}

/// DNS, as the configuration, the capability and the result have it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Dns {
    #[serde(alias = "servers")]
    pub(super) nameservers: Vec<String>,
    #[serde(alias = "searches")]
    pub(super) search: Vec<String>,
    pub(super) domain: String,
    pub(super) options: Vec<String>,
}

/// `args` (CONVENTIONS.md of the specification).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    labels: Vec<Label>,
    ips: Vec<String>,
    mac: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Label {
    key: String,
    value: String,
}

/// What an engine adds for the capabilities that the configuration declares.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RuntimeConfig {
    port_mappings: Option<Vec<Mapping>>,
    ips: Option<Vec<String>>,
    mac: Option<String>,
    aliases: Option<Aliases>,
    dns: Option<Dns>,
    ip_ranges: Option<Vec<Vec<Range>>>,
    bandwidth: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mapping {
    host_port: u16,
    container_port: u16,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

/// A list, or, as podman has it, one for each network.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Aliases {
    List(Vec<String>),
    ByNetwork(BTreeMap<String, Vec<String>>),
}

#[derive(Clone, Debug, Deserialize)]
struct Range {
    subnet: IpNet,
}

/// An attachment that GC is to leave alone.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(super) struct Attachment {
    #[serde(rename = "containerID")]
    pub(super) container: String,
    #[serde(rename = "ifname")]
    pub(super) interface: String,
}

impl Configuration {
    /// Reads a configuration, and checks the version and the name.
    pub(super) fn read(text: &[u8]) -> Result<Configuration, Error> {
        let value: Value = serde_json::from_slice(text).map_err(|error| {
            Error::new(Code::Decode, "the configuration is no JSON").details(error)
        })?;
        // Before its fields are looked at: another version may have others.
        let version = value.get("cniVersion").and_then(Value::as_str);
        let version = version.unwrap_or(UNSAID);
        if !VERSIONS.contains(&version) {
            let message = format!("version {version} of CNI is not supported");
            let spoken = format!("supported are {}", VERSIONS.join(", "));
            return Err(Error::new(Code::Version, message).details(spoken));
        }
        let read: Configuration = serde_json::from_value(value).map_err(|error| {
            let message = format!("the configuration makes no sense: {error}");
            Error::new(Code::Configuration, message)
        })?;
        if !is_name(&read.name) {
            let message = format!("the network's name `{}` makes no sense", read.name);
            return Err(Error::new(Code::Configuration, message));
        }
        if read.host_port {
            return Err(Error::new(Code::Field, "`hostPort` is not supported"));
        }
        Ok(read)
    }

    /// The name of the network of cnet.
    pub(super) fn network(&self) -> &str {
        self.network.as_deref().unwrap_or(&self.name)
    }

    /// The network, as it is made on first use.
    pub(super) fn request(&self) -> Result<Request, Error> {
        let mut request = Request::new(self.network());
        request.subnets = self.subnet.to_vec();
        if request.subnets.is_empty() {
            let ranges = self.runtime_config.ip_ranges.iter().flatten().flatten();
            request.subnets = ranges.map(|range| range.subnet).collect();
        }
        request.gateways = self.gateway.to_vec();
        request.ip_ranges = self.ip_range.to_vec();
        request.internal = self.internal;
        request.isolate = self.isolate;
        if let Some(driver) = &self.driver {
            request.driver.clone_from(driver);
        }
        match self.mtu {
            None | Some(0) => {}
            Some(mtu) if MTU_RANGE.contains(&i64::from(mtu)) => request.mtu = mtu,
            Some(mtu) => {
                let message = format!("`mtu` is {mtu}, which no network can have");
                return Err(Error::new(Code::Configuration, message));
            }
        }
        Ok(request)
    }

    /// The container, as it joins: without a name.
    pub(super) fn attach(&self, environment: &Environment) -> Result<Attach, Error> {
        if self.runtime_config.bandwidth.is_some() {
            return Err(Error::new(Code::Field, "`bandwidth` is not supported"));
        }
        let mut attach = Attach::new()
            .id(id(&environment.container, &environment.interface))
            .interface(environment.interface.clone());
        attach.labels = self.labels(environment);
        for address in self.ips(environment) {
            attach = attach.address(parse_address(&address)?);
        }
        if let Some(mac) = self.mac(environment) {
            let read = mac.parse().map_err(|error| {
                Error::new(
                    Code::Configuration,
                    format!("`{mac}` is no hardware address"),
                )
                .details(error)
            })?;
            attach = attach.mac(read);
        }
        for alias in self.aliases() {
            attach = attach.alias(alias);
        }
        for server in &self.dns().nameservers {
            let read = server.parse::<DnsServer>();
            let read = read.map_err(|error| Error::new(Code::Configuration, error.to_string()))?;
            attach = attach.dns(read);
        }
        for mapping in self.runtime_config.port_mappings.iter().flatten() {
            let mapping = PortMapping {
                host_ip: &mapping.host_ip,
                host_port: mapping.host_port,
                container_port: mapping.container_port,
                range: 1,
                protocol: &mapping.protocol,
            };
            if let Some(port) = mapping.publish()? {
                attach = attach.publish(port);
            }
        }
        Ok(attach)
    }

    fn labels(&self, environment: &Environment) -> BTreeMap<String, String> {
        let given = self.args.cni.labels.iter();
        let mut labels: BTreeMap<String, String> = given
            .map(|label| (label.key.clone(), label.value.clone()))
            .collect();
        let mut put = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
        if let Some(namespace) = environment.argument("K8S_POD_NAMESPACE") {
            put(NAMESPACE_LABEL, namespace);
        }
        if let Some(pod) = environment.argument("K8S_POD_NAME") {
            put(POD_LABEL, pod);
        }
        put(NETWORK_LABEL, &self.name);
        put(CONTAINER_LABEL, &environment.container);
        put(INTERFACE_LABEL, &environment.interface);
        labels
    }

    /// The addresses that are asked for: by the capability, else in `args`, else in CNI_ARGS.
    fn ips(&self, environment: &Environment) -> Vec<String> {
        if let Some(ips) = &self.runtime_config.ips {
            return ips.clone();
        }
        match environment.argument("IP") {
            Some(ip) if self.args.cni.ips.is_empty() => ip.split(',').map(str::to_owned).collect(),
            _ => self.args.cni.ips.clone(),
        }
    }

    fn mac(&self, environment: &Environment) -> Option<String> {
        let asked = self.runtime_config.mac.clone();
        asked
            .or_else(|| self.args.cni.mac.clone())
            .or_else(|| environment.argument("MAC").map(str::to_owned))
            .filter(|mac| !mac.is_empty())
    }

    fn aliases(&self) -> Vec<String> {
        match &self.runtime_config.aliases {
            None => Vec::new(),
            Some(Aliases::List(list)) => list.clone(),
            Some(Aliases::ByNetwork(lists)) => lists.get(&self.name).cloned().unwrap_or_default(),
        }
    }

    /// What the container is to have of DNS: the capability's word before the configuration's.
    pub(super) fn dns(&self) -> &Dns {
        self.runtime_config.dns.as_ref().unwrap_or(&self.dns)
    }
}

/// With or without a prefix length.
fn parse_address(text: &str) -> Result<IpAddr, Error> {
    let address = text.split('/').next().unwrap_or_default();
    address.parse().map_err(|_| {
        let message = format!("`{text}` is no address that a container can have");
        Error::new(Code::Configuration, message)
    })
}

/// The names that a pod may have on the network, the best first; none for what has no name. Pods of
/// several namespaces may be called alike, so all but those of `default` have the namespace in theirs.
pub(super) fn names(environment: &Environment) -> Vec<String> {
    let Some(pod) = environment.argument("K8S_POD_NAME") else {
        return Vec::new();
    };
    let name = match environment.argument("K8S_POD_NAMESPACE") {
        None | Some("" | "default") => pod.to_owned(),
        Some(namespace) => format!("{pod}.{namespace}"),
    };
    let names = [name].into_iter();
    names.filter(|name| check_name(name).is_ok()).collect()
}

/// The id of an attachment: the container's own where it is one of cnet's kind.
pub(super) fn id(container: &str, interface: &str) -> String {
    if is_id(container) {
        return container.to_ascii_lowercase();
    }
    let digest = Sha256::digest(format!("{container}\0{interface}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::environment::Verb;

    fn environment(arguments: &str) -> Environment {
        Environment::read(Verb::Add, |name| {
            let value = match name {
                "CNI_CONTAINERID" => "some-pod",
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => "/run/netns/x",
                _ => arguments,
            };
            Some(value.to_owned())
        })
        .unwrap()
    }

    #[test]
    fn capabilities_come_before_arguments() {
        let text = r#"{
            "cniVersion": "1.0.0", "name": "pods", "type": "cnet", "subnet": "10.5.0.0/16",
            "dns": {"nameservers": ["192.0.2.1"]},
            "args": {"cni": {"ips": ["10.5.0.8"], "labels": [{"key": "app", "value": "web"}]}},
            "runtimeConfig": {
                "ips": ["10.5.0.7/16", "fd05::7/64"],
                "mac": "02:00:00:00:00:07",
                "aliases": {"pods": ["www"], "other": ["no"]},
                "dns": {"servers": ["192.0.2.2"], "searches": ["a.example"]},
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                    {"hostPort": 0, "containerPort": 81, "protocol": "tcp"}
                ]
            }
        }"#;
        let configuration = Configuration::read(text.as_bytes()).unwrap();
        let environment = environment("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;IP=10.5.0.9");
        let attach = configuration.attach(&environment).unwrap();
        assert_eq!(attach.ipv4, Some([10, 5, 0, 7].into()));
        assert_eq!(attach.ipv6, "fd05::7".parse().ok());
        assert_eq!(attach.mac, "02:00:00:00:00:07".parse().ok());
        assert_eq!(attach.aliases, ["www"]);
        assert_eq!(attach.dns, ["192.0.2.2".parse().unwrap()]);
        let ports: Vec<String> = attach.publish.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["8080:80/tcp"]);
        for (key, value) in [
            ("namespace", "shop"),
            ("app", "web"),
            (NETWORK_LABEL, "pods"),
        ] {
            assert_eq!(attach.labels.get(key).map(String::as_str), Some(value));
        }
        assert_eq!(names(&environment), ["web.shop"]);
        let request = configuration.request().unwrap();
        assert_eq!(request.subnets, ["10.5.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_code() {
        for (text, code) in [
            ("", Code::Decode),
            ("{", Code::Decode),
            (r#"{"name": "x"}"#, Code::Version),
            (r#"{"cniVersion": "0.2.0", "name": "x"}"#, Code::Version),
            (r#"{"cniVersion": "2.0.0", "name": 7}"#, Code::Version),
            (r#"{"cniVersion": "1.0.0"}"#, Code::Configuration),
            (
                r#"{"cniVersion": "1.0.0", "name": "../x"}"#,
                Code::Configuration,
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "x", "subnet": "y"}"#,
                Code::Configuration,
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "x", "hostPort": true}"#,
                Code::Field,
            ),
        ] {
            let error = Configuration::read(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, code, "{text}: {error:?}");
        }
        let read = |more: &str| {
            let text = format!(r#"{{"cniVersion": "1.0.0", "name": "x", {more}}}"#);
            Configuration::read(text.as_bytes()).unwrap()
        };
        for (more, code) in [
            (r#""runtimeConfig": {"ips": ["x"]}"#, Code::Configuration),
            (r#""runtimeConfig": {"mac": "x"}"#, Code::Configuration),
            (
                r#""runtimeConfig": {"bandwidth": {"ingressRate": 1}}"#,
                Code::Field,
            ),
            (
                r#""runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "sctp"}]}"#,
                Code::Field,
            ),
        ] {
            let error = read(more).attach(&environment("")).unwrap_err();
            assert_eq!(error.code, code, "{more}: {error:?}");
        }
    }

    #[test]
    fn ids_are_of_one_attachment() {
        let own = "AB".repeat(32);
        assert_eq!(id(&own, "eth0"), "ab".repeat(32));
        assert!(is_id(&id("pod", "eth0")) && id("pod", "eth0") != id("pod", "eth1"));
    }
}
