//! Members whose ports are published as they listen on them.

use std::sync::Arc;

use cnet_dataplane::{OpenForward, PortId};
use tokio::time::sleep;

use super::{MemberKey, Members, publish, routing};
use crate::auto_ports::{AutoPorts, Changes, INTERVAL};
use crate::forward::ContainerAddresses;

/// Follows what a member listens on, if that was asked for, until it leaves. Ports that it has from
/// before a crash may be such.
pub(super) fn start(members: &Arc<Members>, key: &MemberKey, is_restored: bool) {
    let (auto, before) = {
        let mut table = members.table();
        let Some(member) = table.member(key) else {
            return;
        };
        let before = match is_restored {
            true => member.opened.clone(),
            false => Vec::new(),
        };
        (member.record.publish_auto.clone(), before)
    };
    if let Some(auto) = auto {
        let ports = AutoPorts::new(auto, before);
        tokio::spawn(follow(Arc::clone(members), key.clone(), ports));
    }
}

async fn follow(members: Arc<Members>, key: MemberKey, mut ports: AutoPorts) {
    let control = members.instance.control();
    while let Some((at, opened)) = find(&members, &key) {
        if let Some(changes) = ports.step(&control, at, opened).await {
            note(&members, &key, changes).await;
        }
        sleep(INTERVAL).await;
    }
}

/// Where a member is, and its open ports; `None` once it has left.
fn find(
    members: &Members,
    key: &MemberKey,
) -> Option<((PortId, ContainerAddresses), Vec<OpenForward>)> {
    let mut table = members.table();
    let member = table.member(key)?;
    let addresses = publish::addresses(&member.record);
    Some(((member.port()?, addresses), member.opened.clone()))
}

/// Has others see what was changed.
async fn note(members: &Members, key: &MemberKey, changes: Changes) {
    let Changes { opened, closed } = changes;
    if opened.is_empty() && closed.is_empty() {
        return;
    }
    if !publish::enter(members, key, &opened) {
        // What was opened after it left would lead to the next one of its address.
        members.instance.forwards().close(&opened).await;
        return;
    }
    if let Some(member) = members.table().member(key) {
        member.take_ports(|open| closed.contains(&open.id));
    }
    routing::follow_ports(members, key).await;
    // A failure is logged, and tried again.
    let _ = members.save().await;
}
