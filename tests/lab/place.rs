//! `cnet` on the laboratory's host for one user, with directories of its own, and the containers on
//! its networks.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use serde_json::Value;

use super::binaries::binary;
use super::namespace::Namespace;
use super::process::{Finished, Launch, Running};
use super::run::SHORT;
use super::{Lab, ORDINARY_USER, namespace_of, processes, wait_until};

/// `cnet` for one user, with directories of its own.
#[derive(Clone)]
pub struct Place<'a> {
    lab: &'a Lab,
    /// The directory of its definitions, leases and sockets.
    pub runtime: PathBuf,
    user: Option<u32>,
    /// Where it runs; the laboratory's host unless it is another one.
    host: &'a Namespace,
}

/// A container on a network.
pub struct Member {
    /// What holds the container; a second network's member has none of its own.
    pub process: Option<Running>,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its name on the network.
    pub name: String,
    /// The interface inside.
    pub interface: String,
    /// Its address.
    pub v4: IpAddr,
    /// On a network that has IPv6.
    pub v6: Option<IpAddr>,
    /// The gateway, IPv4.
    pub gateway: IpAddr,
}

impl<'a> Place<'a> {
    /// Root's.
    pub fn root(lab: &'a Lab) -> Self {
        let runtime = lab.private_directory("networks", 0);
        let (user, host) = (None, &lab.host);
        Self {
            lab,
            runtime,
            user,
            host,
        }
    }

    /// Root's, on another host of the laboratory.
    pub fn at(lab: &'a Lab, host: &'a Namespace, name: &str) -> Self {
        let runtime = lab.private_directory(name, 0);
        Self {
            lab,
            runtime,
            user: None,
            host,
        }
    }

    /// An ordinary user's.
    pub fn ordinary(lab: &'a Lab) -> Self {
        let runtime = lab.private_directory("networks-user", ORDINARY_USER);
        let (user, host) = (Some(ORDINARY_USER), &lab.host);
        Self {
            lab,
            runtime,
            user,
            host,
        }
    }

    /// One for each kind of user.
    pub fn each(lab: &'a Lab) -> [Self; 2] {
        [Self::root(lab), Self::ordinary(lab)]
    }

    /// `cnet` with `arguments`, split at spaces.
    pub fn cnet(&self, arguments: &str) -> Launch {
        self.program("cnet").args(arguments.split_whitespace())
    }

    /// A program of this project's, without arguments.
    pub fn program(&self, name: &str) -> Launch {
        self.of_user(self.lab.program(&binary(name), self.user))
    }

    /// Where `cnet` is for programs of this user.
    pub fn cnet_path(&self) -> PathBuf {
        match self.user {
            None => binary("cnet"),
            // Its copy.
            Some(_) => self.lab.directory().join("cnet"),
        }
    }

    /// A program of the machine's as this user.
    pub fn command(&self, program: &str) -> Launch {
        let launch = self.lab.command(program);
        self.of_user(match self.user {
            None => launch,
            Some(user) => self.lab.mark(launch.user(user, self.lab.directory())),
        })
    }

    fn of_user(&self, launch: Launch) -> Launch {
        let mut launch = launch.namespace(self.host.descriptor());
        if self.user.is_some() {
            // As distributions have it.
            launch = launch.tun_mode(0o666);
        }
        ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME"]
            .iter()
            .fold(launch, |launch, name| launch.env(name, &self.runtime))
    }

    /// `cnet run --network …` of a shell script, to its end.
    pub fn shell(&self, options: &str, script: &str) -> Finished {
        let run = self.cnet(&format!("run {options} --"));
        run.args(["sh", "-c", script]).run(SHORT)
    }

    /// Runs `cnet`, which has to succeed.
    pub fn done(&self, arguments: &str) -> Finished {
        let done = self.cnet(arguments).run(SHORT);
        assert!(done.success(), "{arguments}: {done}");
        done
    }

    /// Whether `cnet ps` lists a container of this name.
    ///
    /// Only the first column is compared: an address may hold the same letters.
    pub fn lists(&self, name: &str) -> bool {
        let listed = self.done("ps").stdout;
        let mut names = listed.lines().map(str::split_whitespace);
        names.any(|mut columns| columns.next() == Some(name))
    }

    /// Waits until `cnet ps` lists a container of this name.
    pub fn wait_until_listed(&self, name: &str) {
        wait_until("the container is listed", SHORT, || {
            self.lists(name).then_some(()).ok_or("not yet".to_owned())
        });
    }

    /// Does what cannot be done, and gives the error.
    pub fn refused(&self, arguments: &str) -> String {
        let done = self.cnet(arguments).run(SHORT);
        assert_eq!(done.code(), Some(1), "{arguments}: {done}");
        assert_eq!(done.stdout, "", "{arguments}: {done}");
        done.stderr
    }

    /// The answer to `arguments`, which is JSON.
    pub fn json(&self, arguments: &str) -> Value {
        let done = self.done(arguments);
        let read = serde_json::from_str(&done.stdout);
        read.unwrap_or_else(|error| panic!("{error}: {done}"))
    }

    /// What `docker network inspect` would show of a network.
    pub fn inspect(&self, network: &str) -> Value {
        self.json(&format!("network inspect {network}"))[0].take()
    }

    /// Frames of `name` and to it that were dropped for `reason` so far.
    pub fn drops(&self, network: &str, name: &str, reason: &str) -> u64 {
        let shown = self.json(&format!("top --once --network {network} --format json"));
        let rows = shown.as_array().expect("a list");
        let row = rows.iter().find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("{name} is not in {shown}"));
        row["drops"][reason].as_u64().unwrap_or(0)
    }

    /// A container that the test has made, not cnet: a process in namespaces of its own.
    pub fn container(&self) -> (Running, Namespace) {
        let launch = self.lab.command("unshare");
        let launch = match self.user {
            None => launch.arg("--net"),
            Some(user) => {
                launch
                    .user(user, self.lab.directory())
                    .args(["--user", "--map-root-user", "--net"])
            }
        };
        held(launch.args(["--", "sh", "-c", HOLD]))
    }

    /// A new container, that joins `network` with more options of `cnet attach`.
    pub fn join(&self, network: &str, name: &str, options: &str) -> Member {
        let (process, namespace) = self.container();
        let pid = process.pid();
        let attach = format!("attach --json --network {network} --name {name} {options} {pid}");
        Member::read(&self.json(&attach), Some(process), namespace)
    }

    /// A new container, made by `cnet run` on a network.
    pub fn run(&self, network: &str, name: &str, options: &str) -> Member {
        let run = format!("run --network {network} --name {name} {options} --");
        let (process, namespace) = held(self.cnet(&run).args(["sh", "-c", HOLD]));
        let shown = self.json(&format!("ps --network {network} --format json"));
        let rows = shown.as_array().expect("a list");
        let row = rows.iter().find(|row| row["name"] == name);
        let mut row = row.expect("a container that runs").clone();
        let gateway = self.inspect(network)["IPAM"]["Config"][0]["Gateway"].take();
        row["gateways"] = Value::from(vec![gateway]);
        Member::read(&row, Some(process), namespace)
    }

    /// A network's process: the one in the sandbox, which is the first process of its PID namespace. It
    /// is known by the lock that it holds; the process outside, which looks the same, does so too.
    pub fn process(&self, network: &str) -> Option<Pid> {
        let lock = self.runtime.join("cnet").join(network).join("lock");
        let found = processes().find(|pid| {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let status = String::from_utf8_lossy(&read("status")).into_owned();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let is_first = numbers.is_some_and(|numbers| numbers.trim().ends_with("\t1"));
            let command_line = format!("network-process\0{network}\0");
            is_first && read("cmdline").ends_with(command_line.as_bytes()) && holds(*pid, &lock)
        });
        found.and_then(|pid| Pid::from_raw(pid.cast_signed()))
    }
}

/// Whether a process has the file at `path` open.
fn holds(pid: u32, path: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    open.flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link == path))
}

/// Sets the loopback up, as those who make containers do, tells the namespace it is in, and stays.
/// In what `cnet run` makes, it is up already.
const HOLD: &str = "ip link set lo up; readlink /proc/self/ns/net; exec sleep 1800";

/// Starts what runs [`HOLD`], and finds its namespace.
fn held(launch: Launch) -> (Running, Namespace) {
    let mut process = launch.spawn();
    let identity = process.wait_for_line(SHORT, |line| line.starts_with("net:["));
    let own = namespace_of(process.pid()).is_some_and(|link| link == identity);
    let inside = match own {
        true => process.pid(),
        false => processes()
            .find(|pid| namespace_of(*pid).is_some_and(|link| link == identity))
            .expect("the command is inside its namespace"),
    };
    (process, Namespace::of_process(inside))
}

impl Member {
    /// From what `cnet attach --json` says of it.
    pub fn read(joined: &Value, process: Option<Running>, namespace: Namespace) -> Self {
        let text = |field: &str| joined[field].as_str().map(str::to_owned);
        let address = |field: &str| {
            let address = text(field)?;
            let (address, _) = address.split_once('/')?;
            address.parse().ok()
        };
        let gateway = joined["gateways"][0].as_str();
        Self {
            process,
            namespace,
            name: text("name").expect("a name"),
            interface: text("interface").expect("an interface"),
            v4: address("ipv4").unwrap_or_else(|| panic!("no IPv4 address: {joined}")),
            v6: address("ipv6"),
            gateway: gateway.and_then(|g| g.parse().ok()).expect("a gateway"),
        }
    }

    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("one of its own").pid()
    }

    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(self.v4).chain(self.v6).collect()
    }

    /// A program inside, that asks the network's gateway for names.
    pub fn program(&self, lab: &Lab, name: &str) -> Launch {
        let file = format!("resolv.conf-{}", self.gateway);
        let conf = lab.file(&file, &format!("nameserver {}\n", self.gateway));
        self.namespace.command(name).resolv_conf(&conf)
    }

    /// Whether `whom`, an address or a name, answers.
    pub fn pings(&self, lab: &Lab, whom: &str) -> bool {
        let ping = self.program(lab, "ping");
        ping.args(["-c", "1", "-W", "0.5", whom])
            .run(SHORT)
            .success()
    }

    /// It reaches `whom`. Tried for two seconds: the first may go while addresses are resolved.
    pub fn assert_pings(&self, lab: &Lab, whom: &str) {
        let ping = self.program(lab, "ping");
        let arguments = ["-n", "-c", "1", "-i", "0.2", "-w", "2", whom];
        let done = ping.args(arguments).run(SHORT);
        assert!(done.success(), "{} to {whom}: {done}", self.name);
    }

    /// Nothing of `whom` comes back.
    pub fn assert_no_ping(&self, lab: &Lab, whom: &str) {
        assert!(!self.pings(lab, whom), "{} reaches {whom}", self.name);
    }
}
