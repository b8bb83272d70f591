//! The packet socket on the host's LAN: opened here where this process may, or else by `cnet-uplink`, the
//! program that the administrator has given that right.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cnet_tap::device::raw::open_uplink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

use super::PeersError;

const PROGRAM: &str = "cnet-uplink";

/// Opens the LAN behind the interface `parent`.
pub(super) fn open(parent: &str) -> Result<OwnedFd, PeersError> {
    let failed = |why: String| PeersError::Lan {
        parent: parent.to_owned(),
        why,
    };
    match open_uplink(parent) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            by_program(parent).map_err(failed)
        }
        opened => opened.map_err(|error| failed(error.to_string())),
    }
}

/// Where the program is: beside this one, or else in PATH.
fn program() -> PathBuf {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.join(PROGRAM)));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| PROGRAM.into())
}

fn by_program(parent: &str) -> Result<OwnedFd, String> {
    let program = program();
    let uid = rustix::process::getuid().as_raw();
    let missing = |why: String| {
        format!(
            "{why}. It needs CAP_NET_RAW; as root: `setcap cap_net_raw+ep {}`, and in /etc/cnet/uplinks.toml:\n[[allow]]\nuid = {uid}\nparents = [\"{parent}\"]",
            program.display()
        )
    };
    let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
    let pair = socketpair(AddressFamily::UNIX, kind, flags, None);
    let (ours, theirs) = pair.map_err(|errno| io::Error::from(errno).to_string())?;
    let run = Command::new(&program)
        .arg(parent)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let ended = run.map_err(|error| missing(format!("{}: {error}", program.display())))?;
    if !ended.status.success() {
        let told = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        return Err(match told.contains("[[allow]]") {
            true => told,
            false => missing(told),
        });
    }
    let received = cnet_tap::unix::receive(&ours, &mut [0], 1, RecvFlags::DONTWAIT);
    let socket = received
        .ok()
        .and_then(|(_, sockets)| sockets.into_iter().next());
    socket.ok_or_else(|| format!("{PROGRAM} has handed over no socket"))
}
