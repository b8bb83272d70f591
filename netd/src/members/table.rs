//! The table of a network's members: who has which name, id and address, and what is needed to undo
//! it. Nothing here waits or touches the kernel.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cnet::control::{Kind, Refusal};
use cnet_dataplane::{Access, OpenForward, PortId};
use cnet_tap::TapQueue;
use cnet_tap::netif::policy_routing::RoutesBySource;
use tokio::sync::{Mutex, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use crate::forward::published;
use crate::ipam::Ipam;
use crate::journal::{Liveness, Record};

/// The shortest start of an id that names a container; shorter ones name nothing.
const MIN_ID_PREFIX: usize = 4;

/// What the lock of [`super::Members`] protects.
pub(crate) struct Table {
    pub(super) ipam: Ipam,
    pub(super) members: BTreeMap<String, Member>,
    /// The number of the last member.
    last: u64,
    /// Counts what changes the list of members.
    pub(super) changes: u64,
    /// Those that a process before this one has left, until they have joined again or are given up;
    /// and VMs whose ports are being opened again.
    pub(super) returning: BTreeMap<String, Record>,
    /// Those that have left, by their numbers, while their interface may still be one that outlives
    /// this process.
    pub(super) leaving: BTreeMap<u64, Record>,
}

/// A container on the network, from the moment that its name is taken.
pub(crate) struct Member {
    number: u64,
    pub(crate) record: Record,
    pub(super) link: Link,
    pub(super) opened: Vec<OpenForward>,
    /// Whether others were told that it has joined.
    pub(super) announced: bool,
    /// What its port was told that is allowed.
    pub(super) access: Option<Arc<Access>>,
}

/// What connects a member to the dataplane.
pub(super) enum Link {
    /// Nothing yet: it is joining.
    Joining,
    /// An interface in its network namespace.
    Tap(TapLink),
    /// The task that serves a VM, whether its QEMU runs or not.
    Vm(VmLink),
}

/// An interface that is plugged into the dataplane.
pub(super) struct TapLink {
    pub(super) port: PortId,
    /// A copy of the TAP's descriptor: by it the TAP is let go of when the container leaves.
    pub(super) tap: TapQueue,
    /// The task that waits for the container's end.
    pub(super) watch: AbortHandle,
    /// Its routes by source, if it has some.
    pub(super) routing: Option<Routing>,
}

/// The routes by source of an interface. One task at a time changes them.
pub(super) type Routing = Arc<Mutex<InterfaceRoutes>>;

/// What is needed to change an interface's routes.
#[derive(Debug)]
pub(super) struct InterfaceRoutes {
    /// Its network namespace.
    pub(super) net: OwnedFd,
    pub(super) ifindex: u32,
    /// As they were asked for last.
    pub(super) routes: RoutesBySource,
}

/// The task that serves a virtual machine.
pub(super) struct VmLink {
    /// Dropped to end it.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// While its QEMU runs.
    pub(super) port: Option<PortId>,
}

impl VmLink {
    /// One that `task` serves until `stop` is dropped.
    pub(super) fn new(stop: oneshot::Sender<()>, task: JoinHandle<()>) -> VmLink {
        VmLink {
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

/// Names one member, and not the next one of its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MemberKey {
    pub(super) name: String,
    pub(super) number: u64,
}

impl Member {
    /// Whether it has its place, not only its name.
    pub(crate) fn has_joined(&self) -> bool {
        !matches!(self.link, Link::Joining)
    }

    pub(super) fn key(&self) -> MemberKey {
        MemberKey {
            name: self.record.name.clone(),
            number: self.number,
        }
    }

    /// Has its interface outlive this process; `None` if it has none.
    pub(super) fn keep(&self) -> Option<std::io::Result<()>> {
        match &self.link {
            Link::Tap(link) => Some(link.tap.set_persistent(true)),
            Link::Joining | Link::Vm(_) => None,
        }
    }

    /// Its port, if it has one now.
    pub(crate) fn port(&self) -> Option<PortId> {
        match &self.link {
            Link::Joining => None,
            Link::Tap(link) => Some(link.port),
            Link::Vm(vm) => vm.port,
        }
    }

    pub(super) fn add_ports(&mut self, opened: Vec<OpenForward>) {
        self.record.ports.extend(opened.iter().flat_map(published));
        self.opened.extend(opened);
    }

    /// Takes out the ports that `fits` means.
    pub(super) fn take_ports(&mut self, fits: impl Fn(&OpenForward) -> bool) -> Vec<OpenForward> {
        let (closed, kept) = std::mem::take(&mut self.opened).into_iter().partition(fits);
        self.opened = kept;
        self.record.ports = self.opened.iter().flat_map(published).collect();
        closed
    }
}

impl Table {
    pub(super) fn new(ipam: Ipam) -> Table {
        Table {
            ipam,
            members: BTreeMap::new(),
            last: 0,
            changes: 0,
            returning: BTreeMap::new(),
            leaving: BTreeMap::new(),
        }
    }

    /// The members, by name.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether there is no member, none that is joining, and none that is still to be let go of.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.leaving.is_empty()
    }

    /// Enters a container that is about to join; its name is free.
    pub(super) fn enter(&mut self, record: Record) -> MemberKey {
        self.last += 1;
        let member = Member {
            number: self.last,
            record,
            link: Link::Joining,
            opened: Vec::new(),
            announced: false,
            access: None,
        };
        let key = member.key();
        self.members.insert(key.name.clone(), member);
        key
    }

    /// What has to be found again after a crash: the members that have joined, those
    /// whose interface is still to be let go of, and those that are still to be taken up after the
    /// last crash. Of several of one name, the one that joined last counts.
    pub(super) fn records(&self) -> Vec<Record> {
        let joined = self.members.values().filter(|member| member.has_joined());
        let joined = joined.map(|member| &member.record);
        let has_joined = |name: &str| self.members.get(name).is_some_and(Member::has_joined);
        let leaving = self.leaving.values();
        let leaving = leaving.filter(|record| !has_joined(&record.name));
        let own = joined.chain(leaving);
        let own = own.filter(|record| !self.returning.contains_key(&record.name));
        own.chain(self.returning.values()).cloned().collect()
    }

    /// What of a container that is to join is another's already. `is_it` knows the container
    /// itself.
    pub(super) fn clash(
        &self,
        name: &str,
        id: &str,
        is_it: &dyn Fn(&Record) -> bool,
    ) -> Option<String> {
        if self.members.contains_key(name) {
            return Some(format!(
                "there is a container `{name}` on this network; choose another --name, or detach it"
            ));
        }
        let other = |is: &dyn Fn(&Record) -> bool| {
            let records = self.members.values().map(|member| &member.record);
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

    /// The member of that key, unless it has left.
    pub(super) fn member(&mut self, key: &MemberKey) -> Option<&mut Member> {
        let member = self.members.get_mut(&key.name)?;
        (member.number == key.number).then_some(member)
    }

    /// Gives the member its interface; `false` if it has left.
    pub(super) fn plug(&mut self, key: &MemberKey, link: TapLink, interface: String) -> bool {
        let Some(member) = self.member(key) else {
            return false;
        };
        member.record.interface = interface;
        member.link = Link::Tap(link);
        true
    }

    /// The member that a person means: by a name, an id or the start of one, or a process.
    pub(super) fn find(&self, meant: &str) -> Result<&Member, Refusal> {
        if let Some(member) = self.members.get(meant) {
            return Ok(member);
        }
        let number = meant.parse::<i32>().ok();
        let is_meant = |member: &&Member| {
            let pid = match &member.record.liveness {
                Liveness::Process { pid, member, .. } => Some(member.unwrap_or(*pid)),
                Liveness::Path { .. } | Liveness::Vm { .. } => None,
            };
            let mut aliases = member.record.aliases.iter();
            pid.is_some() && pid == number || aliases.any(|alias| alias == meant)
        };
        let by_id =
            |member: &&Member| meant.len() >= MIN_ID_PREFIX && member.record.id.starts_with(meant);
        let mut found: Vec<&Member> = self.members.values().filter(is_meant).collect();
        if found.is_empty() {
            found = self.members.values().filter(by_id).collect();
        }
        match found.as_slice() {
            [one] => Ok(one),
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

#[cfg(test)]
mod tests {
    use super::*;
    use cnet::control::PublishedPort;
    use cnet::definition::{DEFAULT_NETWORK, Directories, Store};
    use cnet_wire::{MacAddr, Protocol};

    fn table() -> Table {
        let place = tempfile::tempdir().unwrap();
        let directories = Directories {
            config: place.path().join("c"),
            state: place.path().join("s"),
            runtime: place.path().join("r"),
        };
        let leases = directories.leases(DEFAULT_NETWORK);
        let definition = Store::open(directories).get(DEFAULT_NETWORK).unwrap();
        Table::new(Ipam::load(leases, &definition).unwrap())
    }

    fn record(name: &str, digit: char, pid: i32) -> Record {
        Record {
            id: format!("00{}", digit.to_string().repeat(62)),
            name: name.to_owned(),
            labels: Default::default(),
            aliases: vec![format!("{name}-alias"), "shared".to_owned()],
            liveness: Liveness::Process {
                pid,
                start_time: 1,
                member: None,
            },
            namespace: (4, pid as u64),
            interface: "eth0".to_owned(),
            mac: MacAddr([2; 6]),
            ipv4: None,
            ipv6: None,
            dns: Vec::new(),
            ports: Vec::new(),
            publish_auto: None,
            trust: false,
            filter: cnet::Filter::new(),
        }
    }

    #[test]
    fn a_container_is_found_by_what_is_its_own() {
        let mut table = table();
        let web = table.enter(record("web", 'a', 17));
        let db = table.enter(record("db", 'b', 18));
        let found = |meant: &str| table.find(meant).map(Member::key);
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
        let mut table = table();
        let port = PublishedPort::new(
            Protocol::Tcp,
            "0.0.0.0:8080".parse().unwrap(),
            "10.88.0.2:80".parse().unwrap(),
        );
        let web = Record {
            ports: vec![port],
            ..record("web", 'a', 17)
        };
        for left in [&web, &record("db", 'b', 18)] {
            table.returning.insert(left.name.clone(), left.clone());
        }
        // One has its place again, but its ports are not open yet.
        let key = table.enter(record("web", 'a', 17));
        let (stop, _) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let task = runtime.unwrap().spawn(async {});
        table.member(&key).unwrap().link = Link::Vm(VmLink::new(stop, task));
        let names = |table: &Table| {
            let mut names: Vec<String> = table.records().into_iter().map(|r| r.name).collect();
            names.sort();
            names
        };
        assert_eq!(names(&table), ["db", "web"]);
        assert!(table.records().contains(&web), "its ports are forgotten");
        table.returning.clear();
        assert_eq!(names(&table), ["web"]);
        table.enter(record("new", 'c', 19));
        assert_eq!(names(&table), ["web"], "who has not joined is not there");
        // Their interface may still be one that outlives us.
        table.leaving.insert(7, record("old", 'd', 20));
        table.leaving.insert(8, record("web", 'e', 21));
        assert_eq!(names(&table), ["old", "web"], "one has a name");
        assert!(table.records().iter().any(|left| left.id == web.id));
    }

    #[test]
    fn what_is_anothers_is_not_given_twice() {
        let mut table = table();
        table.enter(record("web", 'a', 17));
        let new = record("db", 'b', 18);
        let clash = |name: &str, id: &str, namespace: (u64, u64)| {
            table.clash(name, id, &|record| record.namespace == namespace)
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
    fn a_member_that_has_left_is_not_the_next_one_of_its_name() {
        let mut table = table();
        let first = table.enter(record("web", 'a', 17));
        assert!(table.member(&first).is_some());
        table.members.remove("web");
        assert!(table.member(&first).is_none());
        let second = table.enter(record("web", 'a', 17));
        assert!(table.member(&first).is_none() && table.member(&second).is_some());
    }
}
