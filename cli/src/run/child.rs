//! The child: makes the namespaces, sets the network up in them, and becomes the command, or the init
//! of the PID namespace that the command is in.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use cnet_tap::fork::{Parent, go_on_as_child, spawn};
use cnet_tap::namespace::{NewNamespaces, unshare};
use cnet_tap::signal::Mask;
use cnet_tap::{InterfaceConfig, Tap, TapError, netif};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::command::{CommandPlan, become_command};
use super::drain::TcpTables;
use super::handshake::{self, Child, Made};
use super::id_maps::{self, IdMaps};
use super::mounts::OwnFiles;
use super::plan::Spaces;
use super::{INTERFACE, init, mounts, process, userns_restrictions};
use crate::log::report;
use crate::program::{OWN_FAILURE, tell};

/// What the child is to set up.
pub(super) struct Setup<'a> {
    pub(super) spaces: Spaces,
    /// The files that it is to have for itself.
    pub(super) own_files: Option<OwnFiles>,
    /// The directory of the control sockets, which it is not to see.
    pub(super) networks: Option<PathBuf>,
    pub(super) command: CommandPlan<'a>,
    /// Whose numbers its users have, in a user namespace.
    pub(super) id_maps: IdMaps,
    /// What the command is to have blocked.
    pub(super) signal_mask: Mask,
    /// Whether the command is to have a PID namespace. One on the host's network has none.
    pub(super) pid_namespace: bool,
}

/// Forks the child, which sets itself up and reports. Where it cannot have a PID namespace, another
/// one is forked that has none.
pub(super) fn start(setup: &mut Setup<'_>) -> anyhow::Result<(Child, Made)> {
    let (id, socket) = spawn("cannot fork", |parent, socket| {
        live(setup, handshake::Parent::new(socket), parent)
    })?;
    let mut child = Child::new(id, socket);
    match child.receive() {
        Ok(Some(made)) => Ok((child, made)),
        Ok(None) => {
            process::kill_child(child.id());
            tracing::warn!(
                "/proc cannot be mounted anew here, so the command has no PID namespace: if cnet is killed, processes that the command has started stay"
            );
            setup.pid_namespace = false;
            start(setup)
        }
        Err(error) => {
            // It has noticed our end of the socket close, and ends.
            process::kill_child(child.id());
            Err(error)
        }
    }
}

/// The child's life. Returns only if it does not become the command.
fn live(setup: &Setup<'_>, socket: handshake::Parent, parent: Parent) -> u8 {
    let ready = || -> anyhow::Result<bool> {
        let (tap, tables) = set_up(setup, parent)?;
        let is_init = match setup.pid_namespace {
            true => become_init(&socket)?,
            false => false,
        };
        if setup.pid_namespace && !is_init {
            return Ok(false);
        }
        socket.send_ready(tap, &tables)?;
        Ok(true)
    };
    match ready() {
        Ok(true) => {}
        Ok(false) => {
            socket.send_no_proc();
            return OWN_FAILURE;
        }
        Err(error) => {
            socket.send_failed(&report(&error));
            return OWN_FAILURE;
        }
    }
    if !socket.wait_for_go() {
        return OWN_FAILURE;
    }
    if setup.pid_namespace {
        let become_command = || {
            setup.signal_mask.restore();
            become_command(&setup.command)
        };
        return init::live(socket.as_fd(), become_command).unwrap_or_else(|error| {
            tell(&report(&error));
            OWN_FAILURE
        });
    }
    setup.signal_mask.restore();
    become_command(&setup.command)
}

/// Goes on as the first process of a new PID namespace, with a /proc that shows it; `false` where the
/// one or the other is not to be had. The command's processes end with that process.
fn become_init(socket: &handshake::Parent) -> anyhow::Result<bool> {
    let new = NewNamespaces {
        pid: true,
        ..NewNamespaces::default()
    };
    if unshare(new).is_err() {
        return Ok(false);
    }
    go_on_as_child("cannot fork the init", |pid| socket.send_goes_on_as(pid))?;
    Ok(mounts::proc().is_ok())
}

fn set_up(setup: &Setup<'_>, parent: Parent) -> anyhow::Result<(Option<Tap>, TcpTables)> {
    die_with(parent)?;
    match &setup.spaces {
        // The host's kernel sends what its sockets hold after the command's end.
        Spaces::Inherited => return Ok((None, TcpTables::default())),
        Spaces::Joined(joined) => {
            joined.enter()?;
            let mount = NewNamespaces {
                mount: true,
                ..NewNamespaces::default()
            };
            unshare(mount).context("cannot make a mount namespace")?;
        }
        Spaces::Private(..) | Spaces::Empty => {
            enter_namespaces(own_hostname(setup), &setup.id_maps)?
        }
    }
    // The change of credentials has cleared the request (`commit_creds` in kernel/cred.c).
    die_with(parent)?;
    mounts::separate()?;
    let tap = match &setup.spaces {
        Spaces::Private(interface, queues) => Some(private_tap(interface, *queues)?),
        Spaces::Empty => {
            netif::loopback_up()?;
            allow_ping();
            None
        }
        Spaces::Inherited | Spaces::Joined(_) => None,
    };
    if let Some(name) = setup
        .own_files
        .as_ref()
        .and_then(|own| own.hostname.as_ref())
    {
        rustix::system::sethostname(name.as_bytes()).context("cannot set the host name")?;
    }
    if let Some(Err(error)) = setup.own_files.as_ref().map(mounts::put_in_place) {
        tell(&format!(
            "the command keeps the host's DNS configuration, and may not resolve names: {}",
            report(&error)
        ));
    }
    if let Some(Err(error)) = setup.networks.as_deref().map(mounts::cover_networks) {
        tell(&format!(
            "the command sees the control sockets of your networks: {}",
            report(&error)
        ));
    }
    // Those of a container are that container's to wait for.
    let tables = match &setup.spaces {
        Spaces::Joined(_) => TcpTables::default(),
        _ => TcpTables::open(),
    };
    Ok((tap, tables))
}

/// The one interface of a network of its own.
fn private_tap(interface: &InterfaceConfig, queues: u16) -> anyhow::Result<Tap> {
    let mut tap = Tap::create(INTERFACE, queues)?;
    netif::loopback_up()?;
    if let Err(error) = netif::ignore_router_advertisements(&tap.name) {
        // Without IPv6 there is no such file.
        tracing::info!(%error, "router advertisements cannot be switched off");
    }
    tap.lacks_ipv6 = !netif::configure(tap.ifindex, &tap.name, interface)?;
    allow_ping();
    Ok(tap)
}

/// Asks the kernel to kill this process, and the command it becomes, when `parent` ends.
fn die_with(parent: Parent) -> anyhow::Result<()> {
    parent
        .die_together()
        .context("cannot tie the command to cnet")
}

/// Whether the command is to have a host name of its own.
fn own_hostname(setup: &Setup<'_>) -> bool {
    let own_files = setup.own_files.as_ref();
    own_files.is_some_and(|own| own.hostname.is_some())
}

/// As root, a network and a mount namespace; as any other user, and as a root who may not do that,
/// inside a user namespace in which the user is root. With `uts`, a host name as well.
pub(crate) fn enter_namespaces(uts: bool, id_maps: &IdMaps) -> anyhow::Result<()> {
    let inner = NewNamespaces {
        net: true,
        mount: true,
        pid: false,
        uts,
        user: false,
    };
    if geteuid().is_root() {
        match unshare(inner) {
            Err(error) if errno_of(&error) == Some(Errno::PERM) => {}
            result => return result.context("cannot make a network namespace"),
        }
    }
    let mapper = id_maps.mapper()?;
    let user_namespace = NewNamespaces {
        user: true,
        ..NewNamespaces::default()
    };
    let forbidden = |errno| {
        anyhow!(userns_restrictions::explain(
            errno,
            Path::new(userns_restrictions::SYSCTL)
        ))
    };
    unshare(user_namespace).map_err(|error| match errno_of(&error) {
        Some(errno) => forbidden(errno),
        None => error.into(),
    })?;
    // AppArmor lets the namespace be made, and then refuses everything in it.
    id_maps.write(mapper).map_err(|error| match error {
        id_maps::MapError::Kernel(error) => {
            explain_io(error, "cannot map the user into the namespace")
        }
        id_maps::MapError::Programs(text) => anyhow!("{text}"),
    })?;
    unshare(inner).map_err(|error| match errno_of(&error) {
        Some(Errno::PERM) => forbidden(Errno::PERM),
        _ => anyhow::Error::new(error).context("cannot make a network namespace"),
    })
}

fn explain_io(error: io::Error, what: &'static str) -> anyhow::Error {
    match Errno::from_io_error(&error) {
        Some(errno @ (Errno::PERM | Errno::ACCESS)) => {
            anyhow!(userns_restrictions::explain(
                errno,
                Path::new(userns_restrictions::SYSCTL)
            ))
        }
        _ => anyhow::Error::new(error).context(what),
    }
}

fn errno_of(error: &TapError) -> Option<Errno> {
    match error {
        TapError::Enter { source, .. } => Errno::from_io_error(source),
        _ => None,
    }
}

/// Lets every group of the namespace use ping sockets (icmp(7)), so that `ping` works without
/// CAP_NET_RAW. In a user namespace there is one group; the kernel refuses those without a mapping.
pub(crate) fn allow_ping() {
    let path = "/proc/sys/net/ipv4/ping_group_range";
    let opened = fs::write(path, "0 2147483647")
        .or_else(|_| fs::write(path, "0 65535"))
        .or_else(|_| fs::write(path, "0 0"));
    if let Err(error) = opened {
        // `ping` may still work: it has CAP_NET_RAW in the namespace, unless it gave that up.
        tracing::info!(%error, path, "cannot be written");
    }
}
