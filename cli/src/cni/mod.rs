//! `cnet-cni`: the plug-in for engines that speak the Container Network Interface, versions 0.3.1 to
//! 1.1.0, such as kubelet's runtimes and podman before its version 5.
//!
//! # Theory of operation
//!
//! An engine starts the program for each verb, with the attachment in the environment
//! ([`environment`]) and the network's configuration on standard input ([`configuration`]). The program
//! asks the network's process, and answers on standard output ([`result`], [`error`]).
//!
//! An attachment is a member of the network with three labels: the configuration's name, the container's
//! id and the interface. By these DEL and GC find it, so they need nothing that ADD has said: no file of
//! the plug-in's, no `prevResult`, and no network namespace.
//!
//! # Limits
//!
//! A container can have one interface on a network. CHECK compares with what the network knows, and does
//! not look into the container.
//!
//! Source: CNI specification 1.1.0, and the conventions beside it.

use std::collections::BTreeSet;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::plugin;
use crate::program::{event_loop, write_out};
use cnet::ContainerReport;
use cnet::network::{Network, NetworkError, Target};

mod configuration;
mod environment;
mod error;
mod result;

use configuration::{
    CONTAINER_LABEL, Configuration, INTERFACE_LABEL, NETWORK_LABEL, VERSIONS, id, names,
};
use environment::{Environment, Verb};
use error::{Code, Error};

/// The device that every TAP is opened through.
const TUN: &str = "/dev/net/tun";

/// The program: does what the environment says, and tells the exit code.
pub fn main() -> ExitCode {
    if let Some(code) = plugin::network_process() {
        return code;
    }
    let Some(command) = std::env::var("CNI_COMMAND").ok().filter(|c| !c.is_empty()) else {
        let about = format!(
            "cnet-cni {}, a CNI plug-in for engines to call; versions {}\n",
            env!("CARGO_PKG_VERSION"),
            VERSIONS.join(", ")
        );
        let _ = write_out(about);
        return ExitCode::SUCCESS;
    };
    plugin::start_log();
    let text = plugin::read_request();
    let version = text.as_deref().map(said_version).unwrap_or_default();
    let done = text
        .map_err(|error| Error::new(Code::Io, "the configuration cannot be read").details(error))
        .and_then(|text| act(&command, &text));
    let (answer, code) = match done {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(answer)) => (answer.to_string(), ExitCode::SUCCESS),
        Err(error) => (error.to_json(&version), ExitCode::FAILURE),
    };
    match write_out(format!("{answer}\n")) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version that an error is told in: the engine's, if it says one that is spoken.
fn said_version(text: &[u8]) -> String {
    let value: Value = serde_json::from_slice(text).unwrap_or_default();
    let said = value["cniVersion"].as_str();
    let newest = VERSIONS[VERSIONS.len() - 1];
    let spoken = said.filter(|version| VERSIONS.contains(version));
    spoken.unwrap_or(newest).to_owned()
}

fn act(command: &str, text: &[u8]) -> Result<Option<Value>, Error> {
    let verb = Verb::parse(command)?;
    if verb == Verb::Version {
        return Ok(Some(versions(text)));
    }
    let environment = Environment::read(verb, |name| std::env::var(name).ok())?;
    let configuration = Configuration::read(text)?;
    let runtime = event_loop().map_err(|error| Error::new(Code::Io, format!("{error:#}")))?;
    runtime.block_on(async {
        match verb {
            Verb::Add => add(&environment, &configuration).await.map(Some),
            Verb::Del => del(&environment, &configuration).await.map(|()| None),
            Verb::Check => check(&environment, &configuration).await.map(|()| None),
            Verb::Gc => gc(&configuration).await.map(|()| None),
            Verb::Status => status(&configuration).await.map(|()| None),
            Verb::Version => Ok(Some(versions(text))),
        }
    })
}

/// The versions that are spoken, in the engine's, or in the newest where that says none.
fn versions(text: &[u8]) -> Value {
    json!({"cniVersion": said_version(text), "supportedVersions": VERSIONS})
}

async fn add(environment: &Environment, configuration: &Configuration) -> Result<Value, Error> {
    let attach = configuration.attach(environment)?;
    let network = plugin::ensure(configuration.request()?)?;
    let netns = environment.netns.clone().unwrap_or_default();
    if !netns.exists() {
        let message = format!("there is no network namespace {}", netns.display());
        return Err(Error::new(Code::Container, message));
    }
    if joined(&network, environment, configuration)
        .await?
        .is_some()
    {
        let message = format!(
            "the container {} has `{}` on this network already",
            environment.container, environment.interface
        );
        return Err(Error::new(Code::Refused, message));
    }
    plugin::come_here(&network).await?;
    let mut names = names(environment).into_iter().map(Some).chain([None]);
    let joined = loop {
        let name = names.next().unwrap_or_default();
        let mut attach = attach.clone();
        attach.name.clone_from(&name);
        match network.attach(Target::Path(netns.clone()), attach).await {
            // Another container has its name: it goes by its id then.
            Err(error) if error.is_conflict() && name.is_some() => {}
            joined => break joined?,
        }
    };
    result::added(configuration, environment, network.definition(), &joined)
}

async fn del(environment: &Environment, configuration: &Configuration) -> Result<(), Error> {
    let Some(network) = plugin::find(configuration.network())? else {
        return Ok(());
    };
    match joined(&network, environment, configuration).await? {
        Some(container) => Ok(plugin::detach(&network, &container.id).await?),
        None => Ok(()),
    }
}

async fn check(environment: &Environment, configuration: &Configuration) -> Result<(), Error> {
    let missing = || {
        let message = format!(
            "the container {} has no `{}` on this network",
            environment.container, environment.interface
        );
        Error::new(Code::Missing, message)
    };
    let network = plugin::find(configuration.network())?.ok_or_else(missing)?;
    let container = joined(&network, environment, configuration).await?;
    result::check(configuration, environment, &container.ok_or_else(missing)?)
}

/// Takes out the attachments of this configuration that the engine does not list.
async fn gc(configuration: &Configuration) -> Result<(), Error> {
    let Some(valid) = &configuration.valid_attachments else {
        let message = "GC needs `cni.dev/valid-attachments`";
        return Err(Error::new(Code::Configuration, message));
    };
    let Some(network) = plugin::find(configuration.network())? else {
        return Ok(());
    };
    let valid: BTreeSet<String> = valid
        .iter()
        .map(|a| id(&a.container, &a.interface))
        .collect();
    let mut failed = None;
    for container in containers(&network).await? {
        let is_ours = label(&container, NETWORK_LABEL) == Some(&configuration.name);
        let known = label(&container, CONTAINER_LABEL).zip(label(&container, INTERFACE_LABEL));
        let is_valid = known.is_some_and(|(c, interface)| valid.contains(&id(c, interface)));
        if is_ours && !is_valid {
            // The others go all the same.
            let done = plugin::detach(&network, &container.id).await;
            failed = done.err().or(failed);
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Whether ADD can work: the device can be opened, and the network exists or could be made.
async fn status(configuration: &Configuration) -> Result<(), Error> {
    let unavailable = |error: String| Error::new(Code::Unavailable, error);
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(TUN);
    opened.map_err(|error| unavailable(format!("{TUN} cannot be opened: {error}")))?;
    configuration.request()?;
    match plugin::find(configuration.network()) {
        Ok(Some(network)) => {
            let answered = network.inspect().await;
            answered.map_err(|error| unavailable(error.to_string()))?;
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(error) => Err(unavailable(error.to_string())),
    }
}

/// The member that the attachment is.
async fn joined(
    network: &Network,
    environment: &Environment,
    configuration: &Configuration,
) -> Result<Option<ContainerReport>, Error> {
    let is_it = |container: &ContainerReport| {
        label(container, NETWORK_LABEL) == Some(&configuration.name)
            && label(container, CONTAINER_LABEL) == Some(&environment.container)
            && label(container, INTERFACE_LABEL) == Some(&environment.interface)
    };
    Ok(containers(network).await?.into_iter().find(is_it))
}

async fn containers(network: &Network) -> Result<Vec<ContainerReport>, NetworkError> {
    let report = network.inspect().await?;
    Ok(report.map(|report| report.containers).unwrap_or_default())
}

fn label<'a>(container: &'a ContainerReport, key: &str) -> Option<&'a String> {
    container.labels.get(key)
}
