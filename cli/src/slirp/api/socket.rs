//! The API's socket: its file, and a task for each connection.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use cnet_netd::outside::Host;
use cnet_tap::unix;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::{Api, Forwards};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Connections served at a time; further ones wait in the listen queue.
pub(in crate::slirp) const MAX_CONNECTIONS: usize = 32;

/// How long to wait after a failed accept(2), which most likely says that the descriptors are used up.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The listening socket, and its file, which goes with it.
pub(in crate::slirp) struct ApiSocket {
    listener: UnixListener,
    /// Device and inode, so that another file at the path is not removed at the end.
    identity: (u64, u64),
    /// Who removes it: its file is not in sight from the sandbox.
    host: Host,
}

impl ApiSocket {
    /// Binds at `path`. A socket that is already there is removed first. `host` removes ours.
    ///
    /// # Errors
    ///
    /// A path of 108 bytes or more, a file there that is no socket, or what bind(2) says.
    pub(in crate::slirp) fn bind(path: &Path, host: Host) -> anyhow::Result<ApiSocket> {
        if path.as_os_str().len() > unix::MAX_PATH {
            bail!(
                "the specified API socket path is too long (>= {})",
                unix::MAX_PATH + 1
            );
        }
        let shown = path.display();
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => {
                fs::remove_file(path)
                    .with_context(|| format!("cannot remove the old API socket {shown}"))?;
            }
            Ok(_) => bail!("cannot make the API socket {shown}: a file of that name exists"),
            Err(_) => {}
        }
        let bound = unix::listen_private(path, BACKLOG)
            .map_err(io::Error::from)
            .and_then(|socket| UnixListener::from_std(socket.into()));
        let listener = bound.with_context(|| format!("cannot make the API socket {shown}"))?;
        let file = fs::symlink_metadata(path)
            .with_context(|| format!("cannot look at the API socket {shown}"))?;
        Ok(ApiSocket {
            listener,
            identity: (file.dev(), file.ino()),
            host,
        })
    }

    /// Serves requests, for ever.
    pub(in crate::slirp) async fn serve<F: Forwards>(&self, api: Arc<Api<F>>) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let api = api.clone();
                    tokio::spawn(async move {
                        if let Err(error) = api.serve_one(stream).await {
                            tracing::debug!(%error, "an API client went away");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an API client");
                    tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                }
            }
        }
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        self.host.remove_api_socket(self.identity);
    }
}
