//! `cnet network`: making, showing and removing networks.
//!
//! Nothing here needs a network's process to run. What is on a network now comes from outside, as
//! a function ([`Ask`]), because it is the control socket's business.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use super::network_json::{Line, Live, Network};
use crate::logging::report;
use cnet::definition::{BRIDGE, Definition, Directories, HostRoutes, Request, Store, StoreError};
use cnet::definition::{DEFAULT_MTU, MTU_RANGE};

/// How long to wait for the name of somebody who is just joining.
const JOINING: Duration = Duration::from_millis(100);

/// What is on a network now; `None` if its process does not run.
pub type Ask<'a> = &'a dyn Fn(&Definition) -> anyhow::Result<Live>;

/// The subcommands of `cnet network`.
#[derive(Subcommand, Debug)]
pub enum NetworkCommand {
    /// Make a network.
    Create(CreateOptions),
    /// List the networks.
    #[command(visible_alias = "list")]
    Ls(ListOptions),
    /// Show all about networks, as JSON in the shape of `docker network inspect`.
    Inspect(NameOptions),
    /// Remove networks that no container is on.
    #[command(visible_alias = "remove")]
    Rm(NameOptions),
    /// Remove all networks that no container is on.
    Prune(PruneOptions),
}

/// The options of `cnet network create`.
#[derive(Args, Debug)]
pub struct CreateOptions {
    /// What to call it.
    pub name: String,

    /// Its subnet, such as 172.27.0.0/16; one of IPv4, one of IPv6, or one of each.
    ///
    /// The network has the families of the subnets given. Without any, it has both: a free IPv4
    /// subnet and a unique local IPv6 prefix.
    #[arg(long, value_name = "CIDR", value_parser = parse_subnet)]
    pub subnet: Vec<IpNet>,

    /// The gateway's address, which answers DNS as well; by default the first one of the subnet.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Vec<IpAddr>,

    /// The part of the subnet that containers get their addresses from.
    #[arg(long, value_name = "CIDR", value_parser = parse_subnet)]
    pub ip_range: Vec<IpNet>,

    /// No way out: containers reach each other and the gateway alone. Their names are answered,
    /// all others do not exist. Nor is there a way in: ports cannot be published on it.
    #[arg(long)]
    pub internal: bool,

    /// Containers reach the gateway and the world, but not each other.
    #[arg(long)]
    pub isolate: bool,

    /// Bytes of the largest packet.
    #[arg(
        long,
        default_value_t = DEFAULT_MTU,
        value_parser = clap::value_parser!(u16).range(MTU_RANGE)
    )]
    pub mtu: u16,

    /// Ask this DNS server instead of the host's; may be given several times.
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,

    /// A domain that containers search; may be given several times.
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,

    /// A note for programs; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub label: Vec<(String, String)>,

    /// The kind of network; there is one, `bridge`.
    #[arg(short, long, default_value = BRIDGE)]
    pub driver: String,
}

/// The options of `cnet network ls`.
#[derive(Args, Debug)]
pub struct ListOptions {
    /// The ids alone.
    #[arg(short, long)]
    pub quiet: bool,

    /// Whole ids.
    #[arg(long)]
    pub no_trunc: bool,

    /// How to write them.
    #[arg(long, default_value = "table")]
    pub format: Format,
}

/// How a list is written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Table,
    /// A line of JSON for each, with Docker's fields.
    Json,
}

/// Networks by name.
#[derive(Args, Debug)]
pub struct NameOptions {
    /// Names, or beginnings of ids.
    #[arg(required = true, value_name = "NETWORK")]
    pub names: Vec<String>,
}

/// The options of `cnet network prune`.
#[derive(Args, Debug)]
pub struct PruneOptions {
    /// Do not ask.
    #[arg(short, long)]
    pub force: bool,
}

fn parse_subnet(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| {
        "it is a network's address and prefix length, such as 172.27.0.0/16 or fd12::/64".to_owned()
    })
}

/// `KEY=VALUE`, or `KEY` with an empty value, as Docker has it.
fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key {
        "" => Err("its key is empty".to_owned()),
        key => Ok((key.to_owned(), value.to_owned())),
    }
}

impl From<CreateOptions> for Request {
    fn from(options: CreateOptions) -> Request {
        Request {
            name: options.name,
            driver: options.driver,
            subnets: options.subnet,
            gateways: options.gateway,
            ip_ranges: options.ip_range,
            internal: options.internal,
            isolate: options.isolate,
            mtu: options.mtu,
            dns: options.dns,
            dns_search: options.dns_search,
            labels: options.label.into_iter().collect::<BTreeMap<_, _>>(),
        }
    }
}

/// The subcommand as a program: does it and tells the exit code, 1 for any failure.
pub fn main(command: NetworkCommand, ask: Ask<'_>) -> ExitCode {
    let directories = Directories::of_this_user().map_err(anyhow::Error::from);
    let done = directories.and_then(|directories| {
        let store = Store::open(directories);
        let mut out = io::stdout().lock();
        run(command, &store, &HostRoutes::read(), ask, &mut out)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed.
            let _ = writeln!(io::stderr(), "cnet: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

/// Does what `command` says, with the definitions in `store`, on a host with these `routes`; `ask`
/// tells what is on a network. Results go to `out`, questions to the terminal.
///
/// # Errors
///
/// The first thing that went wrong; with several networks, after all of them were tried.
pub fn run(
    command: NetworkCommand,
    store: &Store,
    routes: &HostRoutes,
    ask: Ask<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(options) => {
            let made = store.create(options.into(), routes)?;
            writeln!(out, "{}", made.id)?;
            Ok(())
        }
        NetworkCommand::Ls(options) => {
            let (all, broken) = sorted_out(store)?;
            list(&options, &all, out)?;
            all_of(broken.into_iter().map(Err))
        }
        NetworkCommand::Inspect(options) => inspect(&options.names, store, ask, out),
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
    let lines: Vec<Line> = all.iter().map(|d| Line::new(d, options.no_trunc)).collect();
    if options.quiet {
        for line in &lines {
            writeln!(out, "{}", line.id)?;
        }
        return Ok(());
    }
    if options.format == Format::Json {
        for line in &lines {
            writeln!(out, "{}", serde_json::to_string(line)?)?;
        }
        return Ok(());
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

/// What is found is shown, whatever is not.
fn inspect(
    names: &[String],
    store: &Store,
    ask: Ask<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let one = |name: &String| {
        let definition = store.get(name)?;
        let live = ask(&definition)?;
        anyhow::Ok(Network::new(&definition, live))
    };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match one(name) {
            Ok(network) => found.push(network),
            Err(error) => missing.push(Err(error)),
        }
    }
    writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    all_of(missing)
}

fn remove(name: &str, store: &Store, ask: Ask<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    let name = match store.get(name) {
        Ok(definition) => {
            remove_unused(&definition, store, ask)?;
            definition.name
        }
        // Nobody can start a network from a file that cannot be understood.
        Err(StoreError::Broken { .. }) => {
            store.remove(name, None)?;
            name.to_owned()
        }
        Err(error) => return Err(error.into()),
    };
    writeln!(out, "{name}")?;
    Ok(())
}

/// Removes a network that nobody is on. Who has come since it was asked is asked for again.
fn remove_unused(definition: &Definition, store: &Store, ask: Ask<'_>) -> anyhow::Result<()> {
    let mut attempts = 3;
    loop {
        attempts -= 1;
        match store.remove(&definition.name, users(definition, ask)?) {
            Err(StoreError::InUse { containers, .. }) if containers.is_empty() && attempts > 0 => {
                std::thread::sleep(JOINING);
            }
            removed => return Ok(removed?),
        }
    }
}

/// The names of those on a network; `None` if its process does not run.
fn users(definition: &Definition, ask: Ask<'_>) -> anyhow::Result<Option<Vec<String>>> {
    let live = ask(definition)
        .with_context(|| format!("cannot tell who is on the network `{}`", definition.name))?;
    Ok(live.map(|containers| containers.into_values().map(|c| c.name).collect()))
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

/// One error for all that went wrong.
pub(crate) fn all_of(results: impl IntoIterator<Item = anyhow::Result<()>>) -> anyhow::Result<()> {
    let errors = results.into_iter().filter_map(Result::err);
    let texts: Vec<String> = errors.map(|error| report(&error)).collect();
    match texts.as_slice() {
        [] => Ok(()),
        texts => bail!("{}", texts.join("\n")),
    }
}

/// Whether the network's process answers at its control socket, without asking it anything: for
/// callers that need no names.
///
/// # Errors
///
/// When the socket is there, but it cannot be told whether anybody listens.
pub fn listening(store: &Store, definition: &Definition) -> anyhow::Result<Live> {
    let path = store.directories().socket(&definition.name);
    match std::os::unix::net::UnixStream::connect(&path) {
        Ok(_) => Ok(Some(BTreeMap::new())),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            _ => Err(error).with_context(|| path.display().to_string()),
        },
    }
}

#[cfg(test)]
mod tests;
