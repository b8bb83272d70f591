//! Containers by what people call them: a name, an id, a process.

use anyhow::{anyhow, bail};

use super::ps::{Entry, entries};
use cnet::definition::Directories;
use cnet_netd::registry::{Registry, Running};

/// The places of a container on networks, or on none.
///
/// # Errors
///
/// When there is no such container.
pub(super) async fn meant(network: Option<&str>, container: &str) -> anyhow::Result<Vec<Entry>> {
    let (all, _) = entries(network).await?;
    let found: Vec<Entry> = all
        .into_iter()
        .filter(|e| e.is_meant_by(container))
        .collect();
    if found.is_empty() {
        bail!("there is no container `{container}`; `cnet ps` lists them");
    }
    Ok(found)
}

/// The process of a container.
///
/// # Errors
///
/// When there is no such container, or it has a namespace alone.
pub(super) async fn process_of(container: &str) -> anyhow::Result<i32> {
    let found = meant(None, container).await?;
    let pid = found.iter().find_map(|entry| entry.container.pid);
    pid.ok_or_else(|| anyhow!("the container `{container}` has no process, only a namespace"))
}

/// One that `cnet run` holds.
pub(super) fn held(container: &str) -> Option<Running> {
    let registry = Registry::new(&Directories::of_this_user().ok()?);
    let mut all = registry.list().into_iter();
    all.find(|running| running.is_meant_by(container))
}

/// Why a container is on no network.
pub(super) fn on_no_network(container: &str) -> anyhow::Error {
    match held(container) {
        Some(running) => anyhow!(
            "`{container}` is on no named network: `cnet run` holds it with `{}`, which ends with its command (`cnet stop {container}` ends that)",
            running.network
        ),
        None => anyhow!("there is no container `{container}` on any network; `cnet ps` lists them"),
    }
}
