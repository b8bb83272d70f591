//! How a virtual machine joins, and how its QEMU comes and goes.
//!
//! # Theory of operation
//!
//! A VM is a member from when it is attached until it is detached, whether its QEMU runs or not:
//! name, addresses and published ports are its own for all that time. A task makes the socket and
//! plugs in each QEMU that connects there ([`Endpoint`]), one after the other. The dataplane closes
//! published ports with the port they lead to, so they are opened again when QEMU ends.
//!
//! # Invariants
//!
//! The task ends only by being told to, and has taken its port out then: after [`VmLink::end`]
//! nothing of the VM is left in the dataplane.

use std::sync::Arc;
use std::time::Duration;

use cnet::PublishSpec;
use cnet::control::{Attach, Attached, Kind, Refusal};
use cnet::vm::VmAddress;
use cnet_dataplane::{PortDevice, PortEnd, PortId, STOPPED};
use tokio::sync::oneshot;

use super::join::{announce, attached, port_plan, reserve};
use super::table::{Link, MemberKey, VmLink};
use super::{Members, leave, policy, publish};
use crate::journal::Liveness;
use crate::vm_endpoint::Endpoint;

/// How long to wait after a QEMU could not be plugged in.
const PLUG_INTERVAL: Duration = Duration::from_secs(1);

fn gone() -> Refusal {
    Refusal::new(Kind::Impossible, "the machine was detached meanwhile")
}

/// Lets a VM join.
pub(super) async fn join(
    members: &Arc<Members>,
    attach: Attach,
    address: VmAddress,
) -> Result<Attached, Refusal> {
    if attach.interface.is_some() || attach.path.is_some() || attach.member.is_some() {
        let text = "a virtual machine has neither a namespace, nor an interface to be named";
        return Err(Refusal::new(Kind::Invalid, text));
    }
    let liveness = Liveness::Vm {
        address: address.clone(),
    };
    let key = reserve(members, &attach, liveness, (0, 0))?;
    let joined = match plug_in(members, &key, &address, &attach.publish).await {
        Ok(()) => members.save().await.map_err(Refusal::from),
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = joined {
        leave::leave(members, &key, "it could not join").await;
        return Err(refusal);
    }
    attached(members, &key)
}

/// Makes its socket and opens its ports.
pub(super) async fn plug_in(
    members: &Arc<Members>,
    key: &MemberKey,
    address: &VmAddress,
    specs: &[PublishSpec],
) -> Result<(), Refusal> {
    let endpoint =
        Endpoint::open(address.clone(), Box::new(members.host.clone())).map_err(|error| {
            let text = format!("cannot make the socket of {address}: {error}");
            Refusal::new(Kind::Impossible, text)
        })?;
    let addresses = {
        let mut table = members.table();
        let member = table.member(key).ok_or_else(gone)?;
        let (stop, stopped) = oneshot::channel();
        let served = serve(Arc::clone(members), key.clone(), endpoint, stopped);
        member.link = Link::Vm(VmLink::new(stop, tokio::spawn(served)));
        publish::addresses(&member.record)
    };
    let opened = publish::open_for(members, key, addresses, specs).await?;
    opened.ok_or_else(gone)?;
    announce(members, key).map_err(|_| gone())
}

/// Plugs in one QEMU after the other, until `stopped`.
async fn serve(
    members: Arc<Members>,
    key: MemberKey,
    mut endpoint: Endpoint,
    mut stopped: oneshot::Receiver<()>,
) {
    let container = key.name.as_str();
    loop {
        let device = tokio::select! {
            _ = &mut stopped => return,
            device = endpoint.next() => device,
        };
        let plugged = match device {
            Ok(device) => plug(&members, &key, device).await,
            Err(error) => Err(error.to_string()),
        };
        let (port, end) = match plugged {
            Ok(plugged) => plugged,
            Err(error) => {
                tracing::warn!(container, error, "a machine cannot be plugged in");
                tokio::select! {
                    _ = &mut stopped => return,
                    () = tokio::time::sleep(PLUG_INTERVAL) => continue,
                }
            }
        };
        tracing::info!(container, "its machine runs");
        let reason = tokio::select! {
            _ = &mut stopped => {
                // It may have gone at the same moment.
                let _ = members.instance.leave(port).await;
                return;
            }
            reason = end => reason,
            () = endpoint.departed() => {
                let _ = members.instance.leave(port).await;
                "its socket is gone".to_owned()
            }
        };
        tracing::info!(container, reason, "its machine is gone");
        if reason == STOPPED || !reopen_for_next(&members, &key).await {
            return;
        }
    }
}

/// Opens the ports again that have closed with a QEMU's port; `false` if the VM was detached.
async fn reopen_for_next(members: &Members, key: &MemberKey) -> bool {
    let (addresses, ports) = {
        let mut table = members.table();
        let Some(member) = table.member(key) else {
            return false;
        };
        if let Link::Vm(vm) = &mut member.link {
            vm.port = None;
        }
        member.opened.clear();
        let record = member.record.clone();
        let ports = std::mem::take(&mut member.record.ports);
        let addresses = publish::addresses(&record);
        // A process that has to take it up after a crash meanwhile finds all of them.
        table.returning.insert(key.name.clone(), record);
        (addresses, ports)
    };
    publish::reopen_all(members, key, addresses, ports).await;
    {
        let mut table = members.table();
        table.returning.remove(&key.name);
        members.changed(&mut table);
    }
    // A failure is logged, and tried again.
    let _ = members.save().await;
    true
}

async fn plug(
    members: &Members,
    key: &MemberKey,
    device: PortDevice,
) -> Result<(PortId, PortEnd), String> {
    let plan = {
        let mut table = members.table();
        let record = table.member(key).ok_or("it was detached")?.record.clone();
        let access = policy::access_at_join(members, &mut table, key, &record);
        port_plan(members, &record, access)
    };
    let added = members.instance.join(plan, device, None).await;
    let (port, end) = added.map_err(|error| error.to_string())?;
    // One that was detached meanwhile waits for its task, which finds out next.
    if let Some(Link::Vm(vm)) = members.table().member(key).map(|member| &mut member.link) {
        vm.port = Some(port);
    }
    Ok((port, end))
}
