//! How a container leaves: its addresses and names first, then its interface.

use std::sync::Arc;

use cnet::control::Event;
use tokio::task::AbortHandle;

use super::table::Member;
use super::{Link, MemberKey, Members, routing};

/// Takes a container out. Nothing happens if it has left already.
pub(super) async fn leave(members: &Members, key: &MemberKey, why: &str) {
    let member = {
        let mut table = members.table();
        if table.member(key).is_none() {
            return;
        }
        let Some(member) = table.members.remove(&key.name) else {
            return;
        };
        table.ipam.release(&key.name);
        members.names.withdraw(&member.record);
        if matches!(member.link, Link::Tap(_)) {
            table.leaving.insert(key.number, member.record.clone());
        }
        members.changed(&mut table);
        if member.announced {
            // Under the lock, so that it is told before the next one of that name joins.
            members.events.tell(&Event::Left {
                id: member.record.id.clone(),
                name: key.name.clone(),
                why: why.to_owned(),
            });
        }
        member
    };
    tracing::info!(container = key.name, why, "leaves");
    let watch = unplug(members, member).await;
    {
        let mut table = members.table();
        if table.leaving.remove(&key.number).is_some() {
            members.changed(&mut table);
        }
    }
    // A failure is logged, and tried again.
    let _ = members.save().await;
    if let Some(watch) = watch {
        // Last of all, because it may be the very task that this runs in.
        watch.abort();
    }
}

/// Takes what has left out of the dataplane; gives the task that waited for its end.
async fn unplug(members: &Members, member: Member) -> Option<AbortHandle> {
    let link = match member.link {
        Link::Joining => return None,
        Link::Vm(vm) => {
            vm.end().await;
            members.instance.forwards().close(&member.opened).await;
            return None;
        }
        Link::Tap(link) => link,
    };
    // Its published ports close with the port.
    let _ = members.instance.leave(link.port).await;
    routing::remove(members, link.routing.as_ref()).await;
    // The last descriptor is closed here: the kernel takes its time to end an interface, and the
    // worker has none to lose.
    let tap = link.tap;
    let closed = tokio::task::spawn_blocking(move || {
        // It fails if the interface is gone already.
        let _ = tap.set_persistent(false);
        drop(tap);
    });
    let _ = closed.await;
    Some(link.watch)
}

/// Takes all containers out, and waits for those that are leaving already.
pub(crate) async fn leave_all(members: &Arc<Members>) {
    let mut changes = members.changes();
    loop {
        changes.borrow_and_update();
        let next = members.table().members().next().map(Member::key);
        match next {
            Some(key) => leave(members, &key, "the network is stopped").await,
            None if members.is_empty() => return,
            // The sender is the members' own.
            None => {
                let _ = changes.changed().await;
            }
        }
    }
}
