//! Which program of the host has a port that was to be published.
//!
//! The kernel tells of a socket's owner and inode ([`Diagnostics`]); a process that has the inode among
//! its descriptors is the program. Of other users' processes those cannot be read: then the user is all
//! that is known.
//!
//! # Limits
//!
//! A TCP socket that is bound and does not listen is told since Linux 6.8 alone. A program in another
//! PID namespace has no number here.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use cnet_tap::socket::{BoundSocket, Diagnostics};
use cnet_wire::Protocol;

/// Says who has `at` on this host, or an address and port that it would clash with, such as `` `nginx`
/// (process 123) `` or `a program of the user 0`; `None` if that cannot be found out.
pub fn holder(protocol: Protocol, at: SocketAddr) -> Option<String> {
    let diagnostics = Diagnostics::open().ok()?;
    let sockets = match protocol {
        Protocol::Tcp => diagnostics.tcp_holders(),
        Protocol::Udp => diagnostics.udp_holders(),
    };
    // An inode of 0 is that of a socket that no program has open.
    let is_it = |socket: &BoundSocket| socket.inode != 0 && clashes(socket, at);
    let socket = sockets.ok()?.into_iter().find(is_it)?;
    let program = program_of(Path::new("/proc"), socket.inode);
    Some(program.unwrap_or_else(|| format!("a program of the user {}", socket.uid)))
}

fn clashes(socket: &BoundSocket, at: SocketAddr) -> bool {
    let covers = socket.takes(at.ip());
    let is_all = at.ip().is_unspecified();
    socket.at.port() == at.port() && (covers || is_all)
}

/// The name and number of a process that has the socket open.
fn program_of(proc: &Path, inode: u32) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let has_it = |process: &Path| {
        let open = fs::read_dir(process.join("fd")).into_iter().flatten();
        open.flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == &*wanted))
    };
    let processes = fs::read_dir(proc).ok()?.flatten();
    let mut numbered = processes.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, entry.path()))
    });
    let (number, path) = numbered.find(|(_, path)| has_it(path))?;
    let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
    Some(format!("`{}` (process {number})", name.trim_end()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn this_program_is_found_by_its_sockets() {
        let own = format!("(process {})", std::process::id());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::]:0").unwrap();
        let (tcp_at, udp_at) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        let found = |protocol, at| holder(protocol, at).unwrap_or_default();
        assert!(found(Protocol::Tcp, tcp_at).ends_with(&own));
        let all = SocketAddr::new([0, 0, 0, 0].into(), tcp_at.port());
        assert!(found(Protocol::Tcp, all).ends_with(&own));
        let v4 = SocketAddr::new([127, 0, 0, 1].into(), udp_at.port());
        assert!(found(Protocol::Udp, v4).ends_with(&own));
        let elsewhere = SocketAddr::new([127, 0, 0, 2].into(), tcp_at.port());
        assert_eq!(holder(Protocol::Tcp, elsewhere), None);
    }

    #[test]
    fn a_process_that_cannot_be_read_is_passed_over() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("1")).unwrap();
        assert_eq!(program_of(proc.path(), 7), None);
    }
}
