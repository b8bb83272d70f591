//! Policies, as the control API has them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::policy::PolicySet;

/// Manifests that are to be taken in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyPolicies {
    /// As Kubernetes has them: `NetworkPolicy`, `Namespace`, or lists of these.
    pub manifests: Vec<Value>,
}

/// Policies that are to be taken out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovePolicies {
    /// `NAMESPACE/NAME`, or `NAME` of the namespace `default`.
    pub names: Vec<String>,
}

/// The policies of a network.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PolicyReport {
    /// All of them, and the namespaces whose labels are known.
    #[serde(flatten)]
    pub set: PolicySet,
}

impl PolicyReport {
    /// With these.
    pub fn new(set: PolicySet) -> PolicyReport {
        PolicyReport { set }
    }
}
