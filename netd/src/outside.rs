//! What a process in the sandbox asks of the host: a fixed set of requests, and who answers them.
//!
//! # Theory of operation
//!
//! A sandboxed process sees none of the host's files. What it has to know of them while it runs it
//! asks of a helper process outside ([`cnet_tap::helper::outside`]), or, without a sandbox, of
//! itself: both ways lead through [`HostFiles::answer`].
//!
//! # Invariants
//!
//! - No request names a path: which files there are is said before the sandbox is entered. Code
//!   that breaks into the process learns what is in `resolv.conf` and nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cnet_tap::TapError;
use cnet_tap::helper::outside::{Outside, Reach};
use serde::{Deserialize, Serialize};

use crate::dns::resolv_conf;

/// Device and inode of a file.
pub type Identity = (u64, u64);

/// What may be asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Request {
    /// What `resolv.conf` says.
    ResolvConf,
    /// What is at the watched path.
    Watched,
    /// The API socket of this identity is to be removed.
    RemoveSocket(Identity),
}

/// The answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Answer {
    Text(String),
    Identity(Option<Identity>),
    Done,
    Failed(String),
}

/// The files of the host that a process has to do with while it runs.
#[derive(Clone, Debug, Default)]
pub struct HostFiles {
    /// A path whose end is watched for.
    pub watched: Option<PathBuf>,
    /// A Unix socket that this process has made, and removes at its end.
    pub socket: Option<PathBuf>,
}

impl HostFiles {
    fn answer(&self, request: &Request) -> Answer {
        match request {
            Request::ResolvConf => match resolv_conf::read_text(resolv_conf::PATH.as_ref()) {
                Ok(text) => Answer::Text(text),
                Err(error) => Answer::Failed(error.to_string()),
            },
            Request::Watched => {
                let found = self.watched.as_ref().map(fs::metadata);
                let found = found.and_then(Result::ok);
                Answer::Identity(found.map(|found| (found.dev(), found.ino())))
            }
            Request::RemoveSocket(identity) => {
                if let Some(path) = &self.socket {
                    remove_if(path, *identity);
                }
                Answer::Done
            }
        }
    }
}

/// Removes the file at `path` if it is that one.
fn remove_if(path: &Path, identity: Identity) {
    let found = fs::symlink_metadata(path);
    if found.is_ok_and(|found| (found.dev(), found.ino()) == identity) {
        let _ = fs::remove_file(path);
    }
}

#[derive(Debug)]
enum Answers {
    Here(HostFiles),
    Helper(Outside),
}

/// The host, as a process in the sandbox sees it.
#[derive(Clone, Debug)]
pub struct Host(Arc<Answers>);

impl Host {
    /// For a process without a sandbox.
    pub fn here(files: HostFiles) -> Host {
        Host(Arc::new(Answers::Here(files)))
    }

    /// Forks the helper.
    ///
    /// # Errors
    ///
    /// As [`Outside::start`].
    pub fn outside(files: HostFiles) -> Result<Host, TapError> {
        let helper = Outside::start(Reach::Files, move |message| {
            let Some((_, request)) = message else {
                return (Vec::new(), Vec::new());
            };
            let answer = match serde_json::from_slice(request) {
                Ok(request) => files.answer(&request),
                Err(error) => Answer::Failed(error.to_string()),
            };
            // An answer has no way to fail.
            let bytes = serde_json::to_vec(&answer).unwrap_or_default();
            (Vec::new(), bytes)
        })?;
        Ok(Host(Arc::new(Answers::Helper(helper))))
    }

    /// The helper's descriptor, if there is one, which is to stay open.
    pub fn descriptor(&self) -> Option<i32> {
        match &*self.0 {
            Answers::Here(_) => None,
            Answers::Helper(helper) => Some(helper.descriptor()),
        }
    }

    /// The helper's PID, if there is one.
    pub fn helper(&self) -> Option<i32> {
        match &*self.0 {
            Answers::Here(_) => None,
            Answers::Helper(helper) => Some(helper.pid()),
        }
    }

    fn ask(&self, request: &Request) -> io::Result<Answer> {
        let answer = match &*self.0 {
            Answers::Here(files) => files.answer(request),
            Answers::Helper(helper) => {
                let (_, bytes) = helper.ask(&serde_json::to_vec(request)?, &[])?;
                serde_json::from_slice(&bytes)?
            }
        };
        match answer {
            Answer::Failed(text) => Err(io::Error::other(text)),
            answer => Ok(answer),
        }
    }

    /// What `resolv.conf` says.
    ///
    /// # Errors
    ///
    /// What open(2) or read(2) says, or that the helper is gone.
    pub fn resolv_conf(&self) -> io::Result<String> {
        match self.ask(&Request::ResolvConf)? {
            Answer::Text(text) => Ok(text),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// What is at the watched path, if anything; `Err` when that cannot be found out.
    ///
    /// # Errors
    ///
    /// That the helper is gone.
    pub fn watched(&self) -> io::Result<Option<Identity>> {
        match self.ask(&Request::Watched)? {
            Answer::Identity(identity) => Ok(identity),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Removes the API socket, if that is still the one.
    pub fn remove_socket(&self, identity: Identity) {
        if let Err(error) = self.ask(&Request::RemoveSocket(identity)) {
            tracing::warn!(%error, "the API socket stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_asks_itself_where_there_is_no_helper() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        fs::write(&path, "").unwrap();
        let host = Host::here(HostFiles {
            watched: Some(path.clone()),
            socket: Some(path.clone()),
        });
        let found = host.watched().unwrap().unwrap();
        host.remove_socket((found.0, found.1 + 1));
        assert!(path.exists(), "another file's identity");
        host.remove_socket(found);
        assert!(!path.exists());
        assert_eq!(host.watched().unwrap(), None);
        assert_eq!((host.descriptor(), host.helper()), (None, None));
    }
}
