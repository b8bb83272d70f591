//! Where networks are kept: what a person decided, what is remembered, and what runs.
//!
//! The XDG base directories where they are set, those of the system for root, and those of the
//! specification for others. A relative path in a variable counts as none, as the specification
//! has it. A user namespace has directories of its own: see `user_namespace.rs`.
//!
//! Source: XDG Base Directory Specification 0.8.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cnet_tap::namespace::Surroundings;

use super::file;
use super::trust::Trusted;
use super::user_namespace::User;

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

/// What the variables of the environment lead to, and where there is none of them.
struct Places<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    run_user: &'a Path,
}

impl Places<'_> {
    fn set(&self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from((self.variable)(name)?);
        path.is_absolute().then(|| path.join(OWN))
    }

    fn chosen(
        &self,
        user: &User,
        (name, of_root, in_home): (&str, &str, &str),
    ) -> Result<PathBuf, DirectoriesError> {
        if let Some(path) = self.set(name) {
            return Ok(path);
        }
        if user.uid == 0 {
            return Ok(Path::new(of_root).join(OWN));
        }
        let home = (self.variable)("HOME").map(PathBuf::from);
        let home = home.filter(|home| home.is_absolute());
        let home = home.ok_or_else(|| DirectoriesError::NoHome(name.to_owned()))?;
        Ok(home.join(in_home).join(OWN))
    }

    fn runtime(&self, user: &User) -> Result<PathBuf, DirectoriesError> {
        match self.set("XDG_RUNTIME_DIR") {
            Some(path) => Ok(path),
            None if user.uid == 0 => Ok(Path::new("/run").join(OWN)),
            None => own_runtime(user, self.run_user),
        }
    }

    /// The user's, in whatever user namespace it is.
    fn of_user(&self, user: &User) -> Result<Directories, DirectoriesError> {
        Ok(Directories {
            config: self.chosen(user, ("XDG_CONFIG_HOME", "/etc", ".config"))?,
            state: self.chosen(user, ("XDG_STATE_HOME", "/var/lib", ".local/state"))?,
            runtime: self.runtime(user)?,
        })
    }

    /// Those of a user namespace alone. Nothing outlives the namespace but files that are gone after a
    /// reboot, unless the namespace has files of its own anyway.
    fn nested(&self, user: &User, namespace: u64) -> Result<Directories, DirectoriesError> {
        // No network can have this name.
        let runtime = self.runtime(user)?.join(format!(".userns-{namespace}"));
        if user.shares_files {
            return Ok(Directories {
                config: runtime.join(".config"),
                state: runtime.join(".state"),
                runtime,
            });
        }
        let of_user = self.of_user(user)?;
        Ok(Directories { runtime, ..of_user })
    }
}

impl Directories {
    /// Those of the user this process runs as. In a user namespace other than the initial one they are
    /// that namespace's own, so that what runs there takes no network's name from the user's, unless the
    /// user has admitted it (`cnet trust`): then they are the user's.
    ///
    /// # Errors
    ///
    /// When there is no place for the runtime directory, or no home.
    pub fn of_this_user() -> Result<Directories, DirectoriesError> {
        let user = User::of_this_process();
        let Some(namespace) = user.nested else {
            return of_environment(|places| places.of_user(&user));
        };
        match Directories::of_admitting_user() {
            Some(directories) => Ok(directories),
            None => of_environment(|places| places.nested(&user, namespace)),
        }
    }

    /// Those of the user outside this process's user namespace who has admitted this process; `None` if
    /// there is none, or this process is in the initial user namespace.
    pub(crate) fn of_admitting_user() -> Option<Directories> {
        let user = User::of_this_process();
        user.nested?;
        let directories = of_environment(|places| places.of_user(&user)).ok()?;
        // The server looks itself. What is asked here is only where it is to be found.
        let own = Surroundings::of("self").ok()?;
        let trusted = Trusted::at(&directories.runtime).list();
        let is_admitted = trusted.iter().any(|one| one.user == own.user);
        is_admitted.then_some(directories)
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

    /// The policies of a network.
    pub fn policies(&self, network: &str) -> PathBuf {
        self.state.join(network).join("policies.json")
    }
}

fn of_environment<T>(find: impl FnOnce(Places<'_>) -> T) -> T {
    find(Places {
        variable: &|name| env::var_os(name),
        run_user: Path::new(RUN_USER),
    })
}

/// `/run/user/UID`, if it is that user's own. A directory in `/tmp` would not do: any user
/// could have made it first.
fn own_runtime(user: &User, run_user: &Path) -> Result<PathBuf, DirectoriesError> {
    let uid = user.uid;
    let path = run_user.join(uid.to_string());
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() && found.uid() == user.seen => Ok(path.join(OWN)),
        _ => Err(DirectoriesError::NoRuntime { path, uid }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(uid: u32) -> User {
        User {
            seen: uid,
            uid,
            nested: None,
            shares_files: false,
        }
    }

    fn places<T>(set: &[(&str, &str)], run_user: &Path, find: impl FnOnce(Places<'_>) -> T) -> T {
        let variable = |name: &str| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let variable = &variable;
        find(Places { variable, run_user })
    }

    fn of(
        uid: u32,
        set: &[(&str, &str)],
        run_user: &Path,
    ) -> Result<Directories, DirectoriesError> {
        places(set, run_user, |places| places.of_user(&initial(uid)))
    }

    #[test]
    fn a_user_namespace_has_directories_of_its_own() {
        let set = [
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        let nested = |shares_files| {
            let user = User {
                seen: 0,
                uid: 1000,
                nested: Some(7),
                shares_files,
            };
            places(&set, Path::new("/none"), |places| places.nested(&user, 7)).unwrap()
        };
        let own = nested(true);
        assert_eq!(own.socket("n"), Path::new("/r/cnet/.userns-7/n/api.sock"));
        for path in [&own.config, &own.state] {
            assert!(path.starts_with(&own.runtime), "{}", path.display());
        }
        let system = nested(false);
        assert_eq!(system.runtime, own.runtime);
        assert_eq!(system.config, Path::new("/c/cnet"));
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
