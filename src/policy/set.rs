//! The policies of a network, and what they allow to each container.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use cnet_wire::access::{Access, Allowed, Asked, Block, Peers, Prefix, Service, Way};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    DEFAULT_NAMESPACE, IpBlock, Labels, Manifest, NAMESPACE_LABEL, Namespace, NetworkPolicy,
    NumberOrName, PORT_LABEL, Peer, PolicyType, Port, Selector, Transport,
};

/// The label that each namespace has.
const NAME_OF_NAMESPACE: &str = "kubernetes.io/metadata.name";

/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A container, as policies see it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Its name on the network.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    /// The namespace that it is in.
    pub fn namespace(&self) -> &str {
        let label = self.labels.get(NAMESPACE_LABEL);
        label.map_or(DEFAULT_NAMESPACE, String::as_str)
    }

    /// The number of its port of that name.
    fn port(&self, name: &str) -> Option<u16> {
        let told = self.labels.get(&format!("{PORT_LABEL}{name}"))?;
        told.parse().ok()
    }
}

/// The policies of a network, and the labels of its namespaces.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicySet {
    /// Policies; one of each namespace and name.
    pub policies: Vec<NetworkPolicy>,
    /// Namespaces, each once.
    pub namespaces: Vec<Namespace>,
}

/// Why a conversation is allowed or not.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// No policy closes the direction.
    Open,
    /// This policy allows it.
    AllowedBy(String),
    /// These policies close the direction, and none allows it.
    ClosedBy(Vec<String>),
}

impl Verdict {
    /// Whether the conversation is allowed.
    pub fn allows(&self) -> bool {
        !matches!(self, Verdict::ClosedBy(_))
    }
}

impl PolicySet {
    /// Whether there is no policy.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Takes manifests in, in the place of those of the same kind, namespace and name.
    pub fn apply(&mut self, manifests: Vec<Manifest>) {
        for manifest in manifests {
            match manifest {
                Manifest::Policy(policy) => {
                    let name = policy.full_name();
                    self.policies.retain(|other| other.full_name() != name);
                    self.policies.push(*policy);
                }
                Manifest::Namespace(namespace) => {
                    let name = &namespace.metadata.name;
                    self.namespaces.retain(|other| other.metadata.name != *name);
                    self.namespaces.push(namespace);
                }
            }
        }
        self.policies.sort_by_key(NetworkPolicy::full_name);
    }

    /// Takes out the policy `NAMESPACE/NAME`, or `NAME` of the default namespace; `false` if there is none.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.policies.len();
        let full = full_name(name);
        self.policies.retain(|policy| policy.full_name() != full);
        self.policies.len() < before
    }

    /// The policy of that name, as [`PolicySet::remove`] has it.
    pub fn get(&self, name: &str) -> Option<&NetworkPolicy> {
        let full = full_name(name);
        self.policies
            .iter()
            .find(|policy| policy.full_name() == full)
    }

    /// What is allowed to `pod`, among `pods`; `None` where no policy selects it.
    pub fn access<'a, I>(&self, pod: &Pod, pods: &'a I) -> Option<Access>
    where
        &'a I: IntoIterator<Item = &'a Pod>,
    {
        let selecting: Vec<&NetworkPolicy> = self.selecting(pod).collect();
        if selecting.is_empty() {
            return None;
        }
        let list = |direction: PolicyType| {
            let mut closing = selecting.iter().filter(|p| p.closes(direction)).peekable();
            closing.peek()?;
            let allowed = closing.flat_map(|policy| self.allowed(policy, direction, pod, pods));
            Some(allowed.collect())
        };
        Some(Access {
            ingress: list(PolicyType::Ingress),
            egress: list(PolicyType::Egress),
        })
    }

    /// Why `pod` may have the conversation `asked` that way, or may not.
    pub fn why<'a, I>(&self, pod: &Pod, pods: &'a I, way: Way, asked: &Asked) -> Verdict
    where
        &'a I: IntoIterator<Item = &'a Pod>,
    {
        let direction = match way {
            Way::Ingress => PolicyType::Ingress,
            Way::Egress => PolicyType::Egress,
        };
        let closing = self
            .selecting(pod)
            .filter(|policy| policy.closes(direction));
        let mut names = Vec::new();
        for policy in closing {
            let list = Some(self.allowed(policy, direction, pod, pods));
            let access = match way {
                Way::Ingress => Access {
                    ingress: list,
                    egress: None,
                },
                Way::Egress => Access {
                    ingress: None,
                    egress: list,
                },
            };
            if access.allows(way, asked) {
                return Verdict::AllowedBy(policy.full_name());
            }
            names.push(policy.full_name());
        }
        match names.is_empty() {
            true => Verdict::Open,
            false => Verdict::ClosedBy(names),
        }
    }

    fn selecting(&self, pod: &Pod) -> impl Iterator<Item = &NetworkPolicy> {
        let selects = |policy: &&NetworkPolicy| {
            policy.namespace() == pod.namespace() && policy.spec.pod_selector.selects(&pod.labels)
        };
        self.policies.iter().filter(selects)
    }

    /// What `policy` allows to `pod` in one direction.
    fn allowed<'a, I>(
        &self,
        policy: &NetworkPolicy,
        direction: PolicyType,
        pod: &Pod,
        pods: &'a I,
    ) -> Vec<Allowed>
    where
        &'a I: IntoIterator<Item = &'a Pod>,
    {
        let rules: Vec<(&[Peer], &[Port])> = match direction {
            PolicyType::Ingress => {
                let rules = policy.spec.ingress.iter();
                rules.map(|rule| (&*rule.from, &*rule.ports)).collect()
            }
            PolicyType::Egress => {
                let rules = policy.spec.egress.iter();
                rules.map(|rule| (&*rule.to, &*rule.ports)).collect()
            }
        };
        let mut allowed = Vec::new();
        for (peers, ports) in rules {
            let is_peer = |other: &&Pod| self.is_peer(policy, peers, other);
            let named = |port: &&Port| matches!(port.port, Some(NumberOrName::Name(_)));
            // A name means the port of the end that is spoken to: the container itself for what is opened
            // to it, and each of the others for what it opens.
            let is_ingress = direction == PolicyType::Ingress;
            let own = ports.iter().filter(|port| is_ingress || !named(port));
            let services: Vec<Service> = own.filter_map(|port| service(port, pod)).collect();
            if ports.is_empty() || !services.is_empty() {
                allowed.push(Allowed {
                    peers: (!peers.is_empty()).then(|| Peers {
                        addresses: addresses(pods.into_iter().filter(is_peer)),
                        blocks: blocks(peers),
                    }),
                    services,
                });
            }
            if !is_ingress && ports.iter().any(|port| named(&port)) {
                for other in pods.into_iter().filter(is_peer) {
                    let services = ports.iter().filter(named);
                    let services: Vec<Service> =
                        services.filter_map(|p| service(p, other)).collect();
                    if !services.is_empty() {
                        let peers = Some(Peers {
                            addresses: addresses([other]),
                            blocks: Vec::new(),
                        });
                        allowed.push(Allowed { peers, services });
                    }
                }
            }
        }
        allowed
    }

    /// Whether `pod` is one of `peers` of `policy`; all are where there are none.
    fn is_peer(&self, policy: &NetworkPolicy, peers: &[Peer], pod: &Pod) -> bool {
        let is_it = |peer: &Peer| {
            let in_namespace = match &peer.namespace_selector {
                Some(selector) => selector.selects(&self.labels_of(pod.namespace())),
                None => pod.namespace() == policy.namespace(),
            };
            let everyone = Selector::default();
            let selector = match (&peer.pod_selector, &peer.namespace_selector) {
                (Some(selector), _) => selector,
                (None, Some(_)) => &everyone,
                (None, None) => return false,
            };
            in_namespace && selector.selects(&pod.labels)
        };
        peers.is_empty() || peers.iter().any(is_it)
    }

    fn labels_of(&self, namespace: &str) -> Labels {
        let mut found = self.namespaces.iter();
        let found = found.find(|other| other.metadata.name == namespace);
        let mut labels = found.map_or_else(BTreeMap::new, |found| found.metadata.labels.clone());
        labels.insert(NAME_OF_NAMESPACE.to_owned(), namespace.to_owned());
        labels
    }
}

fn full_name(name: &str) -> String {
    match name.contains('/') {
        true => name.to_owned(),
        false => format!("{DEFAULT_NAMESPACE}/{name}"),
    }
}

fn addresses<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = pods
        .into_iter()
        .flat_map(|pod| &pod.addresses)
        .copied()
        .collect();
    addresses.sort_unstable();
    addresses
}

fn blocks(peers: &[Peer]) -> Vec<Block> {
    let prefix = |net: &IpNet| Prefix {
        address: net.network(),
        len: net.prefix_len(),
    };
    let block = |block: &IpBlock| Block {
        prefix: prefix(&block.cidr),
        except: block.except.iter().map(prefix).collect(),
    };
    let blocks = peers.iter().filter_map(|peer| peer.ip_block.as_ref());
    blocks.map(block).collect()
}

/// The service that `port` means at `pod`; `None` for one that `pod` does not have.
fn service(port: &Port, pod: &Pod) -> Option<Service> {
    let protocol = match port.protocol {
        None | Some(Transport::Tcp) => TCP,
        Some(Transport::Udp) => UDP,
        Some(Transport::Sctp) => return None,
    };
    let ports: RangeInclusive<u16> = match &port.port {
        None => 0..=u16::MAX,
        Some(NumberOrName::Number(first)) => *first..=port.end_port.unwrap_or(*first),
        Some(NumberOrName::Name(name)) => {
            let number = pod.port(name)?;
            number..=number
        }
    };
    Some(Service { protocol, ports })
}

#[cfg(test)]
mod tests;
