//! Gives a container a network, from Rust.
//!
//! Makes a container, which is a process with namespaces of its own, lets it join the default
//! network, and opens a port of the host for it. With a PID as argument it takes that process's
//! container instead. To run it, as any user that may make user namespaces:
//!
//! ```text
//! cargo build --bin cnet
//! PATH="$PWD/target/debug:$PATH" cargo run --example attach
//! ```

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use cnet::{Attach, Network, Target};

/// A container that lives as long as this.
struct Container(Child);

impl Container {
    /// A shell that has said that it is there, and waits.
    fn start() -> anyhow::Result<Container> {
        let mut child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--"])
            .args(["sh", "-c", "echo here; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let out = child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        anyhow::ensure!(line == "here\n", "the container did not start");
        Ok(Container(child))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut own = None;
    let pid = match std::env::args().nth(1) {
        Some(text) => text.parse().context("the argument is not a PID")?,
        None => own.insert(Container::start()?).0.id() as i32,
    };

    // The network's process starts with its first container.
    let network = Network::open("cnet")?;
    let attach = Attach::new().name("example").alias("web");
    let joined = network.attach(Target::Process(pid), attach).await?;
    println!(
        "{} has {} {:?} {:?}, and asks {:?} for names",
        joined.container.name,
        joined.container.interface,
        joined.container.ipv4,
        joined.container.ipv6,
        joined.gateways
    );

    let published = network
        .publish("example", &["127.0.0.1::80".parse()?])
        .await?;
    for port in &published.ports {
        println!("http://{} leads to {}", port.host, port.container);
    }

    if let Some(report) = network.inspect().await? {
        println!(
            "{} containers are on {}",
            report.containers.len(),
            report.name
        );
    }
    if let Some(statistics) = network.statistics().await? {
        for container in statistics.containers {
            println!(
                "{}: {} bytes sent, {} received",
                container.name, container.bytes_sent, container.bytes_received
            );
        }
    }

    // Not needed before the container's end, which the network notices.
    network.detach("example").await?;
    Ok(())
}
