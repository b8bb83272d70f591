//! slirp4netns, and `cnet-slirp`, which has its command line and its API.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Arena, Container, Setup, await_start};
use crate::bench::hosts::Family;
use crate::bench::program::Launch;

/// How long the API may take to answer.
const API_PATIENCE: Duration = Duration::from_secs(5);

/// A container with the program of `setup` serving it, ready, and the port published.
pub fn start(setup: &Setup<'_>) -> anyhow::Result<Arena> {
    let request = setup.request;
    let hosts = request.hosts;
    let container = Container::start(hosts)?;
    let (ready, said) = std::io::pipe()?;
    let said = OwnedFd::from(said);
    let mut arguments = vec![
        "--configure".to_owned(),
        format!("--mtu={}", request.mtu),
        format!("--ready-fd={}", said.as_raw_fd()),
    ];
    if request.family == Family::V6 {
        arguments.push("--enable-ipv6".to_owned());
    }
    let api = match request.published {
        None => None,
        Some(port) => Some((hosts.private_directory("api")?.join("api.sock"), port)),
    };
    if let Some((path, _)) = &api {
        arguments.push(format!("--api-socket={}", path.display()));
    }
    arguments.push(container.holder.pid().to_string());
    arguments.push("tap0".to_owned());
    let mut program = Launch::new(&hosts.host, setup.program, hosts.directory())
        .ordinary()
        .args(arguments)
        .keep(said)
        .spawn()?;
    let family = request.family;
    let startup = await_start(&container.namespace, family, &mut program, Some(ready))?;
    if let Some((path, port)) = api {
        publish(&path, family, port)
            .with_context(|| format!("add_hostfwd: {}", program.last_words()))?;
    }
    Ok(container.served(program, startup))
}

/// Publishes a TCP port of the container on all of the host's addresses of a family.
fn publish(api: &Path, family: Family, port: u16) -> anyhow::Result<()> {
    let request = json!({
        "execute": "add_hostfwd",
        "arguments": {
            "proto": "tcp",
            "host_addr": family.any(),
            "host_port": port,
            "guest_port": port,
        },
    });
    let mut stream = UnixStream::connect(api).context("the API socket")?;
    stream.set_read_timeout(Some(API_PATIENCE))?;
    stream.write_all(request.to_string().as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let parsed: Value = serde_json::from_str(&answer).context("the API's answer")?;
    if parsed.get("return").is_none() {
        bail!("the API answers {answer}");
    }
    Ok(())
}
