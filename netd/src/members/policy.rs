//! The policies of the network: kept in a file, and applied to members as those come and go.
//!
//! # Theory of operation
//!
//! Each member whose container policies select has an [`Access`] at its port. A container gets its own
//! before its port serves. Those of others name it once it has joined, and no longer once it has left: what
//! is allowed is told anew to each port for which it has changed ([`apply`]). The table's lock is held
//! meanwhile, so two changes do not overtake each other; no packet waits for it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cnet::control::{ApplyPolicies, Kind, PolicyReport, Refusal, RemovePolicies};
use cnet::definition::file;
use cnet::policy::{Manifest, Pod, PolicySet};
use cnet_dataplane::Access;

use super::{MemberKey, Members, Table};
use crate::journal::Record;

/// The most policies that a network may have.
const MAX_POLICIES: usize = 20_000;

/// Bytes of the file.
const MAX_FILE: u64 = 64 << 20;

/// The policies, and where they are kept.
pub(crate) struct Policies {
    path: PathBuf,
    set: Mutex<PolicySet>,
}

impl Policies {
    /// Those in the file at `path`; none if there is no file.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or understood: without its policies no container may join.
    pub(crate) fn load(path: PathBuf) -> std::io::Result<Policies> {
        let set = match file::read_text(&path, MAX_FILE) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => PolicySet::default(),
            text => serde_json::from_str(&text?)?,
        };
        Ok(Policies {
            path,
            set: Mutex::new(set),
        })
    }

    fn lock(&self) -> MutexGuard<'_, PolicySet> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(path: &Path, set: &PolicySet) -> std::io::Result<()> {
        file::replace(path, serde_json::to_string(set)?.as_bytes())
    }
}

fn pod(record: &Record) -> Pod {
    let v4 = record.ipv4.map(Into::into);
    Pod {
        name: record.name.clone(),
        labels: record.labels.clone(),
        addresses: v4.into_iter().chain(record.ipv6.map(Into::into)).collect(),
    }
}

fn pods(table: &Table) -> Vec<Pod> {
    table.members().map(|member| pod(&member.record)).collect()
}

/// What is allowed to the container of `record`, the member `key`, whose port is told so when it is made.
pub(super) fn access_at_join(
    members: &Members,
    table: &mut Table,
    key: &MemberKey,
    record: &Record,
) -> Option<Arc<Access>> {
    let set = members.policies.lock();
    if set.is_empty() {
        return None;
    }
    let access = set.access(&pod(record), &pods(table)).map(Arc::new);
    if let Some(member) = table.member(key) {
        member.access.clone_from(&access);
    }
    access
}

/// Tells each port what is allowed to its container now, where that has changed.
pub(super) fn apply(members: &Members, table: &mut Table) {
    let set = members.policies.lock();
    if set.is_empty() && table.members().all(|member| member.access.is_none()) {
        return;
    }
    let pods = pods(table);
    let mut changed = Vec::new();
    for member in table.members.values_mut() {
        let Some(port) = member.port() else { continue };
        let access = set.access(&pod(&member.record), &pods).map(Arc::new);
        if access != member.access {
            member.access.clone_from(&access);
            changed.push((port, access));
        }
    }
    if !changed.is_empty() {
        members.instance.control().set_access(changed);
    }
}

/// Takes manifests in: all or none.
pub(super) fn take_in(members: &Members, asked: ApplyPolicies) -> Result<PolicyReport, Refusal> {
    change(members, |set| {
        let mut manifests = Vec::new();
        for document in asked.manifests {
            let read = Manifest::read(document);
            manifests.extend(read.map_err(|e| Refusal::new(Kind::Invalid, e.to_string()))?);
        }
        set.apply(manifests);
        match set.policies.len() > MAX_POLICIES {
            true => {
                let text = format!("a network has at most {MAX_POLICIES} policies");
                Err(Refusal::new(Kind::Impossible, text))
            }
            false => Ok(()),
        }
    })
}

/// Takes policies out: all or none.
pub(super) fn take_out(members: &Members, asked: &RemovePolicies) -> Result<PolicyReport, Refusal> {
    change(members, |set| {
        let missing = asked.names.iter().find(|name| !set.remove(name));
        match missing {
            Some(name) => {
                let text = format!("there is no policy `{name}`; `cnet policy ls` lists them");
                Err(Refusal::new(Kind::NotFound, text))
            }
            None => Ok(()),
        }
    })
}

/// The policies that there are.
pub(super) fn report(members: &Members) -> PolicyReport {
    PolicyReport::new(members.policies.lock().clone())
}

/// Changes the policies, writes them down, and applies them.
fn change(
    members: &Members,
    change: impl FnOnce(&mut PolicySet) -> Result<(), Refusal>,
) -> Result<PolicyReport, Refusal> {
    let mut table = members.table();
    let mut changed = members.policies.lock().clone();
    change(&mut changed)?;
    Policies::save(&members.policies.path, &changed).map_err(|error| {
        let text = format!("the policies cannot be written down: {error}");
        Refusal::new(Kind::Impossible, text)
    })?;
    *members.policies.lock() = changed;
    apply(members, &mut table);
    Ok(report(members))
}
