//! Routes by source of members that are on several networks: what answers by a member's address here
//! leaves by its interface here ([`cnet_tap::netif::policy_routing`]).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cnet_dataplane::{NetworkConfig, PortPlan};
use cnet_tap::netif::policy_routing::{RoutesBySource, port_ranges};
use cnet_wire::Protocol;
use tokio::sync::Mutex;

use super::table::{InterfaceRoutes, Link, Routing};
use super::{MemberKey, Members};

/// Those of an interface in the namespace `net` that was configured by `plan`.
pub(super) fn of_interface(
    net: OwnedFd,
    ifindex: u32,
    config: &NetworkConfig,
    plan: &PortPlan,
) -> Routing {
    let interface = config.interface(plan);
    let addresses = interface.addresses.into_iter().map(|(a, _)| a);
    Arc::new(Mutex::new(InterfaceRoutes {
        net,
        ifindex,
        routes: RoutesBySource {
            addresses: addresses.collect(),
            gateways: interface.gateways,
            udp_ports: Vec::new(),
        },
    }))
}

/// Removes those of a member that leaves.
pub(super) async fn remove(members: &Members, routing: Option<&Routing>) {
    let Some(routing) = routing else {
        return;
    };
    let inner = routing.lock().await;
    let nothing = RoutesBySource::default();
    let removed = members
        .ns_helper
        .set_routes(inner.net.as_fd(), inner.ifindex, &nothing);
    // What was not removed goes with the namespace, or with the next interface that joins there.
    let _ = removed.await;
}

/// Has what the member's UDP servers send from published ports leave by its interface. To be called
/// after its ports have changed. A failure is logged: all else goes on.
pub(super) async fn follow_ports(members: &Members, key: &MemberKey) {
    let Some(routing) = routing_of(members, key) else {
        return;
    };
    // One after the other, each with the ports that there are then.
    let mut inner = routing.lock().await;
    let Some(udp_ports) = udp_ports(members, key) else {
        return;
    };
    if inner.routes.udp_ports == udp_ports {
        return;
    }
    inner.routes.udp_ports = udp_ports;
    let set = members
        .ns_helper
        .set_routes(inner.net.as_fd(), inner.ifindex, &inner.routes);
    if let Err(error) = set.await {
        let container = key.name.as_str();
        tracing::warn!(container, %error, "UDP servers may answer by another network");
    }
}

fn routing_of(members: &Members, key: &MemberKey) -> Option<Routing> {
    let mut table = members.table();
    match &table.member(key)?.link {
        Link::Tap(link) => link.routing.clone(),
        Link::Joining | Link::Vm(_) => None,
    }
}

/// The ports of UDP that lead to the member, as it sees them.
fn udp_ports(members: &Members, key: &MemberKey) -> Option<Vec<(u16, u16)>> {
    let mut table = members.table();
    let opened = &table.member(key)?.opened;
    let rules = opened.iter().map(|open| &open.rule);
    let udp = rules.filter(|rule| rule.protocol == Protocol::Udp);
    Some(port_ranges(udp.map(|rule| rule.container.port).collect()))
}
