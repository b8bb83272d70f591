//! `cnet events`: what happens on networks, as it happens.

use std::time::Duration;

use clap::Args;
use cnet::control::{ContainerReport, Event};
use cnet::definition::{Directories, Store};
use cnet::network::Network;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::log::report;
use crate::program::tell;
use cnet_netd::registry::now;

/// How long to wait before a network that does not run is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How many events may wait to be printed.
const QUEUE: usize = 256;

/// The options of `cnet events`.
#[derive(Args, Debug)]
pub(crate) struct EventsOptions {
    /// Only this network.
    #[arg(long, value_name = "NET")]
    network: Option<String>,

    /// Print each event as a line of JSON.
    #[arg(long)]
    json: bool,
}

/// Prints events until nothing reads them any more.
pub(super) async fn events(options: EventsOptions) -> anyhow::Result<()> {
    let (sender, mut events) = mpsc::channel(QUEUE);
    let mut listened: Vec<String> = Vec::new();
    let directories = Directories::of_this_user()?;
    let store = Store::open(directories.clone());
    let wanted = options
        .network
        .as_deref()
        .map(|name| store.get(name))
        .transpose()?;
    loop {
        // Networks are made while this runs.
        for definition in store.each()?.into_iter().flatten() {
            let is_wanted = wanted
                .as_ref()
                .is_none_or(|wanted| wanted.id == definition.id);
            if is_wanted && !listened.contains(&definition.name) {
                listened.push(definition.name.clone());
                let network = Network::new(definition, directories.clone());
                tokio::spawn(listen(network, sender.clone()));
            }
        }
        tokio::select! {
            Some((network, event)) = events.recv() => {
                if !super::print(&line(&network, &event, options.json)?)? {
                    return Ok(());
                }
            }
            () = sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Hears what happens on one network, for as long as it is there and whenever it runs.
async fn listen(network: Network, sender: mpsc::Sender<(String, Event)>) {
    let name = network.name().to_owned();
    // Whether it has run since this command was started without being listened to.
    let mut is_new = false;
    loop {
        match network.events().await {
            Ok(Some(mut events)) => {
                let mut joined = Vec::new();
                if is_new {
                    joined = containers(&network).await;
                }
                let told = joined
                    .iter()
                    .cloned()
                    .map(|container| Event::Joined { container });
                for event in told {
                    if sender.send((name.clone(), event)).await.is_err() {
                        return;
                    }
                }
                while let Ok(Some(event)) = events.next().await {
                    // It joined between the two questions.
                    let again =
                        matches!(&event, Event::Joined { container } if joined.contains(container));
                    if !again && sender.send((name.clone(), event)).await.is_err() {
                        return;
                    }
                }
                is_new = true;
            }
            Ok(None) => is_new = true,
            Err(error) => tell(&report(&anyhow::Error::from(error))),
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Those that are on the network now.
async fn containers(network: &Network) -> Vec<Box<ContainerReport>> {
    let report = network.inspect().await.ok().flatten();
    let containers = report.into_iter().flat_map(|report| report.containers);
    containers.map(Box::new).collect()
}

fn line(network: &str, event: &Event, as_json: bool) -> anyhow::Result<String> {
    let time = now();
    if as_json {
        let mut value = serde_json::to_value(event)?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("time".to_owned(), json!(time));
            fields.insert("network".to_owned(), json!(network));
        }
        return Ok(format!("{value}\n"));
    }
    let told = match event {
        Event::Joined { container } => {
            let ipv4 = container.ipv4.iter().map(ToString::to_string);
            let ipv6 = container.ipv6.iter().map(ToString::to_string);
            let addresses: Vec<String> = ipv4.chain(ipv6).collect();
            format!("{} joins with {}", container.name, addresses.join(" "))
        }
        Event::Left { name, why, .. } => format!("{name} leaves: {why}"),
        Event::Lost { count } => format!("{count} events were lost"),
        other => serde_json::to_string(other)?,
    };
    Ok(format!("{time} {network} {told}\n"))
}
