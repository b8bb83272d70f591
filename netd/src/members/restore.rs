//! How members are taken up again that a process before this one has left behind.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::join::{self, Interface};
use super::{MemberKey, Members, auto, leave, publish, vm};
use crate::ipam::AddressRequest;
use crate::journal::{self, Liveness, Record};

/// Takes up all that the journal lists and that are still there.
pub(crate) async fn restore(members: &Arc<Members>) {
    let mut restored = JoinSet::new();
    let left = journal::load(members.journal.path());
    let by_name = left
        .iter()
        .map(|record| (record.name.clone(), record.clone()));
    members.table().returning = by_name.collect();
    for record in left {
        let members = Arc::clone(members);
        restored.spawn(async move {
            let name = record.name.clone();
            match restore_one(&members, record).await {
                Ok(()) => tracing::info!(container = name, "is taken up again"),
                Err(why) => tracing::warn!(container = name, why, "is not taken up again"),
            }
            members.table().returning.remove(&name);
        });
    }
    // Each has told its own failure.
    while restored.join_next().await.is_some() {}
    {
        let mut table = members.table();
        // One whose task has panicked is given up like the others that failed.
        table.returning.clear();
        let present: Vec<String> = table.members.keys().cloned().collect();
        table
            .ipam
            .release_absent(|name| present.iter().any(|p| p == name));
        members.changed(&mut table);
    }
    // A failure is logged, and tried again.
    let _ = members.save().await;
}

async fn restore_one(members: &Arc<Members>, record: Record) -> Result<(), String> {
    let (addresses, ports) = (publish::addresses(&record), record.ports.clone());
    let (key, joined) = match record.liveness.clone() {
        Liveness::Vm { address } => {
            let key = reenter(members, record)?;
            let joined = vm::plug_in(members, &key, &address, &[]).await;
            (key, joined)
        }
        _ => {
            let pinned = members.host.pin_again(&record)?;
            let key = reenter(members, record)?;
            let joined = join::plug_in(members, &key, pinned, Interface::TakeOver, &[]).await;
            (key, joined)
        }
    };
    if let Err(refusal) = joined {
        leave::leave(members, &key, "it could not join again").await;
        return Err(refusal.message);
    }
    publish::reopen_all(members, &key, addresses, ports).await;
    auto::start(members, &key, true);
    Ok(())
}

/// Takes name and addresses of a record again; its ports are still to be opened.
fn reenter(members: &Members, record: Record) -> Result<MemberKey, String> {
    let mut table = members.table();
    if table.members.contains_key(&record.name) {
        return Err("another container has its name now".to_owned());
    }
    let request = AddressRequest {
        v4: record.ipv4,
        v6: record.ipv6,
        mac: Some(record.mac),
    };
    let lease = table.ipam.lease(&record.name, request);
    lease.map_err(|error| error.to_string())?;
    let ports = Vec::new();
    Ok(table.enter(Record { ports, ..record }))
}
