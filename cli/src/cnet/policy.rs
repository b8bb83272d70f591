//! `cnet policy`: who may speak to whom on a network, by manifests of Kubernetes.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use cnet::control::{ContainerReport, PolicyReport};
use cnet::definition::DEFAULT_NETWORK;
use cnet::network::Network;
use cnet::policy::{Pod, PolicyType, Verdict};
use cnet_wire::Protocol;
use cnet_wire::access::{Asked, Way};
use serde_json::Value;

use super::table::table;

/// The longest file of manifests, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Bytes of manifests that one request of the control API takes, with some room.
const A_REQUEST: usize = 48 * 1024;

/// The subcommands of `cnet policy`.
#[derive(Subcommand, Debug)]
pub(crate) enum PolicyCommand {
    /// Take in policies from manifests, as YAML or JSON, in the place of those of the same names.
    ///
    /// NetworkPolicy of networking.k8s.io/v1, and Namespace for the labels of namespaces. They apply to
    /// what is open as well, and outlive the network's containers.
    Apply(ApplyOptions),
    /// List the policies.
    Ls(OfNetwork),
    /// Show policies as JSON.
    Show(NamedOptions),
    /// Take policies out.
    Rm(NamedOptions),
    /// Tell which policy decides whether a container may open a connection to another, or to an address.
    Why(WhyOptions),
}

/// The network.
#[derive(Args, Debug)]
pub(crate) struct OfNetwork {
    /// The network.
    #[arg(long, value_name = "NET", default_value = DEFAULT_NETWORK)]
    network: String,
}

/// The options of `cnet policy apply`.
#[derive(Args, Debug)]
pub(crate) struct ApplyOptions {
    #[command(flatten)]
    of: OfNetwork,

    /// The manifests; `-` for standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

/// Policies by name.
#[derive(Args, Debug)]
pub(crate) struct NamedOptions {
    #[command(flatten)]
    of: OfNetwork,

    /// NAMESPACE/NAME, or NAME in the namespace `default`.
    #[arg(required = true, value_name = "POLICY")]
    names: Vec<String>,
}

/// The options of `cnet policy why`.
#[derive(Args, Debug)]
pub(crate) struct WhyOptions {
    #[command(flatten)]
    of: OfNetwork,

    /// The container that opens the connection, or an address outside.
    #[arg(value_name = "SRC")]
    source: String,

    /// The container, or address, that it is opened to, with the port.
    #[arg(value_name = "DST[:PORT[/tcp|udp]]")]
    destination: String,
}

/// Does what `command` says.
pub(super) async fn policy(command: PolicyCommand) -> anyhow::Result<()> {
    match command {
        PolicyCommand::Apply(options) => {
            let network = Network::open(&options.of.network)?;
            apply(&network, &options.file).await
        }
        PolicyCommand::Ls(of) => list(&Network::open(&of.network)?.policies().await?),
        PolicyCommand::Show(options) => {
            let report = Network::open(&options.of.network)?.policies().await?;
            show(&report, &options.names)
        }
        PolicyCommand::Rm(options) => {
            let network = Network::open(&options.of.network)?;
            network.remove_policies(options.names).await?;
            Ok(())
        }
        PolicyCommand::Why(options) => why(options).await,
    }
}

/// Takes in the manifests of `file`.
pub(super) async fn apply(network: &Network, file: &Path) -> anyhow::Result<()> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin()
            .lock()
            .take(MAX_FILE)
            .read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|f| f.take(MAX_FILE).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    let manifests = manifests(&text).with_context(|| file.display().to_string())?;
    // All are looked at before the first is sent.
    for manifest in &manifests {
        cnet::policy::Manifest::read(manifest.clone())?;
    }
    let mut some = Vec::new();
    let mut length = 0;
    for manifest in manifests {
        let own = manifest.to_string().len();
        if length + own > A_REQUEST && !some.is_empty() {
            network.apply_policies(std::mem::take(&mut some)).await?;
            length = 0;
        }
        length += own;
        some.push(manifest);
    }
    network.apply_policies(some).await?;
    Ok(())
}

/// The documents of a file, of which JSON is one kind.
fn manifests(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

fn list(report: &PolicyReport) -> anyhow::Result<()> {
    let mut rows = vec![["NAMESPACE", "NAME", "CLOSES"].map(str::to_owned).to_vec()];
    for policy in &report.set.policies {
        let directions = [PolicyType::Ingress, PolicyType::Egress];
        let closes = directions
            .iter()
            .filter(|direction| policy.closes(**direction));
        let closes: Vec<String> = closes.map(|d| format!("{d:?}").to_lowercase()).collect();
        let name = policy.metadata.name.clone();
        rows.push(vec![policy.namespace().to_owned(), name, closes.join(",")]);
    }
    super::print(&table(&rows))?;
    Ok(())
}

fn show(report: &PolicyReport, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        let policy = report.set.get(name);
        let policy = policy.with_context(|| format!("there is no policy `{name}`"))?;
        super::print(&format!("{}\n", serde_json::to_string_pretty(policy)?))?;
    }
    Ok(())
}

/// One end: a container of the network, or an address.
enum End {
    Pod(Pod),
    Outside(IpAddr),
}

async fn why(options: WhyOptions) -> anyhow::Result<()> {
    let network = Network::open(&options.of.network)?;
    let set = network.policies().await?.set;
    let report = network.inspect().await?;
    let containers = report.map(|report| report.containers).unwrap_or_default();
    let pods: Vec<Pod> = containers.iter().map(pod).collect();
    let end = |text: &str| -> anyhow::Result<End> {
        let is_it =
            |pod: &&Pod| pod.name == text || pod.addresses.iter().any(|a| a.to_string() == text);
        if let Some(pod) = pods.iter().find(is_it) {
            return Ok(End::Pod(pod.clone()));
        }
        let address = text.trim_matches(['[', ']']).parse();
        let address = address.with_context(|| {
            format!("`{text}` is neither a container of the network nor an address")
        })?;
        Ok(End::Outside(address))
    };
    let (to, service, protocol) = destination(&options.destination)?;
    let (source, target) = (end(&options.source)?, end(to)?);
    let mut lines = String::new();
    let mut ask = |own: &End, peer: &End, way: Way, what: &str| {
        let End::Pod(own) = own else { return true };
        // Of two families the one that is refused counts.
        let verdicts = peer_addresses(peer, own).into_iter().map(|peer| {
            let asked = Asked {
                peer,
                protocol,
                service,
            };
            set.why(own, &pods, way, &asked)
        });
        let verdict = verdicts
            .min_by_key(Verdict::allows)
            .unwrap_or(Verdict::Open);
        lines.push_str(&match &verdict {
            Verdict::Open => format!("{what} `{}`: open, no policy closes it\n", own.name),
            Verdict::AllowedBy(policy) => format!("{what} `{}`: allowed by {policy}\n", own.name),
            Verdict::ClosedBy(policies) => {
                format!("{what} `{}`: closed by {}\n", own.name, policies.join(", "))
            }
            _ => String::new(),
        });
        verdict.allows()
    };
    let out = ask(&source, &target, Way::Egress, "egress of");
    let into = ask(&target, &source, Way::Ingress, "ingress of");
    lines.push_str(if out && into {
        "allowed\n"
    } else {
        "refused\n"
    });
    super::print(&lines)?;
    Ok(())
}

/// The addresses of `peer` of the families that `own` has.
fn peer_addresses(peer: &End, own: &Pod) -> Vec<IpAddr> {
    match peer {
        End::Outside(address) => vec![*address],
        End::Pod(peer) => {
            let has = |v4: bool| own.addresses.iter().any(|own| own.is_ipv4() == v4);
            let addresses = peer.addresses.iter().copied();
            addresses.filter(|address| has(address.is_ipv4())).collect()
        }
    }
}

fn pod(container: &ContainerReport) -> Pod {
    let v4 = container.ipv4.map(|net| net.addr().into());
    let v6 = container.ipv6.map(|net| net.addr().into());
    Pod {
        name: container.name.clone(),
        labels: container.labels.clone(),
        addresses: v4.into_iter().chain(v6).collect(),
    }
}

/// `DST[:PORT[/PROTO]]`: the end, the port, and the protocol's number. An IPv6 address with a port stands in
/// brackets.
fn destination(text: &str) -> anyhow::Result<(&str, Option<u16>, u8)> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None, 6));
    }
    let (end, service) = match text.rsplit_once(':') {
        Some((end, service)) => (end, service),
        None => return Ok((text, None, 6)),
    };
    let (port, protocol) = service.split_once('/').unwrap_or((service, "tcp"));
    let number = match protocol.parse()? {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    match port.parse() {
        Ok(port) => Ok((end, Some(port), number)),
        Err(_) => bail!("`{port}` is no port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_have_ports_and_protocols() {
        for (text, read) in [
            ("web", ("web", None, 6)),
            ("web:80", ("web", Some(80), 6)),
            ("web:53/udp", ("web", Some(53), 17)),
            ("fd00::1", ("fd00::1", None, 6)),
            ("[fd00::1]:80/tcp", ("[fd00::1]", Some(80), 6)),
        ] {
            assert_eq!(destination(text).unwrap(), read);
        }
        assert!(destination("web:x").is_err() && destination("web:1/sctp").is_err());
    }

    #[test]
    fn manifests_are_yaml_or_json_and_several() {
        let yaml =
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\nkind: List\n";
        assert_eq!(manifests(yaml).unwrap().len(), 2);
        let json = r#"{"apiVersion": "v1", "kind": "List", "items": []}"#;
        assert_eq!(manifests(json).unwrap().len(), 1);
        assert!(manifests("a: [").is_err());
        // Aliases that would grow without end.
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(manifests(bomb).is_err());
    }
}
