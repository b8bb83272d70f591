//! One running network: the dataplane, the DNS service and the published ports, started in one
//! place by the network process, by `cnet run` and by `cnet-slirp`. What belongs to a network only
//! while it runs starts and stops here.
//!
//! # Theory of operation
//!
//! [`InstanceBuilder::start`] starts the workers and spawns the DNS service on the current tokio
//! runtime. Containers join by [`Instance::join`], each with a device for its port, and leave by
//! [`Instance::leave`], or by the end of their device. The instance knows ports; who is behind a
//! port is known by the program that runs it.
//!
//! # Invariants
//!
//! - DNS queries are answered from the first port on.
//! - After [`Instance::stop`], and when the instance is dropped, no worker runs, every connection
//!   is reset and every published port is closed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cnet::control::AnswerTimes;
use cnet::definition::DnsServer;
use cnet::{Filter, PublishSpec};
use cnet_dataplane::{
    Control, Dataplane, ForwardError, HostAccess, LocalPorts, NetworkConfig, OpenForward,
    PeerFilter, PortDevice, PortEnd, PortError, PortId, PortPlan, Prefix, Rule, StartError,
    Statistics, WorkerPanicked,
};
use cnet_tap::SocketHelper;
use cnet_tap::sandbox::{self, Missing, Mode, Policy, SandboxError};
use ipnet::IpNet;

use crate::dns::{self, Clients, HostAddress, HostConf, LocalNames, Outcome, Service, Sources};
use crate::forward::{self, ContainerAddresses, OpenError};
use crate::host_addresses::HostAddressWatch;
use crate::outside::{Host, HostFiles};

/// Why a network does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// The dataplane cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// One of its workers failed.
    #[error(transparent)]
    Worker(#[from] WorkerPanicked),
    /// The process is not in its sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// A network that is about to run.
#[derive(Debug)]
#[must_use]
pub struct InstanceBuilder {
    config: NetworkConfig,
    names: Option<LocalNames>,
    clients: Option<Arc<dyn Clients>>,
    /// `None` for a network without a way out.
    servers: Option<Vec<DnsServer>>,
    stale: Duration,
    sandbox: Option<Policy>,
    host: Host,
}

impl InstanceBuilder {
    /// Puts this process into the sandbox when the network starts, before it reads a frame. `host`
    /// answers from outside what is asked of the host after that.
    ///
    /// That is for a program whose process does nothing else. The caller has one thread when it
    /// starts the network, and has opened all that it needs.
    pub fn sandbox(mut self, policy: Policy, host: Host) -> InstanceBuilder {
        self.sandbox = Some(policy);
        self.host = host;
        self
    }

    /// Has DNS answer `names` instead of those of the host and the gateway alone.
    pub fn names(mut self, names: LocalNames) -> InstanceBuilder {
        self.names = Some(names);
        self
    }

    /// Tells DNS of its clients.
    pub fn dns_clients(mut self, clients: Arc<dyn Clients>) -> InstanceBuilder {
        self.clients = Some(clients);
        self
    }

    /// Has DNS ask `servers` for all other names; where none is for a name, those of the host's
    /// `resolv.conf`, which is the default.
    pub fn dns_servers(mut self, servers: Vec<DnsServer>) -> InstanceBuilder {
        self.servers = Some(servers);
        self
    }

    /// Has DNS ask no server: for networks without a way out.
    pub fn without_dns_upstreams(mut self) -> InstanceBuilder {
        self.servers = None;
        self
    }

    /// Has answers of DNS servers serve for so long beyond their time where no server answers
    /// (RFC 8767); zero, the default, for never.
    pub fn dns_stale(mut self, stale: Duration) -> InstanceBuilder {
        self.stale = stale;
        self
    }

    /// Starts the network, without containers. To be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Start`] when the host lacks descriptors, threads or randomness, or the
    /// number of workers is out of range; [`InstanceError::Sandbox`] when all of the sandbox is
    /// required and the host does not offer it.
    pub fn start(self) -> Result<Instance, InstanceError> {
        let mut config = self.config;
        // Read before anything closes `/proc` and `/sys` to this process.
        config.memory = config.memory.or_else(cnet_dataplane::available_memory);
        config.local_ports = LocalPorts::read();
        let gateways = || {
            LocalNames::new(
                config.ipv4.map(|plan| plan.gateway),
                config.ipv6.map(|plan| plan.gateway),
            )
        };
        let names = self.names.unwrap_or_else(gateways);
        let names = names.with_host(HostAddress::of(&config));
        let host = self.host;
        let asked = host.clone();
        let service = Service::new(dns::Config {
            names,
            servers: self.servers,
            host: HostConf::read_by(move || asked.resolv_conf()),
            sources: Sources {
                ipv4: config.outbound_v4,
                ipv6: config.outbound_v6,
            },
            stale: self.stale,
            clients: self.clients,
        });
        let (host_addresses, sandbox_lacks) = match &self.sandbox {
            Some(policy) => (HostAddressWatch::open(), enter_sandbox(policy)?),
            None => (HostAddressWatch::default(), Some(NO_SANDBOX.to_owned())),
        };
        let dns = Arc::clone(&service);
        let no_host = config.policy.filter.no_host;
        let (dataplane, queries) = Dataplane::start(config)?;
        let control = dataplane.control();
        // It ends with the workers, which hold the other end of the queue.
        tokio::spawn(dns::serve(service, control.clone(), queries));
        Ok(Instance {
            control,
            dns,
            no_host,
            host_addresses,
            host,
            sandbox_lacks,
            dataplane: Mutex::new(Some(dataplane)),
        })
    }
}

/// What is said of a process without a sandbox.
const NO_SANDBOX: &str = "the network's process runs outside of any sandbox";

/// The one place where a process enters its sandbox. What the host does not offer is logged, and given.
fn enter_sandbox(policy: &Policy) -> Result<Option<String>, SandboxError> {
    if policy.mode == Mode::Off {
        tracing::warn!(
            "the sandbox is switched off: a container that breaks in has this user's rights"
        );
        return Ok(Some(NO_SANDBOX.to_owned()));
    }
    let missing = sandbox::enter(policy)?.missing;
    if missing.is_empty() {
        return Ok(None);
    }
    let stages: Vec<String> = missing.iter().map(Missing::to_string).collect();
    let stages = stages.join("; ");
    tracing::warn!(
        stages,
        "the sandbox is incomplete; `cnet doctor` tells more"
    );
    Ok(Some(format!(
        "the sandbox of the network's process is incomplete: {stages}"
    )))
}

/// A running network. Dropping it stops it.
#[derive(Debug)]
pub struct Instance {
    control: Control,
    dns: Arc<Service>,
    /// Whether no container may reach the host's own addresses.
    no_host: bool,
    host_addresses: HostAddressWatch,
    /// What is asked of the host.
    host: Host,
    sandbox_lacks: Option<String>,
    /// `None` once it was stopped.
    dataplane: Mutex<Option<Dataplane>>,
}

impl Instance {
    /// A network that is to be as `config` says, and to answer DNS queries from the host's servers.
    pub fn builder(config: NetworkConfig) -> InstanceBuilder {
        InstanceBuilder {
            config,
            names: None,
            clients: None,
            servers: Some(Vec::new()),
            stale: Duration::ZERO,
            sandbox: None,
            host: Host::here(HostFiles::default()),
        }
    }

    /// Plugs a container in, whose port is to be as `plan` says and leads to `device`. The port
    /// serves from when this returns until [`Instance::leave`], or until the device is gone, which
    /// the future tells with the reason. With `socket_helper`, connections from the host's loopback
    /// to its published TCP ports are spliced with sockets that the helper makes in the container's
    /// network namespace.
    ///
    /// # Errors
    ///
    /// See [`PortError`]; the device is closed then.
    pub async fn join(
        &self,
        plan: PortPlan,
        device: PortDevice,
        socket_helper: Option<SocketHelper>,
    ) -> Result<(PortId, PortEnd), PortError> {
        if self.no_host || plan.filter.no_host {
            self.watch_host_addresses().await?;
        }
        let (port, end) = self.control.add_port(plan, device).await?;
        // Those of a container that had the port's number before.
        self.dns.forget(port);
        if let Some(helper) = socket_helper {
            self.control.use_socket_helper(port, helper);
        }
        Ok((port, end))
    }

    async fn watch_host_addresses(&self) -> Result<(), PortError> {
        let started = self.host_addresses.start(&self.control).await;
        started.map_err(|error| PortError::Watch(format!("the host's addresses: {error}")))
    }

    /// Takes a container out; see [`Control::remove_port`].
    ///
    /// # Errors
    ///
    /// [`PortError::Unknown`] if its port has ended by itself.
    pub async fn leave(&self, port: PortId) -> Result<(), PortError> {
        let left = self.control.remove_port(port).await;
        self.dns.forget(port);
        left
    }

    /// The published ports.
    pub fn forwards(&self) -> Forwards {
        Forwards {
            control: self.control.clone(),
            host: self.host.clone(),
        }
    }

    /// What has passed, what was dropped, and what there is now.
    ///
    /// # Errors
    ///
    /// [`PortError::Ended`] once the network has stopped.
    pub async fn statistics(&self) -> Result<Statistics, PortError> {
        self.control.statistics().await
    }

    /// What came of the DNS queries so far, by name.
    pub fn dns_outcomes(&self) -> [(&'static str, u64); Outcome::COUNT] {
        self.dns.outcomes()
    }

    /// What came of the DNS queries of a port, by name.
    pub fn dns_outcomes_of(&self, port: PortId) -> [(&'static str, u64); Outcome::COUNT] {
        self.dns.outcomes_of(port)
    }

    /// How long answers to DNS queries took so far.
    pub fn dns_times(&self) -> AnswerTimes {
        self.dns.times()
    }

    /// The last DNS queries of a port; see [`Service::log`].
    pub async fn dns_log(&self, port: PortId, after: u64, wait: Duration) -> Vec<dns::Entry> {
        self.dns.log(port, after, wait).await
    }

    /// What this process lacks of a whole sandbox; `None` if it is in one.
    pub fn sandbox_lacks(&self) -> Option<&str> {
        self.sandbox_lacks.as_deref()
    }

    /// Waits until the host's kernel has all that containers have sent over TCP; see
    /// [`Control::delivered`].
    pub async fn delivered(&self) {
        self.control.delivered().await;
    }

    /// The handle to the workers.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits until the workers have ended, and gives the reason: the network was stopped
    /// ([`cnet_dataplane::STOPPED`]), or a worker failed.
    pub fn ended(&self) -> impl Future<Output = String> + Send + use<> {
        let ended = self.lock().as_ref().map(|dataplane| dataplane.ended());
        async move {
            match ended {
                Some(ended) => ended.await,
                None => cnet_dataplane::STOPPED.to_owned(),
            }
        }
    }

    /// Waits until the port whose end is `port`, or the workers, have ended, and gives the reason:
    /// for networks of one container, which end with it.
    pub fn ended_with(&self, port: PortEnd) -> impl Future<Output = String> + Send + use<> {
        let ended = self.ended();
        async move {
            match port.await {
                // Ports end with the workers, which know more.
                reason if reason == cnet_dataplane::STOPPED => ended.await,
                reason => reason,
            }
        }
    }

    /// Resets all connections, closes all ports and waits for the workers' end. Nothing happens the
    /// second time.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Worker`] when a worker had panicked.
    pub fn stop(&self) -> Result<(), InstanceError> {
        let Some(dataplane) = self.lock().take() else {
            return Ok(());
        };
        Ok(dataplane.stop()?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Dataplane>> {
        self.dataplane
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// `filter` as the dataplane has it.
pub fn peer_filter(filter: &Filter) -> PeerFilter {
    let prefixes = |nets: &[IpNet]| {
        let prefix = |net: &IpNet| Prefix {
            address: net.network(),
            len: net.prefix_len(),
        };
        nets.iter().map(prefix).collect()
    };
    PeerFilter {
        allow: prefixes(&filter.allow),
        deny: prefixes(&filter.deny),
        no_host: filter.no_host,
        host_access: match filter.host_access.ports() {
            None => HostAccess::All,
            Some([]) => HostAccess::None,
            Some(ports) => HostAccess::Ports(ports.to_vec()),
        },
    }
}

/// The published ports of a running network.
#[derive(Clone, Debug)]
pub struct Forwards {
    control: Control,
    host: Host,
}

impl Forwards {
    /// Opens all ports of the host that `specs` name, or none, and leads them to the container at
    /// `addresses`.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; nothing is open then.
    pub async fn open(
        &self,
        addresses: ContainerAddresses,
        specs: &[PublishSpec],
    ) -> Result<Vec<OpenForward>, OpenError> {
        let opened = forward::open(&self.control, addresses, specs).await;
        opened.map_err(|error| error.with_holder(|protocol, at| self.host.holder(protocol, at)))
    }

    /// Opens each of `rules` that can be opened, and gives a result for each.
    ///
    /// # Errors
    ///
    /// [`ForwardError::Ended`] once the network has stopped.
    pub async fn open_each(
        &self,
        rules: Vec<Rule>,
    ) -> Result<Vec<Result<OpenForward, ForwardError>>, ForwardError> {
        let mut results = Vec::with_capacity(rules.len());
        for some in rules.chunks(forward::PORTS_A_COMMAND) {
            let opened = self.control.replace_forwards(Vec::new(), some.to_vec());
            results.extend(opened.await?);
        }
        Ok(results)
    }

    /// Closes ports. One that is closed already is no error.
    pub async fn close(&self, opened: &[OpenForward]) {
        forward::close(&self.control, opened).await;
    }
}

#[cfg(test)]
mod tests {
    use cnet_wire::Protocol;
    use cnet_wire::prefixes::Subnet;

    use super::*;

    #[tokio::test]
    async fn an_instance_counts_forwards_and_stops_once() {
        let config = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), None);
        let instance = Instance::builder(config).without_dns_upstreams();
        let instance = instance.start().unwrap();
        let ended = instance.ended();
        assert_eq!(instance.statistics().await.unwrap().flows, 0);
        let addresses = ContainerAddresses {
            ipv4: Some([10, 0, 2, 100].into()),
            ipv6: None,
        };
        let spec = "127.0.0.1::80".parse().unwrap();
        let opened = instance.forwards().open(addresses, &[spec]).await.unwrap();
        assert!(std::net::TcpStream::connect(opened[0].bound).is_ok());
        let forwards = instance.forwards();
        forwards.close(&opened).await;
        assert!(std::net::TcpStream::connect(opened[0].bound).is_err());
        // More than one command takes.
        let free = Rule::new(
            Protocol::Tcp,
            "127.0.0.1:0".parse().unwrap(),
            std::net::SocketAddr::from(([10, 0, 2, 100], 80)),
        );
        let results = forwards.open_each(vec![free; 150]).await.unwrap();
        let many: Vec<OpenForward> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(many.len(), 150);
        forwards.close(&many).await;
        assert_eq!(instance.control().forwards().await, Ok(Vec::new()));
        instance.stop().unwrap();
        instance.stop().unwrap();
        assert_eq!(ended.await, cnet_dataplane::STOPPED);
        assert_eq!(instance.ended().await, cnet_dataplane::STOPPED);
        assert!(instance.statistics().await.is_err());
    }
}
