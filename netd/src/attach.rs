//! How a container joins, how it is taken up again after a crash, and its published ports.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use cnet_tap::{Tap, TapQueue};
use cnet_wire::MacAddr;
use tokio::task::JoinSet;

use super::hub::{Hub, Key, Plugged};
use super::life::{End, Pinned};
use super::state::{self, Life, Port, Record};
use crate::ipam::{IpamError, Wanted};
use crate::ns_helper::OpenError;
use crate::published::{self, Guests, Opened};
use cnet::control::{Attach, Attached, Kind, PublishPorts, Published, Refusal};
use cnet::definition::check_name;
use cnet::publish::PublishSpec;
use cnet::vm::VmAddress;
use cnet_dataplane::{PortDevice, PortEnd, PortPlan, Publish, STOPPED};
use cnet_tap::helper::TapRequest;
use cnet_wire::Protocol;

/// The interface's name unless another is asked for: the first free number.
const INTERFACE: &str = "eth%d";

/// The most further names a container may have.
const MAX_ALIASES: usize = 64;

/// Digits of an id that stand for it.
pub const SHORT_ID: usize = 12;

/// What a client asks for, checked.
struct Wish {
    id: String,
    name: Option<String>,
    aliases: Vec<String>,
    wanted: Wanted,
    interface: String,
    publish: Vec<PublishSpec>,
}

fn invalid(text: impl ToString) -> Refusal {
    Refusal::new(Kind::Invalid, text.to_string())
}

impl Wish {
    fn read(attach: Attach) -> Result<Wish, Refusal> {
        if attach.aliases.len() > MAX_ALIASES {
            return Err(invalid(format!(
                "a container has at most {MAX_ALIASES} aliases"
            )));
        }
        for name in attach.name.iter().chain(&attach.aliases) {
            check_name(name).map_err(invalid)?;
        }
        let id = match attach.id {
            Some(id) if id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) => {
                id.to_ascii_lowercase()
            }
            Some(id) => return Err(invalid(format!("`{id}` is no id of 64 hexadecimal digits"))),
            None => random_id().map_err(|e| internal(&e))?,
        };
        let mac = attach.mac.as_deref().map(parse_mac).transpose()?;
        let publish = attach.publish.iter().map(|text| read_spec(text));
        Ok(Wish {
            id,
            name: attach.name,
            aliases: attach.aliases,
            wanted: Wanted {
                v4: attach.ipv4,
                v6: attach.ipv6,
                mac,
            },
            interface: attach.interface.unwrap_or_else(|| INTERFACE.to_owned()),
            publish: publish.collect::<Result<_, _>>()?,
        })
    }
}

fn read_spec(text: &str) -> Result<PublishSpec, Refusal> {
    text.parse()
        .map_err(|error| invalid(format!("cannot publish `{text}`: {error}")))
}

/// Six octets with colons between.
fn parse_mac(text: &str) -> Result<MacAddr, Refusal> {
    let octet = |part: &str| match part.len() {
        1..=2 => u8::from_str_radix(part, 16).ok(),
        _ => None,
    };
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    match octets.and_then(|octets| <[u8; 6]>::try_from(octets).ok()) {
        Some(octets) => Ok(MacAddr(octets)),
        None => Err(invalid(format!(
            "`{text}` is no MAC address such as 02:42:0a:58:00:02"
        ))),
    }
}

/// 64 hexadecimal digits.
///
/// # Errors
///
/// When the kernel has no randomness yet.
pub fn random_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Somebody else's address is a conflict, an impossible one a mistake.
fn of_ipam(error: &IpamError) -> Refusal {
    let kind = match error {
        IpamError::Taken { .. } | IpamError::HasAnother { .. } | IpamError::Exhausted { .. } => {
            Kind::Conflict
        }
        IpamError::Broken { .. } | IpamError::File { .. } => Kind::Internal,
        _ => Kind::Invalid,
    };
    Refusal::new(kind, error.to_string())
}

fn of_open(error: &OpenError) -> Refusal {
    let kind = match error {
        OpenError::Refused(_) => Kind::Impossible,
        OpenError::Ended => Kind::Ending,
        OpenError::Conversation(_) => Kind::Internal,
    };
    Refusal::new(kind, error.to_string())
}

fn of_publish(error: &published::OpenError) -> Refusal {
    let kind = match error.is_conflict() {
        true => Kind::Conflict,
        false => Kind::Impossible,
    };
    Refusal::new(kind, error.to_string())
}

fn internal(text: &impl ToString) -> Refusal {
    Refusal::new(Kind::Internal, text.to_string())
}

pub(super) fn guests(record: &Record) -> Guests {
    Guests {
        ipv4: record.ipv4,
        ipv6: record.ipv6,
    }
}

fn port_of(publish: &Publish) -> Port {
    Port {
        udp: publish.protocol == Protocol::Udp,
        host: publish.host,
        container: publish.guest,
    }
}

impl Hub {
    /// Lets a container join.
    pub(super) async fn attach(
        self: &Arc<Self>,
        attach: Attach,
        descriptors: Vec<std::os::fd::OwnedFd>,
    ) -> Result<Attached, Refusal> {
        let pinned = Pinned::received(descriptors, attach.path.as_deref(), attach.member)?;
        let wish = Wish::read(attach)?;
        let (interface, specs) = (wish.interface.clone(), wish.publish.clone());
        let key = self.reserve(wish, pinned.life.clone(), pinned.namespace)?;
        let joined = self.join(&key, pinned, interface, false, &specs).await;
        if let Err(refusal) = joined {
            self.leave(&key, "it could not join").await;
            return Err(refusal);
        }
        self.attached(&key)
    }

    /// What whoever has joined is told.
    pub(super) fn attached(&self, key: &Key) -> Result<Attached, Refusal> {
        let container = {
            let mut tables = self.tables();
            let stay = tables.stay(key).ok_or_else(|| {
                Refusal::new(Kind::Impossible, "the container ended while it was joining")
            })?;
            super::answers::container(self, &stay.record)
        };
        tracing::info!(container = key.name, "joins");
        let (v4, v6) = self.definition.gateways();
        let gateways = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
        Ok(Attached {
            container,
            gateways: gateways.collect(),
        })
    }

    /// Takes name and addresses for a machine; gives its ports to be opened besides.
    pub(super) fn reserve_machine(
        &self,
        attach: Attach,
        address: &VmAddress,
    ) -> Result<(Key, Vec<PublishSpec>), Refusal> {
        let mut wish = Wish::read(attach)?;
        wish.interface = String::new();
        let specs = wish.publish.clone();
        let life = Life::Machine {
            address: address.clone(),
        };
        Ok((self.reserve(wish, life, (0, 0))?, specs))
    }

    /// Takes name and addresses.
    fn reserve(&self, wish: Wish, life: Life, namespace: (u64, u64)) -> Result<Key, Refusal> {
        self.may_open(wish.publish.len())?;
        let name = wish.name.unwrap_or_else(|| wish.id[..SHORT_ID].to_owned());
        let mut tables = self.tables();
        let is_it = |record: &Record| match life {
            Life::Machine { .. } => record.life == life,
            _ => record.namespace == namespace,
        };
        if let Some(text) = tables.clash(&name, &wish.id, &is_it) {
            return Err(Refusal::new(Kind::Conflict, text));
        }
        let addresses = tables.ipam.lease(&name, wish.wanted);
        let addresses = addresses.map_err(|error| of_ipam(&error))?;
        Ok(tables.enter(Record {
            id: wish.id,
            name,
            aliases: wish.aliases,
            life,
            namespace,
            interface: wish.interface,
            mac: addresses.mac.0,
            ipv4: addresses.v4,
            ipv6: addresses.v6,
            ports: Vec::new(),
        }))
    }

    /// Makes the interface, or takes it over, and plugs it in.
    async fn join(
        self: &Arc<Self>,
        key: &Key,
        pinned: Pinned,
        interface: String,
        take_over: bool,
        specs: &[PublishSpec],
    ) -> Result<(), Refusal> {
        let gone = || Refusal::new(Kind::Impossible, "the container was detached meanwhile");
        let record = {
            let mut tables = self.tables();
            tables.stay(key).ok_or_else(gone)?.record.clone()
        };
        let plan = self.port_plan(&record);
        let (tap, copy) = self
            .open_tap(&record, &plan, &pinned, interface, take_over)
            .await?;
        let interface = tap.name.clone();
        let added = self.control.add_port(plan, PortDevice::Tap(tap)).await;
        let (port, lost) = added.map_err(|e| {
            // One that was taken over outlives its descriptors otherwise.
            let _ = copy.set_persistent(false);
            Refusal::new(Kind::Impossible, e.to_string())
        })?;
        let watch = tokio::spawn(Arc::clone(self).wait_for_end(key.clone(), pinned.end, lost));
        let plugged = Plugged {
            port,
            tap: copy,
            watch: watch.abort_handle(),
        };
        if !self.tables().plug(key, plugged, interface) {
            // It was detached meanwhile, when there was nothing yet to take out.
            watch.abort();
            let _ = self.control.remove_port(port).await;
            return Err(gone());
        }
        let opened = self.open_for(key, guests(&record), specs).await?;
        opened.ok_or_else(gone)?;
        {
            let mut tables = self.tables();
            let stay = tables.stay(key).ok_or_else(gone)?;
            self.names.announce(&stay.record);
            self.changed(&mut tables);
        }
        let known = self.save().await;
        let mut tables = self.tables();
        let stay = tables.stay(key).ok_or_else(gone)?;
        // What whoever comes after us knows nothing of must not outlive us.
        match known.then(|| stay.keep()).flatten() {
            Some(Err(error)) => Err(internal(&error)),
            _ => Ok(()),
        }
    }

    /// Refuses `count` ports of the host on an internal network. Docker takes such a wish and does
    /// nothing about it; whoever has it is better told so.
    fn may_open(&self, count: usize) -> Result<(), Refusal> {
        if count == 0 || !self.definition.internal {
            return Ok(());
        }
        let text = format!(
            "the network `{}` is internal: no port of the host leads into it. Publish on another network that the container is on as well, or make this one without --internal",
            self.definition.name
        );
        Err(Refusal::new(Kind::Impossible, text))
    }

    /// Notes that these ports lead to the container; `false` if it has left.
    fn enter_ports(&self, key: &Key, opened: &[Opened]) -> bool {
        let mut tables = self.tables();
        let Some(stay) = tables.stay(key) else {
            return false;
        };
        stay.add_ports(opened.to_vec());
        self.changed(&mut tables);
        true
    }

    /// The TAP, and a copy of its descriptor.
    async fn open_tap(
        &self,
        record: &Record,
        plan: &PortPlan,
        pinned: &Pinned,
        interface: String,
        take_over: bool,
    ) -> Result<(Tap, TapQueue), Refusal> {
        let mut config = self.config.interface(plan);
        if self.definition.internal {
            config.gateways.clear();
        }
        let mut request = TapRequest::new(interface, record.mac, config);
        request.take_over = take_over;
        let tap = self.ns_helper.open(pinned.net.as_fd(), &request).await;
        let tap = tap.map_err(|error| of_open(&error))?;
        let copy = tap.queues.first().map(|queue| queue.as_fd());
        let copy = copy.ok_or_else(|| internal(&"the TAP has no queue"))?;
        let copy = copy.try_clone_to_owned().map_err(|e| internal(&e))?;
        Ok((tap, TapQueue::from(copy)))
    }

    /// Takes the container out when it has ended, or its device is lost.
    async fn wait_for_end(self: Arc<Self>, key: Key, end: End, lost: PortEnd) {
        let why = tokio::select! {
            () = end.wait() => "it has ended".to_owned(),
            reason = lost => reason,
        };
        // Whoever serves the network next takes up those that are there when it stops.
        if why != STOPPED {
            self.leave(&key, &why).await;
        }
    }

    pub(super) fn port_plan(&self, record: &Record) -> PortPlan {
        PortPlan {
            mac: Some(MacAddr(record.mac)),
            ipv4: record.ipv4,
            ipv6: record.ipv6,
            hostname: Some(record.name.clone()),
            spoof_protection: true,
            isolated: self.definition.isolate,
        }
    }

    /// Takes up those that a process before this one has left behind.
    pub(super) async fn restore(self: &Arc<Self>) {
        let mut restored = JoinSet::new();
        let left = state::load(self.state.path());
        let by_name = left
            .iter()
            .map(|record| (record.name.clone(), record.clone()));
        self.tables().returning = by_name.collect();
        for record in left {
            let hub = Arc::clone(self);
            restored.spawn(async move {
                let name = record.name.clone();
                match hub.restore_one(record).await {
                    Ok(()) => tracing::info!(container = name, "is taken up again"),
                    Err(why) => tracing::warn!(container = name, why, "is not taken up again"),
                }
                hub.tables().returning.remove(&name);
            });
        }
        // Each has told its own failure.
        while restored.join_next().await.is_some() {}
        {
            let mut tables = self.tables();
            // One whose task has panicked is given up like the others that failed.
            tables.returning.clear();
            let present: Vec<String> = tables.stays.keys().cloned().collect();
            tables
                .ipam
                .release_absent(|name| present.iter().any(|p| p == name));
            self.changed(&mut tables);
        }
        self.save().await;
    }

    async fn restore_one(self: &Arc<Self>, record: Record) -> Result<(), String> {
        if let Life::Machine { address } = record.life.clone() {
            return self.restore_machine(record, &address).await;
        }
        let pinned = Pinned::again(&record)?;
        let (interface, ports) = (record.interface.clone(), record.ports.clone());
        let key = self.reenter(record)?;
        if let Err(refusal) = self.join(&key, pinned, interface, true, &[]).await {
            self.leave(&key, "it could not join again").await;
            return Err(refusal.message);
        }
        self.reopen_all(&key, ports).await;
        Ok(())
    }

    /// Takes name and addresses of a record again; its ports are still to be opened.
    pub(super) fn reenter(&self, record: Record) -> Result<Key, String> {
        let mut tables = self.tables();
        if tables.stays.contains_key(&record.name) {
            return Err("another container has its name now".to_owned());
        }
        let wanted = Wanted {
            v4: record.ipv4,
            v6: record.ipv6,
            mac: Some(MacAddr(record.mac)),
        };
        let lease = tables.ipam.lease(&record.name, wanted);
        lease.map_err(|error| error.to_string())?;
        let ports = Vec::new();
        Ok(tables.enter(Record { ports, ..record }))
    }

    /// Opens ports again that were open before.
    pub(super) async fn reopen_all(&self, key: &Key, ports: Vec<Port>) {
        if let Err(error) = self.may_open(ports.len()) {
            // It was another network when they were opened.
            return tracing::warn!(container = key.name, %error, "its published ports are lost");
        }
        for port in ports {
            if let Err(error) = self.reopen(key, port).await {
                tracing::warn!(container = key.name, %error, "a published port is lost");
            }
        }
    }

    async fn reopen(&self, key: &Key, port: Port) -> Result<(), cnet_dataplane::PublishError> {
        let publish = Publish {
            protocol: match port.udp {
                true => Protocol::Udp,
                false => Protocol::Tcp,
            },
            host: port.host,
            guest: port.container,
        };
        let id = self.control.publish(publish).await?;
        let opened = [Opened {
            id,
            publish,
            chosen: false,
        }];
        if !self.enter_ports(key, &opened) {
            published::close(&self.control, &opened).await;
        }
        Ok(())
    }

    /// Opens ports that lead to the container, all or none; `None` if it has left meanwhile.
    pub(super) async fn open_for(
        &self,
        key: &Key,
        guests: Guests,
        specs: &[PublishSpec],
    ) -> Result<Option<Vec<Opened>>, Refusal> {
        let mut opened = Vec::new();
        for spec in specs {
            match published::open(&self.control, guests, spec).await {
                Ok(more) => opened.extend(more),
                Err(error) => {
                    published::close(&self.control, &opened).await;
                    return Err(of_publish(&error));
                }
            }
        }
        if !self.enter_ports(key, &opened) {
            // What was opened after it left would lead to the next one of its address.
            published::close(&self.control, &opened).await;
            return Ok(None);
        }
        Ok(Some(opened))
    }

    /// Opens ports for a container that is there.
    pub(super) async fn publish(&self, ports: &PublishPorts) -> Result<Published, Refusal> {
        let specs: Vec<PublishSpec> = read_specs(&ports.ports)?;
        self.may_open(specs.len())?;
        let (key, guests) = {
            let tables = self.tables();
            let (key, stay) = tables.find(&ports.container)?;
            (key, guests(&stay.record))
        };
        let opened = self.open_for(&key, guests, &specs).await?;
        let opened = opened
            .ok_or_else(|| Refusal::new(Kind::NotFound, "the container has left meanwhile"))?;
        self.save().await;
        let shown = opened.iter().map(|port| port_of(&port.publish));
        Ok(Published {
            ports: shown.map(super::answers::port).collect(),
        })
    }

    /// Closes those ports of a container that fit.
    pub(super) async fn unpublish(&self, ports: &PublishPorts) -> Result<Published, Refusal> {
        let specs = read_specs(&ports.ports)?;
        let closed = {
            let mut tables = self.tables();
            let (key, _) = tables.find(&ports.container)?;
            let closed = tables.stay(&key).map(|stay| stay.take_ports(&specs));
            self.changed(&mut tables);
            closed.unwrap_or_default()
        };
        if closed.is_empty() {
            let text = format!(
                "`{}` has no such published port; `cnet ps` shows those it has",
                ports.container
            );
            return Err(Refusal::new(Kind::NotFound, text));
        }
        published::close(&self.control, &closed).await;
        self.save().await;
        let shown = closed.iter().map(|port| port_of(&port.publish));
        Ok(Published {
            ports: shown.map(super::answers::port).collect(),
        })
    }
}

fn read_specs(texts: &[String]) -> Result<Vec<PublishSpec>, Refusal> {
    texts.iter().map(|text| read_spec(text)).collect()
}

impl super::hub::Stay {
    pub(super) fn add_ports(&mut self, opened: Vec<Opened>) {
        let ports = opened.iter().map(|port| port_of(&port.publish));
        self.record.ports.extend(ports);
        self.opened.extend(opened);
    }

    /// Takes out the ports that one of `specs` means: a host's address or port that is not said
    /// means any.
    fn take_ports(&mut self, specs: &[PublishSpec]) -> Vec<Opened> {
        let fits = |publish: &Publish| specs.iter().any(|spec| means(spec, publish));
        let (closed, kept) = std::mem::take(&mut self.opened)
            .into_iter()
            .partition(|port| fits(&port.publish));
        self.opened = kept;
        self.record.ports = self.opened.iter().map(|p| port_of(&p.publish)).collect();
        closed
    }
}

/// Whether `publish` is one of the ports that `spec` stands for.
fn means(spec: &PublishSpec, publish: &Publish) -> bool {
    spec.protocol == publish.protocol
        && spec.host_ip.is_none_or(|host| host == publish.host.ip())
        && spec.pairs().any(|pair| {
            pair.container == publish.guest.port()
                && pair.host.is_none_or(|port| port == publish.host.port())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_checked_before_anything_is_done() {
        let refused = |attach: Attach| Wish::read(attach).map(drop).unwrap_err();
        let kinds = [
            Attach {
                name: Some("-x".to_owned()),
                ..Attach::default()
            },
            Attach {
                aliases: vec!["a b".to_owned()],
                ..Attach::default()
            },
            Attach {
                aliases: vec!["a".to_owned(); MAX_ALIASES + 1],
                ..Attach::default()
            },
            Attach {
                id: Some("abc".to_owned()),
                ..Attach::default()
            },
            Attach {
                mac: Some("02:00:00".to_owned()),
                ..Attach::default()
            },
            Attach {
                publish: vec!["0:80".to_owned()],
                ..Attach::default()
            },
        ]
        .map(|attach| refused(attach).kind);
        assert_eq!(kinds, [Kind::Invalid; 6]);
        let wish = Wish::read(Attach {
            mac: Some("2:42:A:58:0:2".to_owned()),
            ..Attach::default()
        })
        .unwrap();
        assert_eq!(wish.id.len(), 64);
        assert_eq!(wish.interface, "eth%d");
        assert_eq!(wish.wanted.mac, Some(MacAddr([2, 0x42, 10, 0x58, 0, 2])));
    }

    #[test]
    fn ports_are_meant_by_what_is_said_of_them() {
        let publish = Publish {
            protocol: Protocol::Tcp,
            host: "0.0.0.0:8080".parse().unwrap(),
            guest: "10.88.0.2:80".parse().unwrap(),
        };
        let meant = |text: &str| means(&text.parse().unwrap(), &publish);
        assert!(meant("80") && meant("8080:80") && meant("0.0.0.0:8080:80"));
        assert!(meant("8079-8081:79-81"));
        assert!(!meant("80/udp") && !meant("8081:80") && !meant("127.0.0.1:8080:80"));
        assert!(!meant("8080:81") && !meant("8080"));
    }
}
