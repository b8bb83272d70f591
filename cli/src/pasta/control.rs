//! The socket by which `pesto` changes the ports (`--conf-path`).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cnet_netd::outside::{Host, Identity};
use cnet_tap::unix;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::forwards::Forwards;
use super::wire;

/// Clients that may wait.
const BACKLOG: i32 = 16;
/// How long a client may take to say what it wants.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest message: two full tables.
const MAX_MESSAGE: u64 = 2 * 1024 * 1024;
/// Wait before accepting again at a limit of descriptors.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(250);

/// The socket, bound; it goes with this.
pub(super) struct ControlSocket {
    listener: UnixListener,
    identity: Identity,
    host: Host,
}

impl ControlSocket {
    /// Binds the socket, in the place of one that is left over. To be called before the sandbox is
    /// entered, and on the event loop.
    ///
    /// # Errors
    ///
    /// What bind(2) says.
    pub(super) fn bind(path: &Path, host: Host) -> anyhow::Result<ControlSocket> {
        let bound = || -> io::Result<(OwnedFd, Identity)> {
            remove_left_over(path)?;
            let socket = unix::listen_private(path, BACKLOG)?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            let file = path.symlink_metadata()?;
            Ok((socket, (file.dev(), file.ino())))
        };
        let (socket, identity) =
            bound().with_context(|| format!("cannot listen at {}", path.display()))?;
        let listener = UnixListener::from_std(socket.into());
        Ok(ControlSocket {
            listener: listener.context("cannot wait for clients")?,
            identity,
            host,
        })
    }

    /// Serves one client after the other.
    pub(super) async fn serve(&self, forwards: Arc<Mutex<Forwards>>) {
        loop {
            let Ok((client, _)) = self.listener.accept().await else {
                tokio::time::sleep(ACCEPT_INTERVAL).await;
                continue;
            };
            match timeout(CLIENT_TIMEOUT, serve(client, &forwards)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(%error, "a client of the control socket is gone"),
                Err(_) => tracing::info!("a client of the control socket says nothing"),
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.host.remove_api_socket(self.identity);
    }
}

/// The path that the host's helper removes the socket at.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).context("cannot use the control socket's path")
}

/// A socket that no program serves any more.
fn remove_left_over(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;

    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|file| file.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

async fn serve(mut client: UnixStream, forwards: &Mutex<Forwards>) -> io::Result<()> {
    let greeting = wire::greeting(&forwards.lock().await.tables());
    client.write_all(&greeting).await?;
    let (reader, mut writer) = client.split();
    let mut said = Vec::new();
    reader.take(MAX_MESSAGE).read_to_end(&mut said).await?;
    let Some(tables) = wire::read_change(&mut said.as_slice())? else {
        return Ok(());
    };
    let results = forwards.lock().await.change(tables).await;
    writer.write_all(&wire::answer(&results)).await
}
