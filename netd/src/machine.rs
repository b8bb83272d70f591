//! How a virtual machine joins, and comes and goes.
//!
//! # Theory of operation
//!
//! A machine's stay begins when it is attached and ends when it is detached, whether its QEMU runs
//! or not: name, addresses and published ports are its own for all that time. A task makes the
//! socket and plugs in whoever connects there ([`Endpoint`]), one after the other. The dataplane
//! closes published ports with the port they lead to, so they are opened again when QEMU ends.
//!
//! # Invariants
//!
//! The task ends only by being told to, and has taken its port out then: whoever waits for it knows
//! that nothing of the machine is left.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::hub::{Hub, Key};
use super::state::Record;
use crate::vm_endpoint::Endpoint;
use cnet::control::{Attach, Attached, Kind, Refusal};
use cnet::publish::PublishSpec;
use cnet::vm::VmAddress;
use cnet_dataplane::{PortDevice, PortEnd, PortId, STOPPED};

/// How long to wait after a machine could not be plugged in.
const PAUSE: Duration = Duration::from_secs(1);

/// A machine on the network.
pub(super) struct Machine {
    /// Dropped to end it.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// While its QEMU runs.
    pub(super) port: Option<PortId>,
}

impl Machine {
    /// One that `task` serves until `stop` is dropped.
    pub(super) fn new(stop: oneshot::Sender<()>, task: JoinHandle<()>) -> Machine {
        Machine {
            stop,
            task,
            port: None,
        }
    }

    /// Takes it out of the dataplane.
    pub(super) async fn end(self) {
        drop(self.stop);
        // A panic of the task was reported by its thread.
        let _ = self.task.await;
    }
}

impl Hub {
    /// Lets a machine join.
    pub(super) async fn attach_machine(
        self: &Arc<Self>,
        attach: Attach,
        address: &str,
    ) -> Result<Attached, Refusal> {
        let invalid = |text: String| Refusal::new(Kind::Invalid, text);
        if attach.interface.is_some() || attach.path.is_some() || attach.member.is_some() {
            let text = "a virtual machine has neither a namespace, nor an interface to be named";
            return Err(invalid(text.to_owned()));
        }
        let address: VmAddress = address.parse().map_err(|e| invalid(format!("{e}")))?;
        let (key, specs) = self.reserve_machine(attach, &address)?;
        if let Err(refusal) = self.join_machine(&key, &address, &specs).await {
            self.leave(&key, "it could not join").await;
            return Err(refusal);
        }
        self.attached(&key)
    }

    /// Makes its socket and opens its ports.
    pub(super) async fn join_machine(
        self: &Arc<Self>,
        key: &Key,
        address: &VmAddress,
        specs: &[PublishSpec],
    ) -> Result<(), Refusal> {
        let gone = || Refusal::new(Kind::Impossible, "the machine was detached meanwhile");
        let endpoint = Endpoint::open(address.clone()).map_err(|error| {
            let text = format!("cannot make the socket of {address}: {error}");
            Refusal::new(Kind::Impossible, text)
        })?;
        let guests = {
            let mut tables = self.tables();
            let stay = tables.stay(key).ok_or_else(gone)?;
            let (stop, stopped) = oneshot::channel();
            let served = Arc::clone(self).serve_machine(key.clone(), endpoint, stopped);
            stay.machine = Some(Machine::new(stop, tokio::spawn(served)));
            super::attach::guests(&stay.record)
        };
        let opened = self.open_for(key, guests, specs).await?;
        opened.ok_or_else(gone)?;
        {
            let mut tables = self.tables();
            let stay = tables.stay(key).ok_or_else(gone)?;
            self.names.announce(&stay.record);
            self.changed(&mut tables);
        }
        self.save().await;
        Ok(())
    }

    /// Takes a machine up again that a process before this one has served.
    pub(super) async fn restore_machine(
        self: &Arc<Self>,
        record: Record,
        address: &VmAddress,
    ) -> Result<(), String> {
        let ports = record.ports.clone();
        let key = self.reenter(record)?;
        if let Err(refusal) = self.join_machine(&key, address, &[]).await {
            self.leave(&key, "it could not join again").await;
            return Err(refusal.message);
        }
        self.reopen_all(&key, ports).await;
        Ok(())
    }

    /// Plugs in one machine after the other, until `stopped`.
    async fn serve_machine(
        self: Arc<Self>,
        key: Key,
        mut endpoint: Endpoint,
        mut stopped: oneshot::Receiver<()>,
    ) {
        loop {
            let device = tokio::select! {
                _ = &mut stopped => return,
                device = endpoint.next() => device,
            };
            let plugged = match device {
                Ok(device) => self.plug_machine(&key, device).await,
                Err(error) => Err(error.to_string()),
            };
            let (port, end) = match plugged {
                Ok(plugged) => plugged,
                Err(error) => {
                    tracing::warn!(
                        container = key.name,
                        error,
                        "a machine cannot be plugged in"
                    );
                    tokio::select! {
                        _ = &mut stopped => return,
                        () = tokio::time::sleep(PAUSE) => continue,
                    }
                }
            };
            tracing::info!(container = key.name, "its machine runs");
            let reason = tokio::select! {
                _ = &mut stopped => {
                    // It may have gone at the same moment.
                    let _ = self.control.remove_port(port).await;
                    return;
                }
                reason = end => reason,
                () = endpoint.departed() => {
                    let _ = self.control.remove_port(port).await;
                    "its socket is gone".to_owned()
                }
            };
            tracing::info!(container = key.name, reason, "its machine is gone");
            if reason == STOPPED {
                return;
            }
            if !self.reopen_for_next(&key).await {
                return;
            }
        }
    }

    /// Opens the ports again that have closed with a machine's port; `false` if it was detached.
    async fn reopen_for_next(&self, key: &Key) -> bool {
        let ports = {
            let mut tables = self.tables();
            let Some(stay) = tables.stay(key) else {
                return false;
            };
            if let Some(machine) = &mut stay.machine {
                machine.port = None;
            }
            stay.opened.clear();
            let record = stay.record.clone();
            let ports = std::mem::take(&mut stay.record.ports);
            // Whoever has to take it up after a crash meanwhile finds all of them.
            tables.returning.insert(key.name.clone(), record);
            ports
        };
        self.reopen_all(key, ports).await;
        {
            let mut tables = self.tables();
            tables.returning.remove(&key.name);
            self.changed(&mut tables);
        }
        self.save().await;
        true
    }

    async fn plug_machine(
        &self,
        key: &Key,
        device: PortDevice,
    ) -> Result<(PortId, PortEnd), String> {
        let plan = {
            let mut tables = self.tables();
            let stay = tables.stay(key).ok_or("it was detached")?;
            self.port_plan(&stay.record)
        };
        let added = self.control.add_port(plan, device).await;
        let (port, end) = added.map_err(|error| error.to_string())?;
        // One that was detached meanwhile waits for its task, which finds out next.
        if let Some(machine) = self.tables().stay(key).and_then(|s| s.machine.as_mut()) {
            machine.port = Some(port);
        }
        Ok((port, end))
    }
}
