//! `cnet network`: making, showing and removing networks.
//!
//! Nothing here needs a network's process to run. Which containers are on a network now is asked by
//! a function ([`Ask`]), so that tests need no process either.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;

use crate::program::{all_of, event_loop};
use cnet::definition::{Definition, Directories, HostRoutes, Store, StoreError};

pub(super) mod json;
pub(super) mod live;
mod members;
mod options;

use super::format::{Filter, Format, filled, passes};
use json::{Line, Live, Network};
use options::{CreateOptions, InspectOptions, ListOptions, NameOptions, PruneOptions};

/// How long to wait before a network is asked again for the name of a container that is joining.
const JOINING_INTERVAL: Duration = Duration::from_millis(100);

/// What is on a network now; `None` if its process does not run.
pub(super) type Ask<'a> = &'a dyn Fn(&Definition) -> anyhow::Result<Live>;

/// The subcommands of `cnet network`.
#[derive(Subcommand, Debug)]
pub(crate) enum NetworkCommand {
    /// Make a network.
    Create(Box<CreateOptions>),
    /// List the networks.
    #[command(visible_alias = "list")]
    Ls(ListOptions),
    /// Show all about networks, as JSON in the shape of `docker network inspect`.
    Inspect(InspectOptions),
    /// Give a container that runs an interface on a further network.
    Connect(members::ConnectOptions),
    /// Take a container off a network.
    Disconnect(members::DisconnectOptions),
    /// Have this program, such as a new version, take the place of networks' processes. Containers keep
    /// their interfaces, addresses, names and ports; their connections to the world are reset.
    Restart(members::RestartOptions),
    /// Remove networks that no container is on.
    #[command(visible_alias = "remove")]
    Rm(NameOptions),
    /// Remove all networks that no container is on.
    Prune(PruneOptions),
}

/// Does what `command` says.
///
/// # Errors
///
/// As [`run`].
pub(super) fn main(command: NetworkCommand) -> anyhow::Result<()> {
    let command = match command {
        NetworkCommand::Connect(options) => return super::attended(members::connect(options)),
        NetworkCommand::Disconnect(options) => {
            return super::attended(members::disconnect(options));
        }
        NetworkCommand::Restart(options) => return super::attended(members::restart(options)),
        other => other,
    };
    let store = Store::open(Directories::of_this_user()?);
    let ask = live::ask(&command);
    let policy = match &command {
        NetworkCommand::Create(options) => {
            options.policy.clone().map(|p| (options.name.clone(), p))
        }
        _ => None,
    };
    let mut out = Vec::new();
    let done = run(command, &store, &HostRoutes::read(), &ask, &mut out);
    if let (Ok(()), Some((name, file))) = (&done, policy) {
        event_loop()?.block_on(with_policy(&name, &file))?;
    }
    let printed = super::print(&String::from_utf8_lossy(&out)).map(drop);
    done.and(printed)
}

/// Applies the policies of `file` to the network that was just made, which goes again if that fails: it must
/// not be there without them.
async fn with_policy(name: &str, file: &Path) -> anyhow::Result<()> {
    let network = cnet::Network::open(name)?;
    let applied = super::policy::apply(&network, file).await;
    if applied.is_err() {
        network.remove().await?;
    }
    applied
}

/// Does what `command` says, with the definitions in `store`, on a host with these `routes`; `ask`
/// tells what is on a network. Results go to `out`, questions to the terminal.
///
/// # Errors
///
/// The first thing that went wrong; with several networks, after all of them were tried.
fn run(
    command: NetworkCommand,
    store: &Store,
    routes: &HostRoutes,
    ask: Ask<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(options) => {
            let made = store.create((*options).into(), routes)?;
            writeln!(out, "{}", made.id)?;
            Ok(())
        }
        NetworkCommand::Ls(options) => {
            let (all, broken) = sorted_out(store)?;
            list(&options, &all, out)?;
            all_of(broken.into_iter().map(Err))
        }
        NetworkCommand::Inspect(options) => inspect(&options, (store, routes), ask, out),
        NetworkCommand::Connect(_) | NetworkCommand::Disconnect(_) | NetworkCommand::Restart(_) => {
            bail!("that is done on networks that run")
        }
        NetworkCommand::Rm(options) => {
            let each = |name: &String| remove(name, store, ask, &mut *out);
            all_of(options.names.iter().map(each))
        }
        NetworkCommand::Prune(options) => {
            if !options.force && !confirmed()? {
                return Ok(());
            }
            prune(store, ask, out)
        }
    }
}

fn list(options: &ListOptions, all: &[Definition], out: &mut dyn Write) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for definition in all {
        let known = "name, id, driver, label, scope, internal and type";
        if passes(&options.filter, known, |filter| is(definition, filter))? {
            lines.push(Line::new(definition, options.no_trunc));
        }
    }
    if options.quiet {
        for line in &lines {
            writeln!(out, "{}", line.id)?;
        }
        return Ok(());
    }
    match &options.format {
        Format::Table if !options.json => {}
        Format::Template(template, heading) => {
            write!(out, "{}", filled(template, *heading, &lines)?)?;
            return Ok(());
        }
        Format::Json | Format::Table => {
            for line in &lines {
                writeln!(out, "{}", serde_json::to_string(line)?)?;
            }
            return Ok(());
        }
    }
    let rows = lines
        .iter()
        .map(|l| [&*l.id, &*l.name, &*l.driver, &*l.subnets]);
    let rows: Vec<[&str; 4]> = std::iter::once(["NETWORK ID", "NAME", "DRIVER", "SUBNETS"])
        .chain(rows)
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let [id_width, name_width, driver_width] = [width(0), width(1), width(2)];
    for [id, name, driver, subnets] in rows {
        writeln!(
            out,
            "{id:id_width$}   {name:name_width$}   {driver:driver_width$}   {subnets}"
        )?;
    }
    Ok(())
}

/// Whether a filter holds for a network; `None` for one that there is not.
fn is(definition: &Definition, filter: &Filter) -> Option<bool> {
    let value = filter.value.as_str();
    Some(match filter.key.as_str() {
        "name" => definition.name.contains(value),
        "id" => definition.id.starts_with(value),
        "driver" => definition.driver == value,
        "scope" => value == "local",
        "internal" => definition.internal.to_string() == value,
        "type" => {
            let is_default = definition.name == cnet::definition::DEFAULT_NETWORK;
            value == if is_default { "builtin" } else { "custom" }
        }
        "label" => match value.split_once('=') {
            Some((key, value)) => definition.labels.get(key).is_some_and(|v| v == value),
            None => definition.labels.contains_key(value),
        },
        _ => return None,
    })
}

/// What is found is shown, whatever else is missing.
fn inspect(
    options: &InspectOptions,
    (store, routes): (&Store, &HostRoutes),
    ask: Ask<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let one = |name: &String| {
        let definition = store.get(name)?;
        let live = ask(&definition)?;
        let mut network = Network::new(&definition, live);
        network.cnet.warnings = definition.hidden_routes(routes);
        anyhow::Ok(network)
    };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in &options.names {
        match one(name) {
            Ok(network) => found.push(network),
            Err(error) => missing.push(Err(error)),
        }
    }
    match &options.format {
        Format::Template(template, heading) if !options.json => {
            write!(out, "{}", filled(template, *heading, &found)?)?;
        }
        _ => writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?,
    }
    all_of(missing)
}

fn remove(name: &str, store: &Store, ask: Ask<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    let name = match store.get(name) {
        Ok(definition) => {
            remove_unused(&definition, store, ask)?;
            definition.name
        }
        // No process can be started from a file that cannot be understood.
        Err(StoreError::Broken { .. }) => {
            store.remove(name, None)?;
            name.to_owned()
        }
        Err(error) => return Err(error.into()),
    };
    writeln!(out, "{name}")?;
    Ok(())
}

/// Removes a network without containers. If one has joined since the network was asked, it is asked
/// again.
fn remove_unused(definition: &Definition, store: &Store, ask: Ask<'_>) -> anyhow::Result<()> {
    let mut attempts = 3;
    loop {
        attempts -= 1;
        match store.remove(&definition.name, users(definition, ask)?) {
            Err(StoreError::InUse { containers, .. }) if containers.is_empty() && attempts > 0 => {
                std::thread::sleep(JOINING_INTERVAL);
            }
            removed => return Ok(removed?),
        }
    }
}

/// The names of the containers on a network; `None` if its process does not run.
fn users(definition: &Definition, ask: Ask<'_>) -> anyhow::Result<Option<Vec<String>>> {
    let live = ask(definition)
        .with_context(|| format!("cannot tell who is on the network `{}`", definition.name))?;
    Ok(live.map(|running| running.containers.into_values().map(|c| c.name).collect()))
}

fn prune(store: &Store, ask: Ask<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    let (all, broken) = sorted_out(store)?;
    let mut results: Vec<_> = broken.into_iter().map(Err).collect();
    for definition in all {
        if definition.name == cnet::definition::DEFAULT_NETWORK {
            continue;
        }
        match remove_unused(&definition, store, ask) {
            Ok(()) => writeln!(out, "{}", definition.name)?,
            Err(error) => match error.downcast_ref() {
                Some(StoreError::InUse { .. }) => {}
                _ => results.push(Err(error)),
            },
        }
    }
    all_of(results)
}

/// Asks the person at the terminal. Where there is none, silence is no consent.
fn confirmed() -> anyhow::Result<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        bail!("this removes all networks that no container is on: say --force if you mean it");
    }
    eprint!("This removes all networks that no container is on. Go on? [y/N] ");
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The networks there are, and what is wrong with the files of others.
fn sorted_out(store: &Store) -> anyhow::Result<(Vec<Definition>, Vec<anyhow::Error>)> {
    let (mut all, mut broken) = (Vec::new(), Vec::new());
    for definition in store.each()? {
        match definition {
            Ok(definition) => all.push(definition),
            Err(error) => broken.push(error.into()),
        }
    }
    Ok((all, broken))
}

#[cfg(test)]
mod tests;
