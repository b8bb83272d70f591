//! What the network is linked to: a TAP that is made in the container's namespaces, one that the
//! caller has opened, or a machine of User Mode Linux.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, bail};
use cnet_dataplane::PortDevice;
use cnet_tap::device::{self, Adopted};
use cnet_tap::{InterfaceConfig, SocketHelper, inherited_fd, unix};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use super::args::{self, Options};
use super::exit::ExitFd;
use crate::target::Target;

/// The container's side of the network.
pub(super) struct Link {
    pub(super) device: PortDevice,
    /// Where ports may be published, and the container's namespaces are known.
    pub(super) socket_helper: Option<SocketHelper>,
    /// Whose end is watched for, if it is known.
    pub(super) target: Option<Target>,
}

impl Link {
    /// Makes or takes the link, while there is one thread; `None` if the caller went while a machine
    /// was waited for. `tap` is the descriptor of `--netns-type=tapfd`.
    ///
    /// # Errors
    ///
    /// What is wrong with the target, or what the kernel says.
    pub(super) fn open(
        options: &Options,
        tap: Option<OwnedFd>,
        interface: Option<&InterfaceConfig>,
        exit: &ExitFd,
    ) -> anyhow::Result<Option<Link>> {
        let device = match (&options.target, tap) {
            (args::Target::Process(_) | args::Target::Path(_), _) => {
                return Link::to_namespace(options, interface).map(Some);
            }
            (args::Target::TapFd(_), None) => bail!("TAPFD is not an open descriptor"),
            (args::Target::TapFd(_), Some(tap)) => match device::adopt(tap)? {
                Adopted::WithHeaders(tap) => PortDevice::Tap(tap),
                Adopted::Plain(tap) => PortDevice::PlainTap(tap),
            },
            (args::Target::Bess(path), _) => match wait_for_machine(path, exit)? {
                Some(machine) => PortDevice::Packets(machine),
                None => return Ok(None),
            },
        };
        Ok(Some(Link {
            device,
            socket_helper: None,
            target: None,
        }))
    }

    fn to_namespace(
        options: &Options,
        interface: Option<&InterfaceConfig>,
    ) -> anyhow::Result<Link> {
        let userns = options.userns.as_deref();
        let (target, namespaces) = match &options.target {
            args::Target::Process(pid) => Target::pin_process(*pid, userns)?,
            args::Target::Path(path) => Target::pin_path(path, userns)?,
            args::Target::TapFd(_) | args::Target::Bess(_) => {
                bail!("there are no namespaces to enter")
            }
        };
        let (name, queues) = (&options.tap_name, options.workers);
        let tap = cnet_tap::open_tap_in(&namespaces, name, queues, interface)?;
        // Only the API publishes ports.
        let published = options.api_socket.is_some();
        let socket_helper = published
            .then(|| cnet_dataplane::start_socket_helper(&namespaces))
            .flatten();
        Ok(Link {
            device: PortDevice::Tap(tap),
            socket_helper,
            target: Some(target),
        })
    }
}

impl Link {
    /// Whether it leads to a namespace that IPv6 is switched off in, where IPv6 was asked for.
    pub(super) fn lacks_ipv6(&self) -> bool {
        matches!(&self.device, PortDevice::Tap(tap) if tap.lacks_ipv6)
    }
}

/// Takes over the descriptor of `--netns-type=tapfd`. To be called before anything is opened.
pub(super) fn take_tap(target: &args::Target) -> Option<OwnedFd> {
    match target {
        args::Target::TapFd(number) => inherited_fd::take(*number).ok(),
        _ => None,
    }
}

/// Listens at `path` until one machine connects, which is all that ever does. `None` if the caller
/// went first.
fn wait_for_machine(path: &Path, exit: &ExitFd) -> anyhow::Result<Option<OwnedFd>> {
    let shown = path.display();
    if path.as_os_str().len() > unix::MAX_PATH {
        let limit = unix::MAX_PATH + 1;
        bail!("the specified BESS socket path is too long (>= {limit})");
    }
    // Whatever is there as a socket is of a run before this one, as slirp4netns sees it.
    if fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        fs::remove_file(path).with_context(|| format!("cannot remove the old socket {shown}"))?;
    }
    let listening = || -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 1)?;
        Ok(socket)
    };
    let listener = listening().with_context(|| format!("cannot listen at {shown}"))?;
    crate::program::write_err(&format!("Waiting for connection to {shown}\n"));
    let waited = exit.allows_waiting_for(&listener);
    // No second machine is to connect.
    let _ = fs::remove_file(path);
    if !waited.context("cannot wait for the machine")? {
        return Ok(None);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let machine = accept_with(&listener, flags).context("cannot accept the machine")?;
    Ok(Some(machine))
}
