//! What is asked of a network about its policies.

use super::{Network, NetworkError};
use crate::control::{Action, ApplyPolicies, Nothing, PolicyReport, RemovePolicies};

impl Network {
    /// Takes manifests of policies in, and applies them. The network's process is started for it if it
    /// does not run.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Refused`] if one is not understood; and as for all calls.
    pub async fn apply_policies(
        &self,
        manifests: Vec<serde_json::Value>,
    ) -> Result<PolicyReport, NetworkError> {
        let apply = Action::ApplyPolicies(ApplyPolicies { manifests });
        self.ask(&apply, &[]).await
    }

    /// Takes policies out, by `NAMESPACE/NAME`, or `NAME` of the namespace `default`.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Refused`] if there is none of a name; and as for all calls.
    pub async fn remove_policies(&self, names: Vec<String>) -> Result<PolicyReport, NetworkError> {
        let remove = Action::RemovePolicies(RemovePolicies { names });
        self.ask(&remove, &[]).await
    }

    /// The network's policies. Its process is started for it if it does not run.
    ///
    /// # Errors
    ///
    /// As for all calls.
    pub async fn policies(&self) -> Result<PolicyReport, NetworkError> {
        self.ask(&Action::Policies(Nothing {}), &[]).await
    }
}
