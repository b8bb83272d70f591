//! Where virtual machines meet the network: Unix sockets that QEMU connects to.
//!
//! # Theory of operation
//!
//! A VM is plugged in while its QEMU runs, and its place on the network outlives that: an
//! [`Endpoint`] makes the socket once and then waits for one QEMU after the other, each of which
//! is a device for a port ([`PortDevice`]). Two kinds, as QEMU has them:
//!
//! - `stream:PATH`: we listen at PATH, QEMU connects:
//!   `-netdev stream,id=n,server=off,addr.type=unix,addr.path=PATH`. One QEMU at a time; the
//!   next waits until the port of the one before has ended.
//! - `dgram:LOCAL:REMOTE`: we are at LOCAL, QEMU at REMOTE:
//!   `-netdev dgram,id=n,local.type=unix,local.path=REMOTE,remote.type=unix,remote.path=LOCAL`.
//!   Being connected to REMOTE, our socket takes datagrams from there alone (unix(7)).
//!
//! # Invariants
//!
//! Sockets have mode 0600: only the same user and root plug VMs in. One that another process left
//! behind is taken away, one that a process serves is not, nor any other file. Ours go with the
//! endpoint.
//!
//! # Limits
//!
//! Whether a datagram QEMU is there is looked for twice a second.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use cnet_tap::unix;
use rustix::net::{SocketAddrUnix, SocketType, connect};

use cnet::vm::VmAddress;
use cnet_dataplane::PortDevice;

/// QEMUs that may wait for the one before them to end.
const BACKLOG: i32 = 4;

/// How long to wait before looking again for QEMU's datagram socket.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What tells one file at a path from the next: device, inode, and the time of its making, as
/// inodes are used again.
pub type SocketIdentity = (u64, u64, i64, i64);

/// Who makes, looks at and removes Unix sockets: the process itself, or one outside its sandbox.
pub trait Sockets: std::fmt::Debug + Send + Sync {
    /// Listens at `path`.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if a process serves that path, or it is another file's; what the system says.
    fn listen(&self, path: &Path) -> io::Result<OwnedFd>;

    /// A datagram socket at `local` that is connected to the one at `remote`, and which one that is.
    ///
    /// # Errors
    ///
    /// `NotFound` and `ConnectionRefused` when `remote` is not served; as [`Sockets::listen`].
    fn meet(&self, local: &Path, remote: &Path) -> io::Result<(OwnedFd, Option<SocketIdentity>)>;

    /// Which datagram socket is at `path`.
    ///
    /// # Errors
    ///
    /// When it is not served.
    fn served(&self, path: &Path) -> io::Result<SocketIdentity>;

    /// Removes a socket that was made by the same.
    fn remove(&self, path: &Path);
}

/// The network's end of it, until it is dropped.
#[derive(Debug)]
pub struct Endpoint {
    address: VmAddress,
    sockets: Box<dyn Sockets>,
    listener: Option<tokio::net::UnixListener>,
    /// Our socket's path is there, and was made by us.
    made: bool,
    /// QEMU's datagram socket, as it was met.
    met: Option<SocketIdentity>,
}

impl Endpoint {
    /// Makes the socket. To be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another process serves that path, and what the file system says.
    pub fn open(address: VmAddress, sockets: Box<dyn Sockets>) -> io::Result<Endpoint> {
        let listener = match &address {
            VmAddress::Stream(path) => {
                let socket = sockets.listen(path)?;
                Some(tokio::net::UnixListener::from_std(socket.into())?)
            }
            // Made anew for each QEMU.
            VmAddress::Datagram { .. } => None,
        };
        Ok(Endpoint {
            made: listener.is_some(),
            address,
            sockets,
            listener,
            met: None,
        })
    }

    /// Waits for the next QEMU. Nothing is lost if the wait is given up.
    ///
    /// # Errors
    ///
    /// What the system says; another call may succeed.
    pub async fn next(&mut self) -> io::Result<PortDevice> {
        match (&self.address, &self.listener) {
            (VmAddress::Datagram { local, remote }, _) => loop {
                match self.sockets.meet(local, remote) {
                    Ok((socket, there)) => {
                        (self.made, self.met) = (true, there);
                        return Ok(PortDevice::Datagram(socket));
                    }
                    Err(error) if is_absent(&error) => tokio::time::sleep(LOOK_INTERVAL).await,
                    Err(error) => return Err(error),
                }
            },
            (VmAddress::Stream(_), Some(listener)) => {
                let (stream, _) = listener.accept().await?;
                Ok(PortDevice::Stream(stream.into_std()?.into()))
            }
            (VmAddress::Stream(_), None) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Waits until the datagram QEMU that was met last is no longer there: a socket does not tell
    /// that its peer is gone before something is sent to it, and the next QEMU could send nothing
    /// to one that is still connected to the QEMU before. Of a stream the port's end tells.
    pub async fn departed(&self) {
        let VmAddress::Datagram { remote, .. } = &self.address else {
            return std::future::pending().await;
        };
        while self.met.is_some() && self.sockets.served(remote).ok() == self.met {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let (VmAddress::Stream(ours) | VmAddress::Datagram { local: ours, .. }) = &self.address;
        if self.made {
            self.sockets.remove(ours);
        }
    }
}

/// Listens at `path`.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    clear(path, || UnixStream::connect(path).map(drop))?;
    Ok(unix::listen_private(path, BACKLOG)?)
}

/// The datagram socket at `path`, if a process serves it.
pub(crate) fn served(path: &Path) -> io::Result<SocketIdentity> {
    UnixDatagram::unbound()?.connect(path)?;
    identity(path)
}

/// A socket at `local` that is connected to the one at `remote`, and what there was at `remote`. That
/// is looked at first: if it is another one by then, it counts as departed.
pub(crate) fn meet(local: &Path, remote: &Path) -> io::Result<(OwnedFd, Option<SocketIdentity>)> {
    let found = identity(remote).ok();
    // Asked first, so that our socket is there only once it is of use.
    let there = |path: &Path| UnixDatagram::unbound()?.connect(path);
    there(remote)?;
    clear(local, || there(local))?;
    let socket = unix::bind_private(SocketType::DGRAM, local)?;
    connect(&socket, &SocketAddrUnix::new(remote)?)?;
    Ok((socket, found))
}

fn identity(path: &Path) -> io::Result<SocketIdentity> {
    let file = std::fs::metadata(path)?;
    Ok((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

/// Takes away a socket at `path` that no process serves, as `probe` finds out.
fn clear(path: &Path, probe: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    match probe() {
        Err(error) if found.file_type().is_socket() && is_absent(&error) => {
            std::fs::remove_file(path)
        }
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    #[derive(Debug)]
    struct Here;

    impl Sockets for Here {
        fn listen(&self, path: &Path) -> io::Result<OwnedFd> {
            listen(path)
        }

        fn meet(
            &self,
            local: &Path,
            remote: &Path,
        ) -> io::Result<(OwnedFd, Option<SocketIdentity>)> {
            meet(local, remote)
        }

        fn served(&self, path: &Path) -> io::Result<SocketIdentity> {
            served(path)
        }

        fn remove(&self, path: &Path) {
            let _ = std::fs::remove_file(path);
        }
    }

    #[tokio::test]
    async fn stream_machines_come_one_after_the_other() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("vm.sock");
        // Left behind by a process that is gone.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let at = VmAddress::Stream(path.clone());
        let mut endpoint = Endpoint::open(at.clone(), Box::new(Here)).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let taken = Endpoint::open(at.clone(), Box::new(Here)).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        // That was the other endpoint, which looked whether we are there.
        endpoint.next().await.unwrap();
        for _ in 0..2 {
            let machine = UnixStream::connect(&path).unwrap();
            let device = endpoint.next().await.unwrap();
            assert!(matches!(device, PortDevice::Stream(_)));
            drop(machine);
        }
        drop(endpoint);
        assert!(!path.exists());
        std::fs::write(&path, "a user's file").unwrap();
        assert!(Endpoint::open(at, Box::new(Here)).is_err());
        assert!(path.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn datagram_machines_are_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let [local, remote] = ["ours", "theirs"].map(|name| place.path().join(name));
        let mut endpoint = Endpoint::open(
            VmAddress::Datagram {
                local: local.clone(),
                remote: remote.clone(),
            },
            Box::new(Here),
        )
        .unwrap();
        for _ in 0..2 {
            let early = tokio::time::timeout(4 * LOOK_INTERVAL, endpoint.next()).await;
            assert!(early.is_err() && !local.exists());
            let machine = UnixDatagram::bind(&remote).unwrap();
            let Ok(PortDevice::Datagram(device)) = endpoint.next().await else {
                panic!("another device");
            };
            machine.send_to(b"from the machine", &local).unwrap();
            // No other socket may send there.
            let other = UnixDatagram::unbound().unwrap();
            let refused = other.send_to(b"from another", &local).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            let device = UnixDatagram::from(device);
            let mut buf = [0; 100];
            let length = device.recv(&mut buf).unwrap();
            assert_eq!(&buf[..length], b"from the machine");
            device.send(b"to the machine").unwrap();
            assert_eq!(machine.recv(&mut buf).unwrap(), 14);
            let departed = tokio::time::timeout(4 * LOOK_INTERVAL, endpoint.departed()).await;
            assert!(departed.is_err(), "it is there");
            std::fs::remove_file(&remote).unwrap();
            drop((machine, device));
            let next = UnixDatagram::bind(&remote).unwrap();
            endpoint.departed().await;
            drop(next);
            endpoint.departed().await;
            std::fs::remove_file(&remote).unwrap();
            std::fs::remove_file(&local).unwrap();
        }
        std::fs::write(&local, "a user's file").unwrap();
        let machine = UnixDatagram::bind(&remote).unwrap();
        let error = endpoint.next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(machine);
    }
}
