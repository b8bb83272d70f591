//! pasta: the mode of passt that serves a network namespace.
//!
//! The container gets a copy of the host's own addresses. No port is forwarded but the one asked
//! for: by itself pasta forwards whatever is bound.

use super::{Arena, Container, Setup, await_start};
use crate::bench::hosts::Family;
use crate::bench::program::Launch;

/// A container with pasta serving it.
pub fn start(setup: &Setup<'_>) -> anyhow::Result<Arena> {
    let request = setup.request;
    let hosts = request.hosts;
    let container = Container::start(hosts)?;
    let published = request.published.map(|port| port.to_string());
    let mtu = request.mtu.to_string();
    let pid = container.holder.pid().to_string();
    let mut arguments = vec!["--config-net", "--foreground", "--quiet", "--mtu", &mtu];
    arguments.extend(["-t", published.as_deref().unwrap_or("none")]);
    arguments.extend(["-u", "none", "-T", "none", "-U", "none"]);
    if request.family == Family::V4 {
        arguments.push("--ipv4-only");
    }
    arguments.push(&pid);
    let mut program = Launch::new(&hosts.host, setup.program, hosts.directory())
        .ordinary()
        .args(arguments)
        .spawn()?;
    let startup = await_start(&container.namespace, request.family, &mut program, None)?;
    Ok(container.served(program, startup))
}
