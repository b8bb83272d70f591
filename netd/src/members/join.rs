//! How a container joins: it is checked, its name and addresses are taken, its interface is made
//! and plugged in, and its ports are opened.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cnet::PublishSpec;
use cnet::control::{Attach, Attached, Event, Kind, MAX_LABEL, MAX_LABELS, Refusal};
use cnet::definition::{Definition, DefinitionError, SHORT_ID, check_name, is_id, random_id};
use cnet_dataplane::{Access, PortDevice, PortEnd, PortPlan, STOPPED};
use cnet_tap::TapQueue;
use cnet_tap::helper::{OpenedTap, RouteState, TapRequest};

use super::{MemberKey, Members, TapLink, auto, leave, policy, publish, routing};
use crate::forward::ContainerAddresses;
use crate::ipam::AddressRequest;
use crate::journal::{Liveness, Record};
use crate::liveness::{End, Pinned};
use crate::report;

/// The interface's name unless another is asked for: the first free number.
const INTERFACE: &str = "eth%d";

/// The most further names a container may have.
const MAX_ALIASES: usize = 64;

/// Whether an interface is made, or one that another process has made is taken over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    Make,
    TakeOver,
}

/// Lets a container join.
pub(super) async fn join(
    members: &Arc<Members>,
    attach: Attach,
    descriptors: Vec<OwnedFd>,
) -> Result<Attached, Refusal> {
    let pinned = members
        .host
        .pin(descriptors, attach.path.as_deref(), attach.member)?;
    let key = reserve(members, &attach, pinned.liveness.clone(), pinned.namespace)?;
    let joined = plug_in(members, &key, pinned, Interface::Make, &attach.publish).await;
    if let Err(refusal) = joined {
        leave::leave(members, &key, "it could not join").await;
        return Err(refusal);
    }
    auto::start(members, &key, false);
    attached(members, &key)
}

/// What a container that has joined is told.
pub(super) fn attached(members: &Members, key: &MemberKey) -> Result<Attached, Refusal> {
    let container = {
        let mut table = members.table();
        let member = table.member(key).ok_or_else(|| {
            Refusal::new(Kind::Impossible, "the container ended while it was joining")
        })?;
        report::container(&members.config, &member.record)
    };
    tracing::info!(container = key.name, "joins");
    let (v4, v6) = members.definition.gateways();
    let gateways = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
    Ok(Attached::new(container, gateways.collect()))
}

fn invalid(text: impl ToString) -> Refusal {
    Refusal::new(Kind::Invalid, text.to_string())
}

pub(super) fn gone() -> Refusal {
    Refusal::new(Kind::Impossible, "the container was detached meanwhile")
}

/// Checks what the types of `attach` do not, and gives the container's id.
fn check(attach: &Attach) -> Result<String, Refusal> {
    if attach.aliases.len() > MAX_ALIASES {
        return Err(invalid(format!(
            "a container has at most {MAX_ALIASES} aliases"
        )));
    }
    let long = |text: &String| text.len() > MAX_LABEL;
    let mut labels = attach.labels.iter();
    if attach.labels.len() > MAX_LABELS || labels.any(|(k, v)| k.is_empty() || long(k) || long(v)) {
        return Err(invalid(format!(
            "a container has at most {MAX_LABELS} labels, with keys and values of {MAX_LABEL} bytes"
        )));
    }
    for name in attach.name.iter().chain(&attach.aliases) {
        check_name(name).map_err(invalid)?;
    }
    match &attach.id {
        Some(id) if is_id(id) => Ok(id.to_ascii_lowercase()),
        Some(id) => Err(invalid(format!("`{id}` is no id of 64 hexadecimal digits"))),
        None => random_id().map_err(|e| Refusal::new(Kind::Internal, e.to_string())),
    }
}

/// Checks that there is a way to what a container that is to join this network may reach.
fn check_host_access(definition: &Definition, attach: &Attach) -> Result<(), Refusal> {
    match definition.internal && !attach.filter.host_access.is_none() {
        true => Err(invalid(DefinitionError::HostAccess)),
        false => Ok(()),
    }
}

/// Checks the DNS servers of a container that is to join this network.
fn check_dns(definition: &Definition, attach: &Attach) -> Result<(), Refusal> {
    if definition.internal && !attach.dns.is_empty() {
        let text =
            "an internal network asks no DNS servers, so a container on it cannot have its own";
        return Err(Refusal::new(Kind::Impossible, text));
    }
    match definition.own_dns_server(&attach.dns) {
        Some(address) => Err(invalid(DefinitionError::Dns(address))),
        None => Ok(()),
    }
}

/// Checks that the process is as confined as the container asks for.
fn check_sandbox(lacking: Option<&str>, attach: &Attach) -> Result<(), Refusal> {
    match lacking.filter(|_| attach.require_sandbox) {
        Some(lacking) => Err(Refusal::new(
            Kind::Impossible,
            format!("--require-sandbox was given, and {lacking}"),
        )),
        None => Ok(()),
    }
}

/// Takes name and addresses.
pub(super) fn reserve(
    members: &Members,
    attach: &Attach,
    liveness: Liveness,
    namespace: (u64, u64),
) -> Result<MemberKey, Refusal> {
    let id = check(attach)?;
    check_dns(&members.definition, attach)?;
    check_host_access(&members.definition, attach)?;
    check_sandbox(members.instance.sandbox_lacks(), attach)?;
    publish::check_way_in(&members.definition, attach.publish.len())?;
    let short = || id[..SHORT_ID].to_owned();
    let name = attach.name.clone().unwrap_or_else(short);
    let is_vm = matches!(liveness, Liveness::Vm { .. });
    if is_vm && attach.publish_auto.is_some() {
        let text = "a virtual machine cannot be asked what it listens on: publish its ports by their numbers";
        return Err(Refusal::new(Kind::Impossible, text));
    }
    let mut table = members.table();
    let is_it = |record: &Record| match is_vm {
        true => record.liveness == liveness,
        false => record.namespace == namespace,
    };
    if let Some(text) = table.clash(&name, &id, &is_it) {
        return Err(Refusal::new(Kind::Conflict, text));
    }
    let request = AddressRequest {
        v4: attach.ipv4,
        v6: attach.ipv6,
        mac: attach.mac,
    };
    let addresses = table.ipam.lease(&name, request)?;
    let interface = match is_vm {
        true => String::new(),
        false => attach.interface.clone().unwrap_or(INTERFACE.to_owned()),
    };
    Ok(table.enter(Record {
        id,
        name,
        aliases: attach.aliases.clone(),
        labels: attach.labels.clone(),
        liveness,
        namespace,
        interface,
        mac: addresses.mac,
        ipv4: addresses.v4,
        ipv6: addresses.v6,
        dns: attach.dns.clone(),
        ports: Vec::new(),
        publish_auto: attach.publish_auto.clone(),
        trust: attach.trust,
        filter: attach.filter.clone(),
    }))
}

/// Makes the interface, or takes it over, and plugs it in; then opens the ports.
pub(super) async fn plug_in(
    members: &Arc<Members>,
    key: &MemberKey,
    pinned: Pinned,
    interface: Interface,
    specs: &[PublishSpec],
) -> Result<(), Refusal> {
    let mut record = {
        let mut table = members.table();
        table.member(key).ok_or_else(gone)?.record.clone()
    };
    let mut plan = planned(members, key, &record);
    let (opened, copy) = open_tap(members, &record, &plan, &pinned, interface).await?;
    let OpenedTap {
        tap,
        diagnostics,
        routes,
    } = opened;
    if tap.lacks_ipv6 {
        join_without_ipv6(members, key)?;
        (record.ipv6, plan.ipv6) = (None, None);
    }
    let name = tap.name.clone();
    let routing = (routes == RouteState::Made)
        .then(|| routing::of_interface(pinned.net, tap.ifindex, &members.config, &plan));
    let added = members
        .instance
        .join(plan, PortDevice::Tap(tap), None)
        .await;
    let (port, lost) = match added {
        Ok(added) => added,
        Err(error) => {
            // One that was taken over outlives its descriptors otherwise.
            let _ = copy.set_persistent(false);
            routing::remove(members, routing.as_ref()).await;
            return Err(Refusal::new(Kind::Impossible, error.to_string()));
        }
    };
    if let Some(diagnostics) = diagnostics {
        // Before its ports are opened.
        let control = members.instance.control();
        control.use_diagnostics(port, diagnostics);
    }
    let end = wait_for_end(Arc::clone(members), key.clone(), pinned.end, lost);
    let watch = tokio::spawn(end);
    let link = TapLink {
        port,
        tap: copy,
        watch: watch.abort_handle(),
        routing: routing.clone(),
    };
    if !members.table().plug(key, link, name) {
        // It was detached meanwhile, when there was nothing yet to take out.
        watch.abort();
        let _ = members.instance.leave(port).await;
        routing::remove(members, routing.as_ref()).await;
        return Err(gone());
    }
    begin(members, key, publish::addresses(&record), interface, specs).await
}

/// Opens the ports of a container that is plugged in, writes down that it is there, and tells others.
async fn begin(
    members: &Members,
    key: &MemberKey,
    addresses: ContainerAddresses,
    interface: Interface,
    specs: &[PublishSpec],
) -> Result<(), Refusal> {
    let opened = publish::open_for(members, key, addresses, specs).await?;
    opened.ok_or_else(gone)?;
    routing::follow_ports(members, key).await;
    let saved = members.save().await;
    if interface == Interface::Make {
        // What the next process knows nothing of must not outlive this one. One that is taken over
        // is in the file that told of it.
        saved?;
    }
    let kept = {
        let mut table = members.table();
        table.member(key).ok_or_else(gone)?.keep()
    };
    if let Some(Err(error)) = kept {
        return Err(Refusal::new(Kind::Internal, error.to_string()));
    }
    announce(members, key)
}

/// The container's namespace has IPv6 switched off: it has IPv4 alone.
fn join_without_ipv6(members: &Members, key: &MemberKey) -> Result<(), Refusal> {
    tracing::warn!(
        container = key.name,
        "IPv6 is switched off in its namespace (net.ipv6.conf.all.disable_ipv6): it joins with IPv4 alone"
    );
    let mut table = members.table();
    table.member(key).ok_or_else(gone)?.record.ipv6 = None;
    Ok(())
}

/// Tells others that the container has joined: DNS, and those who listen to events.
pub(super) fn announce(members: &Members, key: &MemberKey) -> Result<(), Refusal> {
    let mut table = members.table();
    let member = table.member(key).ok_or_else(gone)?;
    member.announced = true;
    members.names.announce(&member.record);
    let container = report::container(&members.config, &member.record);
    members.changed(&mut table);
    members.events.tell(&Event::Joined {
        container: Box::new(container),
    });
    Ok(())
}

/// The TAP with what came with it, and a copy of its descriptor.
async fn open_tap(
    members: &Members,
    record: &Record,
    plan: &PortPlan,
    pinned: &Pinned,
    interface: Interface,
) -> Result<(OpenedTap, TapQueue), Refusal> {
    let internal = |text: String| Refusal::new(Kind::Internal, text);
    let mut config = members.config.interface(plan);
    if members.definition.internal {
        config.gateways.clear();
    }
    let mut request = TapRequest::new(record.interface.clone(), record.mac.0, config);
    request.take_over = interface == Interface::TakeOver;
    let opened = members.ns_helper.open(pinned.net.as_fd(), &request);
    let opened = opened.await?;
    tell_of_routes(&record.name, opened.routes);
    let copy = opened.tap.queues.first().map(|queue| queue.as_fd());
    let copy = copy.ok_or_else(|| internal("the TAP has no queue".to_owned()))?;
    let copy = copy.try_clone_to_owned();
    let copy = copy.map_err(|e| internal(e.to_string()))?;
    Ok((opened, TapQueue::from(copy)))
}

/// Logs why a container on several networks has no routes by source.
fn tell_of_routes(container: &str, routes: RouteState) {
    match routes {
        RouteState::Needless | RouteState::Made => {}
        RouteState::LeftToContainer => tracing::info!(
            container,
            "it has routing rules of its own, so none are made: what it answers may leave by another network"
        ),
        RouteState::Failed => tracing::warn!(
            container,
            "no routing rules can be made: what it answers may leave by another network"
        ),
    }
}

/// Takes the container out when it has ended, or its device is lost.
async fn wait_for_end(members: Arc<Members>, key: MemberKey, end: End, lost: PortEnd) {
    let why = tokio::select! {
        () = end.wait(|path| members.host.identity(path)) => "it has ended".to_owned(),
        reason = lost => reason,
    };
    // The next process of the network takes up those that are there when this one stops.
    if why != STOPPED {
        leave::leave(&members, &key, &why).await;
    }
}

/// What the port of the member `key` is to be, which has this record.
fn planned(members: &Members, key: &MemberKey, record: &Record) -> PortPlan {
    let access = policy::access_at_join(members, &mut members.table(), key, record);
    port_plan(members, record, access)
}

/// What the container's port is to be.
pub(super) fn port_plan(
    members: &Members,
    record: &Record,
    access: Option<Arc<Access>>,
) -> PortPlan {
    PortPlan {
        mac: Some(record.mac),
        ipv4: record.ipv4,
        ipv6: record.ipv6,
        hostname: Some(record.name.clone()),
        spoof_protection: !(record.trust || members.definition.trust),
        isolated: members.definition.isolate,
        filter: crate::instance::peer_filter(&record.filter),
        access,
        ..PortPlan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_checked_before_anything_is_done() {
        let aliases = (0..=MAX_ALIASES).fold(Attach::new(), |attach, _| attach.alias("a"));
        for attach in [
            Attach::new().name("-x"),
            Attach::new().alias("a b"),
            Attach::new().id("abc"),
            aliases,
        ] {
            assert_eq!(check(&attach).unwrap_err().kind, Kind::Invalid);
        }
        assert!(is_id(&check(&Attach::new()).unwrap()));
        let id = check(&Attach::new().id("AB".repeat(32)));
        assert_eq!(id, Ok("ab".repeat(32)));
    }
}
