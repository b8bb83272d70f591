//! The table of who is on the network, and the actions on it.
//!
//! # Theory of operation
//!
//! A container joins in two steps. First its name and its addresses are taken, under the lock;
//! then, without it, the interface is made in its namespace, plugged into the dataplane, and its
//! ports are opened ([`super::attach`]). A namespace in which something hangs therefore keeps
//! nobody else from joining. Leaving is the reverse, and is also how a failed joining is undone.
//!
//! Each stay has a number of its own, so that the end of a container that has left already does
//! not take out the next one of its name.
//!
//! # Invariants
//!
//! - The lock is never held while something is waited for.
//! - `state.json` lists those that have joined, before they are told so and before their interface
//!   is made to outlive this process, until that is undone. It is written without the lock
//!   ([`StateFile`]).
//!
//! # Limits
//!
//! Leases are written down a moment after an action was answered, since that waits for the disk.
//! A crash in that moment loses what is remembered of those who left, not of those who are there.
//!
//! While `state.json` cannot be written, containers join all the same, but do not outlive this
//! process. It is tried again every [`RETRY`].

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cnet_tap::TapQueue;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::machine::Machine;
use super::names::SharedNames;
use super::state::{Life, Record, StateFile};
use crate::ipam::Ipam;
use crate::ns_helper::NsHelperClient;
use crate::published::{self, Opened};
use crate::server::Actions;
use cnet::control::{Action, Answer, Kind, Nothing, Refusal};
use cnet::definition::Definition;
use cnet_dataplane::{Control, NetworkConfig, PortId};

/// How long to wait before who is there is written down again, after that has failed.
const RETRY: Duration = Duration::from_secs(2);

/// What the hub works with.
pub(super) struct Parts {
    pub(super) state: PathBuf,
    pub(super) definition: Definition,
    pub(super) config: NetworkConfig,
    pub(super) control: Control,
    pub(super) ns_helper: NsHelperClient,
    pub(super) names: SharedNames,
    pub(super) ipam: Ipam,
}

/// The network, as actions see it.
pub(super) struct Hub {
    pub(super) definition: Definition,
    pub(super) config: NetworkConfig,
    pub(super) control: Control,
    pub(super) ns_helper: NsHelperClient,
    pub(super) names: SharedNames,
    pub(super) state: StateFile,
    tables: Mutex<Tables>,
    changes: watch::Sender<()>,
    stopped: AtomicBool,
    /// Tells that leases are to be written down.
    leases: Notify,
    /// One writes them at a time.
    leases_turn: Arc<AsyncMutex<()>>,
    /// Tells that who is there could not be written down.
    unsaved: Notify,
}

/// What is under the lock.
pub(super) struct Tables {
    pub(super) ipam: Ipam,
    pub(super) stays: BTreeMap<String, Stay>,
    next: u64,
    /// Counts what changes who is there.
    changes: u64,
    /// Those that a process before this one has left behind, until they are taken up or given up;
    /// and machines whose ports are just being opened again.
    pub(super) returning: BTreeMap<String, Record>,
    /// Those that are over, by the number of their stay, while their interface may still be one
    /// that outlives this process.
    leaving: BTreeMap<u64, Record>,
}

/// A container on the network, from the moment that its name is taken.
pub(super) struct Stay {
    number: u64,
    pub(super) record: Record,
    /// Once it has joined.
    pub(super) plugged: Option<Plugged>,
    /// In the place of that, if it is a virtual machine.
    pub(super) machine: Option<Machine>,
    pub(super) opened: Vec<Opened>,
}

impl Stay {
    /// Whether it has its place, not only its name.
    pub(super) fn has_joined(&self) -> bool {
        self.plugged.is_some() || self.machine.is_some()
    }

    fn key(&self) -> Key {
        Key {
            name: self.record.name.clone(),
            number: self.number,
        }
    }

    /// Has its interface outlive this process; `None` if it has none.
    pub(super) fn keep(&self) -> Option<std::io::Result<()>> {
        let plugged = self.plugged.as_ref()?;
        Some(plugged.tap.set_persistent(true))
    }

    /// Its port, if it has one now.
    pub(super) fn port(&self) -> Option<PortId> {
        match &self.machine {
            Some(machine) => machine.port,
            None => self.plugged.as_ref().map(|plugged| plugged.port),
        }
    }
}

/// A container's place in the dataplane.
pub(super) struct Plugged {
    pub(super) port: PortId,
    /// A copy of the TAP's descriptor: by it the TAP is let go of when the container leaves.
    pub(super) tap: TapQueue,
    /// What waits for the container's end.
    pub(super) watch: AbortHandle,
}

/// Names one stay of one container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub(super) name: String,
    number: u64,
}

impl Tables {
    /// Enters a container that is about to join; its name is free.
    pub(super) fn enter(&mut self, record: Record) -> Key {
        self.next += 1;
        let key = Key {
            name: record.name.clone(),
            number: self.next,
        };
        let stay = Stay {
            number: key.number,
            record,
            plugged: None,
            machine: None,
            opened: Vec::new(),
        };
        self.stays.insert(key.name.clone(), stay);
        key
    }

    /// What has to be found again after a crash: those who have joined, those whose interface is
    /// still to be let go of, and those who are still to be taken up after the last crash. Of
    /// several of one name it is the one that came last who has it.
    fn records(&self) -> Vec<Record> {
        let joined = self.stays.values().filter(|stay| stay.has_joined());
        let joined = joined.map(|stay| &stay.record);
        let has_joined = |name: &str| self.stays.get(name).is_some_and(Stay::has_joined);
        let leaving = self.leaving.values();
        let leaving = leaving.filter(|record| !has_joined(&record.name));
        let own = joined.chain(leaving);
        let own = own.filter(|record| !self.returning.contains_key(&record.name));
        own.chain(self.returning.values()).cloned().collect()
    }

    /// What of a container that is to join is another's already. `is_it` knows the container itself.
    pub(super) fn clash(
        &self,
        name: &str,
        id: &str,
        is_it: &dyn Fn(&Record) -> bool,
    ) -> Option<String> {
        if self.stays.contains_key(name) {
            return Some(format!(
                "there is a container `{name}` on this network; choose another --name, or detach it"
            ));
        }
        let other = |is: &dyn Fn(&Record) -> bool| {
            let records = self.stays.values().map(|stay| &stay.record);
            let mut found = records.filter(|record| is(record));
            found.next().map(|record| record.name.clone())
        };
        if let Some(other) = other(is_it) {
            return Some(format!(
                "the container is on this network already, as `{other}`"
            ));
        }
        // Names are kept by id.
        let other = other(&|record| record.id == id)?;
        Some(format!("`{other}` on this network has the id {id} already"))
    }

    /// The stay of that key, unless it is over.
    pub(super) fn stay(&mut self, key: &Key) -> Option<&mut Stay> {
        let stay = self.stays.get_mut(&key.name)?;
        (stay.number == key.number).then_some(stay)
    }

    /// The container of that stay has its place; `false` if the stay is over.
    pub(super) fn plug(&mut self, key: &Key, plugged: Plugged, interface: String) -> bool {
        let Some(stay) = self.stay(key) else {
            return false;
        };
        stay.record.interface = interface;
        stay.plugged = Some(plugged);
        true
    }

    /// The stay that a person means: a name, an id or the start of one, a process.
    pub(super) fn find(&self, meant: &str) -> Result<(Key, &Stay), Refusal> {
        if let Some(stay) = self.stays.get(meant) {
            return Ok((stay.key(), stay));
        }
        let number = meant.parse::<i32>().ok();
        let is_meant = |stay: &&Stay| {
            let pid = match &stay.record.life {
                Life::Process { pid, member, .. } => Some(member.unwrap_or(*pid)),
                Life::Path { .. } | Life::Machine { .. } => None,
            };
            pid.is_some() && pid == number || stay.record.aliases.iter().any(|alias| alias == meant)
        };
        // Short starts of ids mean nothing in particular.
        let by_id = |stay: &&Stay| meant.len() >= 4 && stay.record.id.starts_with(meant);
        let mut found: Vec<&Stay> = self.stays.values().filter(is_meant).collect();
        if found.is_empty() {
            found = self.stays.values().filter(by_id).collect();
        }
        match found.as_slice() {
            [one] => Ok((one.key(), one)),
            [] => Err(Refusal::new(
                Kind::NotFound,
                format!("there is no container `{meant}` on this network; `cnet ps` lists them"),
            )),
            _ => Err(Refusal::new(
                Kind::Conflict,
                format!("`{meant}` stands for several containers; use a name, which is one's own"),
            )),
        }
    }
}

impl Hub {
    pub(super) fn new(parts: Parts) -> Arc<Hub> {
        let hub = Arc::new(Hub {
            definition: parts.definition,
            config: parts.config,
            control: parts.control,
            ns_helper: parts.ns_helper,
            names: parts.names,
            state: StateFile::new(parts.state),
            tables: Mutex::new(Tables {
                ipam: parts.ipam,
                stays: BTreeMap::new(),
                next: 0,
                changes: 0,
                returning: BTreeMap::new(),
                leaving: BTreeMap::new(),
            }),
            changes: watch::Sender::new(()),
            stopped: AtomicBool::new(false),
            leases: Notify::new(),
            leases_turn: Arc::default(),
            unsaved: Notify::new(),
        });
        let writer = Arc::clone(&hub);
        tokio::spawn(async move {
            loop {
                writer.leases.notified().await;
                writer.flush().await;
            }
        });
        let writer = Arc::clone(&hub);
        tokio::spawn(async move {
            loop {
                writer.unsaved.notified().await;
                sleep(RETRY).await;
                writer.save_again().await;
            }
        });
        hub
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when somebody comes or goes.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether nobody is on the network, nor about to join, nor still to be let go of.
    pub(super) fn is_empty(&self) -> bool {
        let tables = self.tables();
        tables.stays.is_empty() && tables.leaving.is_empty()
    }

    /// Whether a client has asked for the end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Notes that the tables were changed. Whoever has to know that it is on the disk calls
    /// [`Hub::save`] after that, without them.
    pub(super) fn changed(&self, tables: &mut Tables) {
        tables.changes += 1;
        self.leases.notify_one();
        self.changes.send_replace(());
    }

    /// Writes down who is there, unless somebody has done so since the last change; `false` if that
    /// has failed, and is to be tried again.
    pub(super) async fn save(&self) -> bool {
        let due = self.tables().changes;
        let now = || {
            let tables = self.tables();
            (tables.changes, tables.records())
        };
        let written = self.state.write(due, now).await;
        if let Err(error) = &written {
            // Forwarding goes on; only a crash would be worse than it should be.
            tracing::error!(%error, path = %self.state.path().display(), "cannot be written");
            self.unsaved.notify_one();
        }
        written.is_ok()
    }

    /// Writes down who is there after that has failed. Those who joined meanwhile outlive this
    /// process from then on.
    async fn save_again(&self) {
        let plugged: Vec<Key> = {
            let mut tables = self.tables();
            // So that all of them are written down now, also one that had not counted yet.
            tables.changes += 1;
            let plugged = tables.stays.values().filter(|stay| stay.plugged.is_some());
            plugged.map(Stay::key).collect()
        };
        if !self.save().await {
            return;
        }
        let mut tables = self.tables();
        for key in plugged {
            if let Some(Err(error)) = tables.stay(&key).and_then(|stay| stay.keep()) {
                tracing::error!(container = key.name, %error, "a crash would end its interface");
            }
        }
    }

    /// Writes the leases down.
    pub(super) async fn flush(&self) {
        // Given back by the thread that writes, so that a caller who goes away lets nobody in.
        let turn = Arc::clone(&self.leases_turn).lock_owned().await;
        let ipam = self.tables().ipam.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let saved = ipam.save();
            drop(turn);
            saved
        });
        let saved = writing.await;
        if let Ok(Err(error)) = saved {
            tracing::error!(%error, "leases cannot be written down");
        }
    }

    /// Waits until what containers had sent when they left was passed on.
    pub(super) async fn delivered(&self) {
        self.control.delivered().await;
    }

    /// Takes a container out. Nothing happens if that stay is over already.
    pub(super) async fn leave(&self, key: &Key, why: &str) {
        let stay = {
            let mut tables = self.tables();
            if tables.stay(key).is_none() {
                return;
            }
            let Some(stay) = tables.stays.remove(&key.name) else {
                return;
            };
            tables.ipam.release(&key.name);
            self.names.withdraw(&stay.record);
            if stay.plugged.is_some() {
                tables.leaving.insert(key.number, stay.record.clone());
            }
            self.changed(&mut tables);
            stay
        };
        tracing::info!(container = key.name, why, "leaves");
        let watch = self.unplug(stay).await;
        {
            let mut tables = self.tables();
            if tables.leaving.remove(&key.number).is_some() {
                self.changed(&mut tables);
            }
        }
        self.save().await;
        if let Some(watch) = watch {
            // Last of all, because it may be the very task that this runs in.
            watch.abort();
        }
    }

    /// Takes what has left out of the dataplane; gives what waited for its end.
    async fn unplug(&self, stay: Stay) -> Option<AbortHandle> {
        if let Some(machine) = stay.machine {
            machine.end().await;
            published::close(&self.control, &stay.opened).await;
        }
        let plugged = stay.plugged?;
        // Its published ports close with the port.
        let _ = self.control.remove_port(plugged.port).await;
        // The last descriptor is closed here: the kernel takes its time to end an interface, and
        // the worker has none to lose.
        let tap = plugged.tap;
        let closed = tokio::task::spawn_blocking(move || {
            // It fails if the interface is gone already.
            let _ = tap.set_persistent(false);
            drop(tap);
        });
        let _ = closed.await;
        Some(plugged.watch)
    }

    /// Takes everybody out, and waits for those who are leaving already.
    pub(super) async fn detach_all(&self) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let next = {
                let tables = self.tables();
                let names = tables.stays.keys().next();
                names.and_then(|name| tables.find(name).ok().map(|(key, _)| key))
            };
            match next {
                Some(key) => self.leave(&key, "the network is stopped").await,
                None if self.is_empty() => return,
                // The sender is our own.
                None => {
                    let _ = changes.changed().await;
                }
            }
        }
    }

    async fn detach(&self, meant: &str) -> Result<Answer, Refusal> {
        let key = self.tables().find(meant)?.0;
        self.leave(&key, "detached").await;
        Ok(Answer::Done(Nothing {}))
    }

    fn stop(&self, force: bool) -> Result<Answer, Refusal> {
        let count = self.tables().stays.len();
        if count > 0 && !force {
            return Err(Refusal::new(
                Kind::Conflict,
                format!("{count} containers are on the network; detach them first, or use force"),
            ));
        }
        self.stopped.store(true, Ordering::Release);
        self.changes.send_replace(());
        Ok(Answer::Done(Nothing {}))
    }

    async fn do_action(
        self: Arc<Self>,
        action: Action,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        if self.is_stopped() {
            return Err(Refusal::new(Kind::Ending, "the network is being stopped"));
        }
        match action {
            Action::Inspect(_) => Ok(Answer::Network(self.report())),
            Action::Statistics(_) => self.statistics().await.map(Answer::Statistics),
            Action::Attach(attach) => {
                let attached = match attach.vm.clone() {
                    Some(address) => self.attach_machine(attach, &address).await,
                    None => self.attach(attach, descriptors).await,
                };
                attached.map(Answer::Attached)
            }
            Action::Detach(detach) => self.detach(&detach.container).await,
            Action::Publish(ports) => self.publish(&ports).await.map(Answer::Published),
            Action::Unpublish(ports) => self.unpublish(&ports).await.map(Answer::Published),
            Action::Stop(stop) => self.stop(stop.force),
        }
    }
}

/// What the server is given: actions run to their end even if the client goes away, so that none
/// is left half-way.
pub(super) struct Door(pub(super) Arc<Hub>);

impl Actions for Door {
    async fn act(&self, action: Action, descriptors: Vec<OwnedFd>) -> Result<Answer, Refusal> {
        let hub = Arc::clone(&self.0);
        let done = tokio::spawn(hub.do_action(action, descriptors)).await;
        done.unwrap_or_else(|error| Err(Refusal::new(Kind::Internal, error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnet::definition::{DEFAULT_NETWORK, Directories, Store};

    fn tables() -> Tables {
        let place = tempfile::tempdir().unwrap();
        let directories = Directories {
            config: place.path().join("c"),
            state: place.path().join("s"),
            runtime: place.path().join("r"),
        };
        let leases = directories.leases(DEFAULT_NETWORK);
        let definition = Store::open(directories).get(DEFAULT_NETWORK).unwrap();
        Tables {
            ipam: Ipam::load(leases, &definition).unwrap(),
            stays: BTreeMap::new(),
            next: 0,
            changes: 0,
            returning: BTreeMap::new(),
            leaving: BTreeMap::new(),
        }
    }

    fn record(name: &str, digit: char, pid: i32) -> Record {
        Record {
            id: format!("00{}", digit.to_string().repeat(62)),
            name: name.to_owned(),
            aliases: vec![format!("{name}-alias"), "shared".to_owned()],
            life: Life::Process {
                pid,
                start_time: 1,
                member: None,
            },
            namespace: (4, pid as u64),
            interface: "eth0".to_owned(),
            mac: [2; 6],
            ipv4: None,
            ipv6: None,
            ports: Vec::new(),
        }
    }

    #[test]
    fn a_container_is_found_by_what_is_its_own() {
        let mut tables = tables();
        let web = tables.enter(record("web", 'a', 17));
        let db = tables.enter(record("db", 'b', 18));
        let found = |meant: &str| tables.find(meant).map(|(key, _)| key);
        for meant in ["web", "web-alias", "17", "00aaaaaaaaaa"] {
            assert_eq!(found(meant), Ok(web.clone()), "{meant}");
        }
        assert_eq!(found("18"), Ok(db));
        let kind = |meant: &str| found(meant).unwrap_err().kind;
        assert_eq!(kind("shared"), Kind::Conflict);
        for meant in ["", "00", "00a", "19", "we", "webb"] {
            assert_eq!(kind(meant), Kind::NotFound, "{meant}");
        }
    }

    #[test]
    fn who_is_still_to_be_taken_up_is_not_forgotten() {
        let mut tables = tables();
        let port = crate::state::Port {
            udp: false,
            host: "0.0.0.0:8080".parse().unwrap(),
            container: "10.88.0.2:80".parse().unwrap(),
        };
        let web = Record {
            ports: vec![port],
            ..record("web", 'a', 17)
        };
        for left in [&web, &record("db", 'b', 18)] {
            tables.returning.insert(left.name.clone(), left.clone());
        }
        // One has its place again, but its ports are not open yet.
        let key = tables.enter(record("web", 'a', 17));
        let (stop, _) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let task = runtime.unwrap().spawn(async {});
        tables.stay(&key).unwrap().machine = Some(Machine::new(stop, task));
        let names = |tables: &Tables| {
            let mut names: Vec<String> = tables.records().into_iter().map(|r| r.name).collect();
            names.sort();
            names
        };
        assert_eq!(names(&tables), ["db", "web"]);
        assert!(tables.records().contains(&web), "its ports are forgotten");
        tables.returning.clear();
        assert_eq!(names(&tables), ["web"]);
        tables.enter(record("new", 'c', 19));
        assert_eq!(names(&tables), ["web"], "who has not joined is not there");
        // Their interface may still be one that outlives us.
        tables.leaving.insert(7, record("old", 'd', 20));
        tables.leaving.insert(8, record("web", 'e', 21));
        assert_eq!(names(&tables), ["old", "web"], "one has a name");
        assert!(tables.records().iter().any(|left| left.id == web.id));
    }

    #[test]
    fn what_is_anothers_is_not_given_twice() {
        let mut tables = tables();
        tables.enter(record("web", 'a', 17));
        let new = record("db", 'b', 18);
        let clash = |name: &str, id: &str, namespace: (u64, u64)| {
            tables.clash(name, id, &|record| record.namespace == namespace)
        };
        assert_eq!(clash("db", &new.id, new.namespace), None);
        let has = record("web", 'a', 17);
        for (name, id, namespace, said) in [
            ("web", &new.id, new.namespace, "choose another --name"),
            ("db", &has.id, new.namespace, "has the id"),
            ("db", &new.id, has.namespace, "already, as `web`"),
        ] {
            let text = clash(name, id, namespace).unwrap();
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn a_stay_that_is_over_is_not_the_next_one_of_its_name() {
        let mut tables = tables();
        let first = tables.enter(record("web", 'a', 17));
        assert!(tables.stay(&first).is_some());
        tables.stays.remove("web");
        assert!(tables.stay(&first).is_none());
        let second = tables.enter(record("web", 'a', 17));
        assert!(tables.stay(&first).is_none() && tables.stay(&second).is_some());
    }
}
