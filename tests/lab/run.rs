//! `cnet run`: a command in a network of its own.

use std::path::PathBuf;
use std::time::Duration;

use super::binaries::binary;
use super::container::READY;
use super::namespace::Namespace;
use super::process::{Launch, Running};
use super::{Lab, ORDINARY_USER, namespace_of, processes};

/// How `cnet run` is to be started.
#[derive(Clone, Default)]
pub struct Options {
    /// The user; root if none.
    pub user: Option<u32>,
    /// The mode that it sees `/dev/net/tun` with; the machine's own if none.
    pub tun_mode: Option<u32>,
    /// What it sees as `/etc/resolv.conf`; the machine's own if none.
    pub resolv_conf: Option<PathBuf>,
    /// What it sees as `/etc`; the machine's own if none.
    pub etc: Option<PathBuf>,
    /// Options of `cnet run`, split at spaces.
    pub arguments: String,
    /// The most descriptors it may have; the machine's limit if none.
    pub descriptors: Option<u64>,
}

impl Options {
    /// As an ordinary user, with the tun device as distributions have it.
    pub fn ordinary_user() -> Self {
        Self {
            user: Some(ORDINARY_USER),
            tun_mode: Some(0o666),
            ..Self::default()
        }
    }

    /// With options of `cnet run`, split at spaces.
    pub fn with(arguments: &str) -> Self {
        Self {
            arguments: arguments.to_owned(),
            ..Self::default()
        }
    }

    /// `cnet run [OPTIONS] -- COMMAND…`, yet to be started.
    pub fn command(&self, lab: &Lab, command: &[&str]) -> Launch {
        let program = binary("cnet");
        let mut launch = lab.program(&program, self.user).arg("run");
        if let Some(mode) = self.tun_mode {
            launch = launch.tun_mode(mode);
        }
        if let Some(path) = &self.resolv_conf {
            launch = launch.resolv_conf(path);
        }
        if let Some(path) = &self.etc {
            launch = launch.etc(path);
        }
        if let Some(most) = self.descriptors {
            launch = launch.descriptors(most);
        }
        let options = self.arguments.split_whitespace();
        launch.args(options).arg("--").args(command)
    }

    /// `cnet run` of a shell script, yet to be started.
    pub fn shell(&self, lab: &Lab, script: &str) -> Launch {
        self.command(lab, &["sh", "-c", script])
    }
}

/// A script that tells the network namespace it is in, and stays.
pub const HOLD: &str = "readlink /proc/self/ns/net; exec sleep 1800";

/// `cnet run` of a command that waits, so that the test can use the network from outside.
pub struct Held {
    /// `cnet run` itself.
    pub process: Running,
    /// The command's network namespace.
    pub namespace: Namespace,
}

impl Held {
    /// Starts it, and waits until the command runs.
    pub fn start(lab: &Lab, options: &Options) -> Self {
        Self::of(options.shell(lab, HOLD).spawn())
    }

    /// Of `cnet run` of [`HOLD`].
    pub fn of(mut process: Running) -> Self {
        let identity = process.wait_for_line(READY, |line| line.starts_with("net:["));
        let inside = processes()
            .find(|pid| namespace_of(*pid).is_some_and(|link| link == identity))
            .expect("the command is inside its namespace");
        let namespace = Namespace::of_process(inside);
        assert_eq!(namespace.identity(), identity, "the process was another's");
        Self { process, namespace }
    }
}

/// How long a short command may take under `cnet run`.
pub const SHORT: Duration = Duration::from_secs(20);
