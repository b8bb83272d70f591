//! The running network: one worker thread that moves packets, and the handle that others steer it
//! by.
//!
//! [`Dataplane::start`] takes an open TAP and a description of the network and gives back a handle.
//! From then on the worker ([`worker`]) owns TAP, router and host sockets alone and shares nothing:
//! commands reach it through a channel with an eventfd, DNS queries leave it through another, and
//! what it is doing is told by snapshots.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use cnet_nat::flow::Limits;
use cnet_nat::policy::Policy;
use cnet_tap::InterfaceConfig;
use cnet_vswitch::MacAddr;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

mod batch;
mod forwards;
mod frames;
mod plan;
pub mod sockets;
mod spin;
mod worker;

pub use cnet_nat::gateway::{DnsQuery, QueryId};
pub use forwards::{ForwardId, Protocol, Publish, PublishError};

/// Polling on for this long after the last event: longer than a round trip through the host's kernel
/// and back, shorter than anybody's patience.
pub const DEFAULT_BUSY_POLL: Duration = Duration::from_micros(50);

/// DNS queries that may wait for the service before further ones are dropped.
const QUERY_QUEUE: usize = 256;

/// Descriptors that flows leave to others.
const SPARE_DESCRIPTORS: usize = 4096;

/// The IPv4 side of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Plan {
    /// Network address.
    pub network: Ipv4Addr,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// The gateway's own address.
    pub gateway: Ipv4Addr,
    /// Where DNS is answered; `None` for nowhere.
    pub dns: Option<Ipv4Addr>,
    /// The container's address.
    pub container: Ipv4Addr,
    /// First and last address DHCP gives to those who ask and have no lease.
    pub dhcp_range: (Ipv4Addr, Ipv4Addr),
}

/// The IPv6 side of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Plan {
    /// Network address.
    pub network: Ipv6Addr,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// The gateway's own address.
    pub gateway: Ipv6Addr,
    /// Where DNS is answered; `None` for nowhere.
    pub dns: Option<Ipv6Addr>,
    /// The container's address, where it has a fixed one.
    pub container: Option<Ipv6Addr>,
}

/// What a network is to be.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// IP MTU of the link in bytes.
    pub mtu: u16,
    /// The gateway's address on the link.
    pub gateway_mac: MacAddr,
    /// IPv4, if the network has it.
    pub ipv4: Option<Ipv4Plan>,
    /// IPv6, if the network has it.
    pub ipv6: Option<Ipv6Plan>,
    /// Where containers may send to.
    pub policy: Policy,
    /// Source address of outgoing IPv4, where it is not to be the kernel's choice.
    pub outbound_v4: Option<Ipv4Addr>,
    /// Source address of outgoing IPv6.
    pub outbound_v6: Option<Ipv6Addr>,
    /// Domains that containers search.
    pub search: Vec<String>,
    /// What one container may hold.
    pub limits: Limits,
    /// How long the worker polls on after the last event before it sleeps; zero for never. See
    /// [`DEFAULT_BUSY_POLL`].
    pub busy_poll: Duration,
}

impl NetworkConfig {
    /// The container's interface in this network, with the hardware address `mac` or a random one.
    pub fn interface(&self, mac: Option<MacAddr>) -> InterfaceConfig {
        let mut interface = InterfaceConfig {
            mtu: self.mtu.into(),
            mac: mac.map(|mac| mac.0),
            ..InterfaceConfig::default()
        };
        if let Some(plan) = self.ipv4 {
            let address = (plan.container.into(), plan.prefix_len);
            interface.addresses.push(address);
            interface.gateways.push(plan.gateway.into());
        }
        if let Some(plan) = self.ipv6
            && let Some(container) = plan.container
        {
            let address = (container.into(), plan.prefix_len);
            interface.addresses.push(address);
            interface.gateways.push(plan.gateway.into());
        }
        interface
    }
}

/// What the worker is asked to do.
pub(crate) enum Command {
    Publish(Publish, oneshot::Sender<Result<ForwardId, PublishError>>),
    Unpublish(ForwardId, oneshot::Sender<Result<(), PublishError>>),
    AnswerDns(QueryId, Vec<u8>),
    Stop,
}

/// Steers a running network. Cheap to clone, from any thread.
#[derive(Clone, Debug)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Control {
    fn send(&self, command: Command) {
        // A worker that has ended answers nothing; the caller's own channel tells it.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Opens a port of the host and forwards what comes there to the container.
    ///
    /// # Errors
    ///
    /// See [`PublishError`]; nothing is opened then, and other forwards stay.
    pub async fn publish(&self, publish: Publish) -> Result<ForwardId, PublishError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Publish(publish, reply));
        answer.await.unwrap_or(Err(PublishError::Ended))
    }

    /// Closes a port that was opened by [`Control::publish`]. Connections made through it go on.
    ///
    /// # Errors
    ///
    /// [`PublishError::Unknown`] if there is no such forward.
    pub async fn unpublish(&self, id: ForwardId) -> Result<(), PublishError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Unpublish(id, reply));
        answer.await.unwrap_or(Err(PublishError::Ended))
    }

    /// Answers a query that came out of [`Dataplane::start`]'s receiver.
    pub fn answer_dns(&self, id: QueryId, message: Vec<u8>) {
        self.send(Command::AnswerDns(id, message));
    }
}

/// A running network. Dropping it stops it.
#[derive(Debug)]
pub struct Dataplane {
    control: Control,
    worker: Option<thread::JoinHandle<()>>,
    ended: watch::Receiver<Option<String>>,
}

impl Dataplane {
    /// Starts the worker on an open TAP. DNS queries of the container come out of the receiver and
    /// are answered by [`Control::answer_dns`].
    ///
    /// # Errors
    ///
    /// When the host lacks descriptors, threads or randomness.
    pub fn start(
        mut config: NetworkConfig,
        tap: cnet_tap::Tap,
    ) -> anyhow::Result<(Dataplane, async_mpsc::Receiver<DnsQuery>)> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .context("cannot make an eventfd")?;
        let wake = Arc::new(wake);
        let (commands, inbox) = mpsc::channel();
        let (queries, query_receiver) = async_mpsc::channel(QUERY_QUEUE);
        let (ended_sender, ended) = watch::channel(None);
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).context("cannot get random bytes from the kernel")?;
        config.limits = within(config.limits, raise_descriptor_limit());
        let control = Control {
            commands,
            wake: Arc::clone(&wake),
        };
        let ports = worker::Channels {
            inbox,
            wake,
            queries,
        };
        let worker = thread::Builder::new()
            .name("cnet-worker".into())
            .spawn(move || {
                let reason = match worker::run(&config, tap, secret, ports) {
                    Ok(()) => "stopped".to_owned(),
                    Err(e) => format!("{e:#}"),
                };
                let _ = ended_sender.send(Some(reason));
            })
            .context("cannot start the worker thread")?;
        Ok((
            Dataplane {
                control,
                worker: Some(worker),
                ended,
            },
            query_receiver,
        ))
    }

    /// The handle to steer it by.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits until the worker has ended by itself, and gives the reason: the TAP is gone, or the
    /// worker failed.
    pub fn ended(&self) -> impl Future<Output = String> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => "the worker thread failed".to_owned(),
            }
        }
    }

    /// Resets all connections, closes all ports and waits for the worker's end.
    ///
    /// # Errors
    ///
    /// When the worker had panicked.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.control.send(Command::Stop);
        match self.worker.take().map(thread::JoinHandle::join) {
            Some(Err(_)) => anyhow::bail!("the worker thread failed"),
            _ => Ok(()),
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        // The reason of a failure was told by `ended`.
        let _ = self.end();
    }
}

/// Every flow is a descriptor: takes as many as the system lets us, and tells how many that is.
fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer descriptors there are fewer flows, which the quota answers.
    let _ = setrlimit(Resource::Nofile, limit);
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// `limits` cut to a process of that many descriptors, so that no container can take those that
/// DNS, published ports and the API need: a quarter of them, or [`SPARE_DESCRIPTORS`].
fn within(limits: Limits, descriptors: usize) -> Limits {
    let flows = descriptors - SPARE_DESCRIPTORS.min(descriptors / 4);
    let part = |hundredths: usize| flows / 100 * hundredths;
    Limits {
        tcp_flows: limits.tcp_flows.min(part(80)),
        udp_mappings: limits.udp_mappings.min(part(17)),
        ping_mappings: limits.ping_mappings.min(part(3)),
    }
}

/// An address as a peer is known by: IPv4-mapped IPv6 addresses are IPv4.
pub(crate) fn canonical(a: SocketAddr) -> SocketAddr {
    SocketAddr::new(
        match a.ip() {
            IpAddr::V6(v6) => v6.to_canonical(),
            v4 => v4,
        },
        a.port(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_leave_descriptors_to_others() {
        let all = Limits::default();
        assert_eq!(within(all, usize::MAX), all);
        assert_eq!(within(all, 524_288), all);
        for descriptors in [0, 256, 1024, 4096, 65_536] {
            let limits = within(all, descriptors);
            let flows = limits.tcp_flows + limits.udp_mappings + limits.ping_mappings;
            assert!(flows <= descriptors - descriptors / 16, "{descriptors}");
            assert!(flows * 2 >= descriptors.min(65_536) / 2, "{descriptors}");
        }
    }
}
