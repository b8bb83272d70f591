//! Whose network it is: pinned once, then watched for its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cnet_netd::outside::Host;
use cnet_tap::watch::{self, PathWatch};
use cnet_tap::{Namespaces, TapError};
use tokio::io::Interest;

use cnet_tap::async_fd::AsyncOwnedFd;

/// What is watched.
#[derive(Debug)]
pub(crate) enum Target {
    Process(OwnedFd),
    Path(PathWatch),
}

impl Target {
    /// Pins the network namespace at `path`, and what tells of its end.
    ///
    /// # Errors
    ///
    /// When there is no such namespace, or no right to enter it.
    pub(crate) fn pin_path(
        path: &Path,
        userns: Option<&Path>,
    ) -> anyhow::Result<(Target, Namespaces)> {
        check_userns(userns)?;
        path.metadata()
            .with_context(|| format!("existing path expected, not {}", path.display()))?;
        // Files of /proc send no events: such a path is watched by its process.
        let target = match watch::process_of(path) {
            Some(pid) => Target::Process(watch::pidfd(pid)?),
            None => Target::Path(PathWatch::new(path)?),
        };
        let namespaces = Namespaces::from_paths(path, userns)?;
        target
            .still_there()
            .with_context(|| path.display().to_string())?;
        Ok((target, namespaces))
    }

    /// Pins the network namespace of a process, and what tells of its end. Without `userns`, the
    /// process's user namespace is entered as well.
    ///
    /// # Errors
    ///
    /// When there is no such process, or no right to enter its namespaces.
    pub(crate) fn pin_process(
        pid: i32,
        userns: Option<&Path>,
    ) -> anyhow::Result<(Target, Namespaces)> {
        check_userns(userns)?;
        // The pidfd first: if the process is still there afterwards, both are of the same one.
        let target = Target::Process(watch::pidfd(pid)?);
        let namespaces = match userns {
            None => Namespaces::of_process(pid)?,
            Some(_) => {
                let net = PathBuf::from(format!("/proc/{pid}/ns/net"));
                Namespaces::from_paths(&net, userns)?
            }
        };
        target
            .still_there()
            .with_context(|| format!("process {pid}"))?;
        Ok((target, namespaces))
    }

    fn still_there(&self) -> anyhow::Result<()> {
        if self.is_gone()? {
            bail!("it is gone already");
        }
        Ok(())
    }

    fn is_gone(&self) -> Result<bool, TapError> {
        match self {
            Target::Process(pidfd) => watch::has_ended(pidfd),
            Target::Path(path) => Ok(path.is_gone()),
        }
    }

    /// The path whose end is watched for.
    pub(crate) fn watched(&self) -> Option<PathBuf> {
        match self {
            Target::Process(_) => None,
            Target::Path(path) => Some(path.path().to_owned()),
        }
    }

    /// As [`Target::is_gone`], from within the sandbox.
    fn is_gone_from(&self, host: &Host) -> anyhow::Result<bool> {
        match self {
            Target::Process(pidfd) => Ok(watch::has_ended(pidfd)?),
            Target::Path(path) => {
                path.take_events();
                Ok(host.watched()? != Some(path.identity()))
            }
        }
    }

    /// Waits until the target is gone. `host` sees what is at its path.
    ///
    /// # Errors
    ///
    /// When it cannot be watched.
    pub(crate) fn watch(self, host: Host) -> anyhow::Result<impl Future<Output = ()>> {
        let fd = self.as_fd().try_clone_to_owned();
        let fd = fd.and_then(|fd| AsyncOwnedFd::new(fd, Interest::READABLE));
        let fd = fd.context("cannot watch the target")?;
        Ok(async move {
            loop {
                let Ok(mut ready) = fd.ready().await else {
                    return;
                };
                // Cleared before looking: what happens from here on fires again.
                ready.clear_ready();
                match self.is_gone_from(&host) {
                    Ok(false) => {}
                    Ok(true) => return,
                    Err(error) => {
                        tracing::warn!(%error, "cannot look after the target");
                        return;
                    }
                }
            }
        })
    }
}

fn check_userns(userns: Option<&Path>) -> anyhow::Result<()> {
    match userns {
        Some(path) if !path.exists() => {
            bail!("userns path doesn't exist: {}", path.display())
        }
        _ => Ok(()),
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Target::Process(pidfd) => pidfd.as_fd(),
            Target::Path(path) => path.as_fd(),
        }
    }
}
