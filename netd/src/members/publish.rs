//! Published ports of members: opened, closed, and opened again.

use cnet::PublishSpec;
use cnet::control::{Kind, PublishPorts, Published, PublishedPort, Refusal};
use cnet::definition::Definition;
use cnet_dataplane::{Publish, PublishError};

use super::table::published;
use super::{MemberKey, Members};
use crate::journal::Record;
use crate::published::{Guests, OpenError, Opened};

/// Where a container's published ports lead.
pub(super) fn guests(record: &Record) -> Guests {
    Guests {
        ipv4: record.ipv4,
        ipv6: record.ipv6,
    }
}

fn refusal(error: &OpenError) -> Refusal {
    let kind = match error.is_conflict() {
        true => Kind::Conflict,
        false => Kind::Impossible,
    };
    Refusal::new(kind, error.to_string())
}

/// Refuses `count` ports of the host on an internal network. Docker accepts such ports
/// and opens none; an error is better.
pub(super) fn check_way_in(definition: &Definition, count: usize) -> Result<(), Refusal> {
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
    let (key, guests) = {
        let table = members.table();
        let member = table.find(&ports.container)?;
        (member.key(), guests(&member.record))
    };
    let opened = open_for(members, &key, guests, &ports.ports).await?;
    let opened =
        opened.ok_or_else(|| Refusal::new(Kind::NotFound, "the container has left meanwhile"))?;
    members.save().await;
    Ok(Published {
        ports: opened.iter().map(published).collect(),
    })
}

/// Closes those ports of a container that fit.
pub(super) async fn unpublish(
    members: &Members,
    ports: &PublishPorts,
) -> Result<Published, Refusal> {
    let fits = |opened: &Opened| ports.ports.iter().any(|spec| means(spec, &opened.publish));
    let closed = {
        let mut table = members.table();
        let key = table.find(&ports.container)?.key();
        let closed = table.member(&key).map(|member| member.take_ports(fits));
        members.changed(&mut table);
        closed.unwrap_or_default()
    };
    if closed.is_empty() {
        let text = format!(
            "`{}` has no such published port; `cnet ps` shows those it has",
            ports.container
        );
        return Err(Refusal::new(Kind::NotFound, text));
    }
    members.instance.forwards().close(&closed).await;
    members.save().await;
    Ok(Published {
        ports: closed.iter().map(published).collect(),
    })
}

/// Opens ports that lead to the container, all or none; `None` if it has left meanwhile.
pub(super) async fn open_for(
    members: &Members,
    key: &MemberKey,
    guests: Guests,
    specs: &[PublishSpec],
) -> Result<Option<Vec<Opened>>, Refusal> {
    let forwards = members.instance.forwards();
    let mut opened = Vec::new();
    for spec in specs {
        match forwards.open(guests, spec).await {
            Ok(more) => opened.extend(more),
            Err(error) => {
                forwards.close(&opened).await;
                return Err(refusal(&error));
            }
        }
    }
    if !enter(members, key, &opened) {
        // What was opened after it left would lead to the next one of its address.
        forwards.close(&opened).await;
        return Ok(None);
    }
    Ok(Some(opened))
}

/// Notes that these ports lead to the container; `false` if it has left.
fn enter(members: &Members, key: &MemberKey, opened: &[Opened]) -> bool {
    let mut table = members.table();
    let Some(member) = table.member(key) else {
        return false;
    };
    member.add_ports(opened.to_vec());
    members.changed(&mut table);
    true
}

/// Opens ports again that were open before.
pub(super) async fn reopen_all(members: &Members, key: &MemberKey, ports: Vec<PublishedPort>) {
    if let Err(error) = check_way_in(&members.definition, ports.len()) {
        // It was another network when they were opened.
        return tracing::warn!(container = key.name, %error, "its published ports are lost");
    }
    for port in ports {
        if let Err(error) = reopen(members, key, port).await {
            tracing::warn!(container = key.name, %error, "a published port is lost");
        }
    }
}

async fn reopen(
    members: &Members,
    key: &MemberKey,
    port: PublishedPort,
) -> Result<(), PublishError> {
    let publish = Publish {
        protocol: port.protocol,
        host: port.host,
        guest: port.container,
    };
    let forwards = members.instance.forwards();
    let opened = [forwards.open_exactly(publish).await?];
    if !enter(members, key, &opened) {
        forwards.close(&opened).await;
    }
    Ok(())
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
    use cnet_wire::Protocol;

    use super::*;

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
