//! Published ports of members: opened, closed, and opened again.

use cnet::PublishSpec;
use cnet::control::{Kind, PublishPorts, Published, PublishedPort, Refusal};
use cnet::definition::Definition;
use cnet_dataplane::OpenForward;

use super::{MemberKey, Members, routing};
use crate::forward::{ContainerAddresses, OpenError, means, published, rules_of};
use crate::journal::Record;

/// Where a container's published ports lead.
pub(super) fn addresses(record: &Record) -> ContainerAddresses {
    ContainerAddresses {
        ipv4: record.ipv4,
        ipv6: record.ipv6,
    }
}

fn refusal(error: &OpenError) -> Refusal {
    let kind = match error.conflict().is_some() {
        true => Kind::Conflict,
        false => Kind::Impossible,
    };
    Refusal::new(kind, error.to_string())
}

/// Refuses `count` ports of the host on an internal network. Docker accepts such ports
/// and opens none; an error is better.
pub(super) fn check_way_in(definition: &Definition, count: usize) -> Result<(), Refusal> {
    if count > 0 && definition.lan.is_some() {
        let text = format!(
            "containers of the network `{}` are on the host's LAN and are reached at their own addresses: leave -p out",
            definition.name
        );
        return Err(Refusal::new(Kind::Impossible, text));
    }
    if count == 0 || !definition.internal {
        return Ok(());
    }
    let text = format!(
        "the network `{}` is internal: no port of the host leads into it. Publish on another network that the container is on as well, or make this one without --internal",
        definition.name
    );
    Err(Refusal::new(Kind::Impossible, text))
}

/// Opens ports for a container that is there.
pub(super) async fn publish(members: &Members, ports: &PublishPorts) -> Result<Published, Refusal> {
    check_way_in(&members.definition, ports.ports.len())?;
    let (key, addresses) = {
        let table = members.table();
        let member = table.find(&ports.container)?;
        (member.key(), addresses(&member.record))
    };
    let opened = open_for(members, &key, addresses, &ports.ports).await?;
    let opened =
        opened.ok_or_else(|| Refusal::new(Kind::NotFound, "the container has left meanwhile"))?;
    routing::follow_ports(members, &key).await;
    if let Err(error) = members.save().await {
        let is_new = |open: &OpenForward| opened.iter().any(|new| new.id == open.id);
        if let Some(member) = members.table().member(&key) {
            member.take_ports(is_new);
        }
        members.instance.forwards().close(&opened).await;
        routing::follow_ports(members, &key).await;
        return Err(error.into());
    }
    Ok(Published {
        ports: opened.iter().flat_map(published).collect(),
    })
}

/// Closes those ports of a container that fit.
pub(super) async fn unpublish(
    members: &Members,
    ports: &PublishPorts,
) -> Result<Published, Refusal> {
    let fits = |open: &OpenForward| ports.ports.iter().any(|spec| means(spec, open));
    let (key, closed) = {
        let mut table = members.table();
        let key = table.find(&ports.container)?.key();
        let closed = table.member(&key).map(|member| member.take_ports(fits));
        members.changed(&mut table);
        (key, closed.unwrap_or_default())
    };
    if closed.is_empty() {
        let text = format!(
            "`{}` has no such published port; `cnet ps` shows those it has",
            ports.container
        );
        return Err(Refusal::new(Kind::NotFound, text));
    }
    members.instance.forwards().close(&closed).await;
    routing::follow_ports(members, &key).await;
    // A failure is logged, and tried again.
    let _ = members.save().await;
    Ok(Published {
        ports: closed.iter().flat_map(published).collect(),
    })
}

/// Opens ports that lead to the container, all or none; `None` if it has left meanwhile.
pub(super) async fn open_for(
    members: &Members,
    key: &MemberKey,
    addresses: ContainerAddresses,
    specs: &[PublishSpec],
) -> Result<Option<Vec<OpenForward>>, Refusal> {
    let forwards = members.instance.forwards();
    let opened = forwards.open(addresses, specs).await;
    let opened = opened.map_err(|error| refusal(&error))?;
    if !enter(members, key, &opened) {
        // What was opened after it left would lead to the next one of its address.
        forwards.close(&opened).await;
        return Ok(None);
    }
    Ok(Some(opened))
}

/// Notes that these ports lead to the container; `false` if it has left.
pub(super) fn enter(members: &Members, key: &MemberKey, opened: &[OpenForward]) -> bool {
    let mut table = members.table();
    let Some(member) = table.member(key) else {
        return false;
    };
    member.add_ports(opened.to_vec());
    members.changed(&mut table);
    true
}

/// Opens ports again that were open before.
pub(super) async fn reopen_all(
    members: &Members,
    key: &MemberKey,
    addresses: ContainerAddresses,
    ports: Vec<PublishedPort>,
) {
    if let Err(error) = check_way_in(&members.definition, ports.len()) {
        // It was another network when they were opened.
        return tracing::warn!(container = key.name, %error, "its published ports are lost");
    }
    let forwards = members.instance.forwards();
    let results = forwards.open_each(rules_of(addresses, &ports));
    let results = match results.await {
        Ok(results) => results,
        Err(error) => {
            return tracing::warn!(container = key.name, %error, "its published ports are lost");
        }
    };
    let (opened, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    for error in failed.into_iter().filter_map(Result::err) {
        tracing::warn!(container = key.name, %error, "a published port is lost");
    }
    let opened: Vec<OpenForward> = opened.into_iter().flatten().collect();
    if !enter(members, key, &opened) {
        forwards.close(&opened).await;
    }
    routing::follow_ports(members, key).await;
}
