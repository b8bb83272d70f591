//! Where networks are kept: what a person decided, what is remembered, and what runs.
//!
//! The XDG base directories where they are set, those of the system for root, and those of the
//! specification for others. A relative path in a variable counts as none, as the specification
//! has it.
//!
//! Source: XDG Base Directory Specification 0.8.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::file;

/// The name of our part of each directory.
const OWN: &str = "cnet";

/// Where systemd makes a directory for each user that is logged in.
const RUN_USER: &str = "/run/user";

/// Why there is no place for networks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoriesError {
    /// Neither a home nor the variable that says where.
    #[error("cannot tell where to keep networks: set HOME or {0}")]
    NoHome(String),
    /// No runtime directory.
    #[error(
        "there is no runtime directory: XDG_RUNTIME_DIR is not set, and {} is not a directory \
         of user {uid}. Log in with a session (`loginctl enable-linger` keeps one), or set \
         XDG_RUNTIME_DIR to a directory that only you can enter",
        .path.display()
    )]
    NoRuntime {
        /// The directory that systemd would have made.
        path: PathBuf,
        /// The user.
        uid: u32,
    },
}

/// The directories of one user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directories {
    /// Definitions; they stay until they are removed.
    pub config: PathBuf,
    /// Which container had which address.
    pub state: PathBuf,
    /// Sockets and what runs; gone after a reboot.
    pub runtime: PathBuf,
}

impl Directories {
    /// Those of the user this process runs as.
    ///
    /// # Errors
    ///
    /// When there is no place for the runtime directory, or no home.
    pub fn of_this_user() -> Result<Directories, DirectoriesError> {
        let uid = rustix::process::geteuid().as_raw();
        Directories::of(uid, |name| env::var_os(name), Path::new(RUN_USER))
    }

    fn of(
        uid: u32,
        variable: impl Fn(&str) -> Option<OsString>,
        run_user: &Path,
    ) -> Result<Directories, DirectoriesError> {
        let set = |name: &str| {
            let path = PathBuf::from(variable(name)?);
            path.is_absolute().then(|| path.join(OWN))
        };
        let chosen = |name: &str, of_root: &str, in_home: &str| {
            if let Some(path) = set(name) {
                return Ok(path);
            }
            if uid == 0 {
                return Ok(Path::new(of_root).join(OWN));
            }
            let home = variable("HOME").map(PathBuf::from);
            let home = home.filter(|home| home.is_absolute());
            let home = home.ok_or_else(|| DirectoriesError::NoHome(name.to_owned()))?;
            Ok(home.join(in_home).join(OWN))
        };
        let runtime = match set("XDG_RUNTIME_DIR") {
            Some(path) => path,
            None if uid == 0 => Path::new("/run").join(OWN),
            None => own_runtime(uid, run_user)?,
        };
        Ok(Directories {
            config: chosen("XDG_CONFIG_HOME", "/etc", ".config")?,
            state: chosen("XDG_STATE_HOME", "/var/lib", ".local/state")?,
            runtime,
        })
    }

    /// The directory of all definitions.
    pub fn networks(&self) -> PathBuf {
        self.config.join("networks")
    }

    /// The definition of a network.
    pub fn definition(&self, network: &str) -> PathBuf {
        self.networks().join(format!("{network}.toml"))
    }

    /// The directory of a network that runs.
    pub fn network_runtime(&self, network: &str) -> PathBuf {
        self.runtime.join(network)
    }

    /// Makes that directory, with mode 0700, and makes sure that it and the one above are this
    /// user's alone: a user who could exchange what is in them would be handed containers'
    /// namespaces.
    ///
    /// # Errors
    ///
    /// The directory that cannot be used, and why.
    pub fn make_network_runtime(&self, network: &str) -> Result<PathBuf, (PathBuf, io::Error)> {
        let path = self.network_runtime(network);
        for directory in [&self.runtime, &path] {
            file::make_own_directory(directory).map_err(|error| (directory.clone(), error))?;
        }
        Ok(path)
    }

    /// The control socket of a network.
    pub fn socket(&self, network: &str) -> PathBuf {
        self.network_runtime(network).join("api.sock")
    }

    /// What a network's process must find again after a crash.
    pub fn state_file(&self, network: &str) -> PathBuf {
        self.network_runtime(network).join("state.json")
    }

    /// Which container had which address on a network.
    pub fn leases(&self, network: &str) -> PathBuf {
        self.state.join(network).join("leases.toml")
    }
}

/// `/run/user/UID`, if it is that user's own. A directory in `/tmp` would not do: any user
/// could have made it first.
fn own_runtime(uid: u32, run_user: &Path) -> Result<PathBuf, DirectoriesError> {
    let path = run_user.join(uid.to_string());
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() && found.uid() == uid => Ok(path.join(OWN)),
        _ => Err(DirectoriesError::NoRuntime { path, uid }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        uid: u32,
        set: &[(&str, &str)],
        run_user: &Path,
    ) -> Result<Directories, DirectoriesError> {
        let variable = |name: &str| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Directories::of(uid, variable, run_user)
    }

    #[test]
    fn variables_come_first() {
        let set = [
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        for uid in [0, 1000] {
            let found = of(uid, &set, Path::new("/none")).unwrap();
            assert_eq!(found.definition("n"), Path::new("/c/cnet/networks/n.toml"));
            assert_eq!(found.leases("n"), Path::new("/s/cnet/n/leases.toml"));
            assert_eq!(found.socket("n"), Path::new("/r/cnet/n/api.sock"));
            assert_eq!(found.state_file("n"), Path::new("/r/cnet/n/state.json"));
        }
    }

    #[test]
    fn root_uses_the_systems_and_others_their_own() {
        let root = of(
            0,
            &[("HOME", "/root"), ("XDG_STATE_HOME", "relative")],
            Path::new("/none"),
        );
        let root = root.unwrap();
        assert_eq!(root.config, Path::new("/etc/cnet"));
        assert_eq!(root.state, Path::new("/var/lib/cnet"));
        assert_eq!(root.runtime, Path::new("/run/cnet"));

        let run_user = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let someone = uid.max(1);
        let home = [("HOME", "/home/x")];
        let error = of(someone, &home, run_user.path()).unwrap_err().to_string();
        assert!(error.contains("XDG_RUNTIME_DIR is not set"), "{error}");
        let own = run_user.path().join(someone.to_string());
        fs::create_dir(&own).unwrap();
        if someone == uid {
            let found = of(someone, &home, run_user.path()).unwrap();
            assert_eq!(found.runtime, own.join("cnet"));
            assert_eq!(found.config, Path::new("/home/x/.config/cnet"));
            assert_eq!(found.state, Path::new("/home/x/.local/state/cnet"));
        } else {
            // Made by root, so it is not that user's.
            assert!(of(someone, &home, run_user.path()).is_err());
        }
        let set = [("XDG_RUNTIME_DIR", "/r")];
        let error = of(1000, &set, Path::new("/none")).unwrap_err().to_string();
        assert!(error.contains("set HOME or XDG_CONFIG_HOME"), "{error}");
    }
}
