//! Policies of containers: manifests of `networking.k8s.io/v1` as they are, and what they mean.
//!
//! A [`PolicySet`] is the policies of a network. It tells what is allowed to a container
//! ([`PolicySet::access`]), and why ([`PolicySet::why`]).
//!
//! # Semantics
//!
//! A policy is of a namespace, and selects containers of that: those whose label `namespace` names it, and
//! in `default` those without the label. A container that no policy selects is open. One that some select, in
//! a direction, is closed but for the union of what these allow. Peers are containers by their labels,
//! namespaces by theirs, both together, or blocks of addresses. Ports are numbers, ranges, or names: a
//! container's label `port.NAME` tells the number. SCTP is accepted and matches nothing.
//!
//! The labels of a namespace are those of its manifest of the kind `Namespace`, and
//! `kubernetes.io/metadata.name`, its name.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

mod set;

pub use set::{Pod, PolicySet, Verdict};

/// The namespace of what names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The label by which a container is in a namespace.
pub const NAMESPACE_LABEL: &str = "namespace";

/// What precedes a port's name in the label that tells its number.
pub const PORT_LABEL: &str = "port.";

/// Labels, of containers and namespaces.
pub type Labels = BTreeMap<String, String>;

/// A manifest that is understood.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Manifest {
    /// A policy.
    Policy(Box<NetworkPolicy>),
    /// A namespace, for its labels.
    Namespace(Namespace),
}

/// Why a manifest is not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Another kind.
    #[error(
        "{0} is not understood: there are NetworkPolicy of networking.k8s.io/v1, Namespace and List of v1"
    )]
    Kind(String),
    /// A field that is missing, unknown or of another kind.
    #[error("{what}: {source}")]
    Field {
        /// Which manifest.
        what: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl Manifest {
    /// Reads one document, which may be a list of manifests.
    ///
    /// # Errors
    ///
    /// See [`ManifestError`].
    pub fn read(document: Value) -> Result<Vec<Manifest>, ManifestError> {
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let name = document["metadata"]["name"].as_str().unwrap_or("?");
        let what = format!("{kind} `{name}`");
        let field = |source| ManifestError::Field { what, source };
        match (version.as_str(), kind.as_str()) {
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                let read: NetworkPolicy = serde_json::from_value(document).map_err(field)?;
                Ok(vec![Manifest::Policy(Box::new(read))])
            }
            ("v1", "Namespace") => {
                let read: Namespace = serde_json::from_value(document).map_err(field)?;
                Ok(vec![Manifest::Namespace(read)])
            }
            ("v1", "List") | ("networking.k8s.io/v1", "NetworkPolicyList") => {
                let items = document["items"].as_array().cloned().unwrap_or_default();
                let read: Result<Vec<_>, _> = items.into_iter().map(Manifest::read).collect();
                Ok(read?.into_iter().flatten().collect())
            }
            _ => Err(ManifestError::Kind(format!("`{kind}` of `{version}`"))),
        }
    }
}

/// A policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Its name and namespace.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Namespace {
    /// Its name and labels.
    pub metadata: Metadata,
}

/// What is told of any object; what else a manifest tells is left out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// The namespace that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its labels.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: Labels,
}

/// `null` stands for nothing in manifests.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What a policy says. A field that is not known is refused: a policy that is misspelt must not be open.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The containers that it selects.
    #[serde(default, deserialize_with = "or_default")]
    pub pod_selector: Selector,
    /// The directions that it closes; without the field ingress, and egress if there are rules for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_types: Option<Vec<PolicyType>>,
    /// What may be opened to them.
    #[serde(default, deserialize_with = "or_default")]
    pub ingress: Vec<IngressRule>,
    /// What they may open.
    #[serde(default, deserialize_with = "or_default")]
    pub egress: Vec<EgressRule>,
}

/// A direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PolicyType {
    /// To the container.
    Ingress,
    /// By the container.
    Egress,
}

/// Who may open what to the selected containers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngressRule {
    /// All of them, where there is none.
    #[serde(default, deserialize_with = "or_default")]
    pub from: Vec<Peer>,
    /// All of them, where there is none.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<Port>,
}

/// What the selected containers may open to whom.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// All of them, where there is none.
    #[serde(default, deserialize_with = "or_default")]
    pub to: Vec<Peer>,
    /// All of them, where there is none.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<Port>,
}

/// Far ends.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Containers by their labels: of the policy's namespace, or of those that are selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<Selector>,
    /// Namespaces by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<Selector>,
    /// A block of addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// A block of addresses, without some within.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpBlock {
    /// The block.
    pub cidr: IpNet,
    /// What is not of it.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub except: Vec<IpNet>,
}

/// Ports of one protocol.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// TCP where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Transport>,
    /// All ports where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NumberOrName>,
    /// The last of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
}

/// A protocol with ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which no container has.
    Sctp,
}

/// A port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumberOrName {
    /// By its number.
    Number(u16),
    /// By the name that the container has for it.
    Name(String),
}

/// Containers or namespaces by their labels. An empty one selects all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels with these values.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub match_labels: Labels,
    /// Conditions on labels.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub match_expressions: Vec<Expression>,
}

/// A condition on a label.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// The condition.
    pub operator: Operator,
    /// The values that `In` and `NotIn` speak of.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub values: Vec<String>,
}

/// What is asked of a label.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It has none of them, or does not exist.
    NotIn,
    /// It exists.
    Exists,
    /// It does not.
    DoesNotExist,
}

impl Selector {
    /// Whether what has these labels is selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        let holds = |expression: &Expression| {
            let value = labels.get(&expression.key);
            let listed = value.is_some_and(|value| expression.values.contains(value));
            match expression.operator {
                Operator::In => listed,
                Operator::NotIn => !listed,
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(has) && self.match_expressions.iter().all(holds)
    }
}

impl NetworkPolicy {
    /// The namespace that it is in.
    pub fn namespace(&self) -> &str {
        self.metadata
            .namespace
            .as_deref()
            .unwrap_or(DEFAULT_NAMESPACE)
    }

    /// Its namespace and name, as in `shop/deny-all`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace(), self.metadata.name)
    }

    /// Whether it closes that direction of those that it selects.
    pub fn closes(&self, direction: PolicyType) -> bool {
        match &self.spec.policy_types {
            Some(types) => types.contains(&direction),
            None => direction == PolicyType::Ingress || !self.spec.egress.is_empty(),
        }
    }
}
