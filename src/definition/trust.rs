//! Which user namespaces beside the server's own are let in at the control socket: written by `cnet
//! trust --netns PATH`, read by those who judge a client (`netd/src/peer.rs`) and by clients themselves.
//!
//! # Theory of operation
//!
//! A container engine without privileges runs its set-up in a user namespace, which its containers may be
//! in as well. What tells the two apart is the network namespace: the engine's own, or the host's. So an
//! admission names a network namespace, by a path, and admits processes in that one and in the user
//! namespace that owns it.
//!
//! # Invariants
//!
//! - The kernel gives the number of a namespace that is gone to the next one. So an admission counts for
//!   as long as its path leads to the same network namespace with the same owner, and, below
//!   `/proc/PID`, the process is the same.
//!
//! # Limits
//!
//! The file belongs to the user. A program that may write the user's files can admit itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cnet_tap::TapError;
use cnet_tap::namespace::{Identity, Surroundings};
use cnet_tap::watch::{process_of, start_time};
use serde::{Deserialize, Serialize};

use super::file;

/// Bytes that the file may have: those of some thousand admissions.
const MAX_FILE: u64 = 1 << 20;

/// An admission.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Admission {
    /// Where the network namespace is.
    pub path: PathBuf,
    /// The network namespace.
    pub net: Identity,
    /// The user namespace that owns it.
    pub user: Identity,
    /// When the process of the path started, in clock ticks after the boot, if it speaks of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
}

impl Admission {
    /// Of the network namespace at `path`.
    ///
    /// # Errors
    ///
    /// [`TapError`] if there is none, or its owner is out of reach.
    pub fn of(path: &Path) -> Result<Admission, TapError> {
        // The start time first: what is found after it is not of a process before that one.
        let start_time = process_of(path).and_then(start_time);
        let Surroundings { net, user } = Surroundings::of_net_at(path)?;
        Ok(Admission {
            path: path.to_owned(),
            net,
            user,
            start_time,
        })
    }

    /// Whether its path still leads to what was admitted.
    pub fn holds(&self) -> bool {
        Admission::of(&self.path).is_ok_and(|found| found == *self)
    }

    /// Whether it admits a process that is in `peer`; `host` is where the server is.
    pub fn admits(&self, peer: &Surroundings, host: &Surroundings) -> bool {
        let user = peer.user == self.user;
        user && (peer.net == self.net || peer.net == host.net)
    }
}

/// Why the admissions cannot be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// There is no network namespace that could be admitted.
    #[error(transparent)]
    Namespace(#[from] TapError),
    /// The path has to be found again by others.
    #[error("the path of a network namespace starts with a slash, and {} does not", .0.display())]
    Relative(PathBuf),
    /// It was not admitted.
    #[error("{} is not trusted; `cnet trust` lists what is", .0.display())]
    Unknown(PathBuf),
    /// The file system says so.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The admissions of one user.
#[derive(Clone, Debug)]
pub struct Trusted {
    directory: PathBuf,
}

impl Trusted {
    /// Those in a runtime directory.
    pub fn at(runtime: &Path) -> Trusted {
        Trusted {
            directory: runtime.to_owned(),
        }
    }

    /// No network can have this name.
    fn path(&self) -> PathBuf {
        self.directory.join(".trusted.json")
    }

    /// All that were written, those too that hold no more; none if the file cannot be read.
    pub fn list(&self) -> Vec<Admission> {
        let text = file::read_trusted_text(&self.path(), MAX_FILE);
        let read = |text: String| serde_json::from_str(&text).ok();
        text.ok().and_then(read).unwrap_or_default()
    }

    /// Whether a process that is in `peer` is admitted by a server in `host`.
    pub fn admits(&self, peer: &Surroundings, host: &Surroundings) -> bool {
        let admits = |one: &Admission| one.admits(peer, host) && one.holds();
        self.list().iter().any(admits)
    }

    /// Admits processes in the network namespace at `path`, and forgets what holds no more.
    ///
    /// # Errors
    ///
    /// See [`TrustError`].
    pub fn admit(&self, path: &Path) -> Result<Admission, TrustError> {
        if !path.is_absolute() {
            return Err(TrustError::Relative(path.to_owned()));
        }
        let new = Admission::of(path)?;
        self.change(|all| {
            all.retain(|old| old.path != path && old.holds());
            all.push(new.clone());
            Ok(())
        })?;
        Ok(new)
    }

    /// Takes back what was admitted by that path.
    ///
    /// # Errors
    ///
    /// See [`TrustError`].
    pub fn revoke(&self, path: &Path) -> Result<(), TrustError> {
        self.change(|all| {
            let before = all.len();
            all.retain(|old| old.path != path);
            match all.len() < before {
                true => Ok(()),
                false => Err(TrustError::Unknown(path.to_owned())),
            }
        })
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Vec<Admission>) -> Result<(), TrustError>,
    ) -> Result<(), TrustError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| TrustError::File { path, source }
        };
        file::make_own_directory(&self.directory).map_err(failed(&self.directory))?;
        let _lock = file::DirectoryLock::at(&self.directory).map_err(failed(&self.directory))?;
        let mut all = self.list();
        change(&mut all)?;
        let path = self.path();
        if all.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
                _ => Ok(()),
            };
        }
        let text = serde_json::to_vec_pretty(&all).map_err(io::Error::from);
        text.and_then(|text| file::replace(&path, &text))
            .map_err(failed(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admission_is_written_listed_and_revoked() {
        let place = tempfile::tempdir().unwrap();
        let trusted = Trusted::at(&place.path().join("cnet"));
        assert!(trusted.list().is_empty());
        let own = format!("/proc/{}/ns/net", std::process::id());
        let own = Path::new(&own);
        let admitted = trusted.admit(own).unwrap();
        trusted.admit(own).unwrap();
        assert_eq!(trusted.list(), std::slice::from_ref(&admitted));
        let here = Surroundings::of("self").unwrap();
        assert!(trusted.admits(&here, &here));
        let elsewhere = Surroundings {
            net: (here.net.0, here.net.1 + 1),
            ..here
        };
        assert!(!trusted.admits(&elsewhere, &here), "another network");
        assert!(admitted.admits(&here, &elsewhere), "the engine's own");
        trusted.revoke(own).unwrap();
        assert!(trusted.list().is_empty());
        let error = trusted.revoke(own).unwrap_err().to_string();
        assert!(error.contains("is not trusted"), "{error}");
    }

    #[test]
    fn an_admission_ends_with_what_it_names() {
        let own = format!("/proc/{}/ns/net", std::process::id());
        let admission = Admission::of(Path::new(&own)).unwrap();
        assert!(admission.holds());
        let time = admission.start_time.map(|time| time + 1);
        for gone in [
            Admission {
                start_time: time,
                ..admission.clone()
            },
            Admission {
                path: "/proc/self/ns/mnt".into(),
                ..admission.clone()
            },
            Admission {
                net: (admission.net.0, 1),
                ..admission.clone()
            },
            Admission {
                user: (admission.user.0, 1),
                ..admission
            },
        ] {
            assert!(!gone.holds(), "{gone:?}");
        }
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let trusted = Trusted::at(place.path());
        for path in [
            "ns/net",
            "/proc/self/ns/user",
            "/no/such/path",
            "/etc/passwd",
        ] {
            assert!(trusted.admit(Path::new(path)).is_err(), "{path}");
        }
        assert!(trusted.list().is_empty());
    }
}
