//! What a client's action does.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cnet::control::{
    Action, Answer, DnsLog, DnsLogReport, Kind, NetworkReport, Nothing, Refusal, StatisticsReport,
};

use super::{Members, join, leave, policy, publish, vm};
use crate::events::Subscriber;
use crate::peers;
use crate::serve::Actions;
use crate::{metrics, report};

/// The members, as the control API's server sees them. Actions run to their end even if the client
/// goes away, so that none is left half-way.
pub(crate) struct ActionHandler(pub(crate) Arc<Members>);

impl Actions for ActionHandler {
    fn admit(&self, client: BorrowedFd<'_>) -> Result<(), Refusal> {
        self.0.host.admit(client)
    }

    async fn act(&self, action: Action, descriptors: Vec<OwnedFd>) -> Result<Answer, Refusal> {
        let members = Arc::clone(&self.0);
        let done = tokio::spawn(act(members, action, descriptors)).await;
        done.unwrap_or_else(|error| Err(Refusal::new(Kind::Internal, error.to_string())))
    }

    fn subscribe(&self) -> Result<Subscriber, Refusal> {
        self.0.events.subscribe()
    }
}

async fn act(
    members: Arc<Members>,
    action: Action,
    descriptors: Vec<OwnedFd>,
) -> Result<Answer, Refusal> {
    if members.is_stopped() {
        return Err(Refusal::new(Kind::Ending, "the network is being stopped"));
    }
    match action {
        Action::Inspect(_) => inspect(&members).await.map(Answer::Network),
        Action::Statistics(_) => statistics(&members).await.map(Answer::Statistics),
        Action::DnsLog(asked) => dns_log(&members, &asked).await.map(Answer::DnsLog),
        Action::Attach(attach) => {
            let joined = match attach.vm.clone() {
                Some(address) => vm::join(&members, *attach, address).await,
                None => join::join(&members, *attach, descriptors).await,
            };
            joined.map(Answer::Attached)
        }
        Action::Detach(detach) => {
            let key = members.table().find(&detach.container)?.key();
            leave::leave(&members, &key, "detached").await;
            Ok(Answer::Done(Nothing {}))
        }
        Action::Publish(ports) => {
            let opened = publish::publish(&members, &ports).await;
            opened.map(Answer::Published)
        }
        Action::Unpublish(ports) => {
            let closed = publish::unpublish(&members, &ports).await;
            closed.map(Answer::Published)
        }
        Action::ApplyPolicies(asked) => policy::take_in(&members, asked).map(Answer::Policies),
        Action::RemovePolicies(asked) => policy::take_out(&members, &asked).map(Answer::Policies),
        Action::Policies(_) => Ok(Answer::Policies(policy::report(&members))),
        Action::Stop(stop) => {
            let count = members.table().members().count();
            if count > 0 && !stop.force {
                let text = format!(
                    "{count} containers are on the network; detach them first, or use force"
                );
                return Err(Refusal::new(Kind::Conflict, text));
            }
            members.stop();
            Ok(Answer::Done(Nothing {}))
        }
        // Of a later version of the face than this one was built with.
        _ => Err(Refusal::new(Kind::Invalid, "not an action of this version")),
    }
}

/// The members that are there, and the uplinks. Members that are about to join are not.
async fn inspect(members: &Members) -> Result<NetworkReport, Refusal> {
    let has_uplinks = members.definition.overlay.is_some() || members.definition.lan.is_some();
    let uplinks = match has_uplinks {
        true => {
            let asked = members.instance.control().uplinks().await;
            asked.map_err(|e| Refusal::new(Kind::Ending, e.to_string()))?
        }
        false => Vec::new(),
    };
    let table = members.table();
    let joined = table.members().filter(|member| member.has_joined());
    let records = joined.map(|member| &member.record);
    let (definition, config) = (&members.definition, &members.config);
    let mut report = report::network(definition, config, members.pid, records);
    report.uplinks = peers::report(definition, &uplinks);
    Ok(report)
}

/// How long the next query of a container is waited for: short against the time that a client waits
/// for an answer.
const LOG_WAIT: Duration = Duration::from_secs(2);

async fn dns_log(members: &Members, asked: &DnsLog) -> Result<DnsLogReport, Refusal> {
    let port = members.table().find(&asked.container)?.port();
    let wait = match asked.wait {
        true => LOG_WAIT,
        false => Duration::ZERO,
    };
    let queries = match port {
        Some(port) => members.instance.dns_log(port, asked.after, wait).await,
        None => Vec::new(),
    };
    Ok(report::dns_log(&queries))
}

async fn statistics(members: &Members) -> Result<StatisticsReport, Refusal> {
    let statistics = members.instance.statistics().await;
    let statistics = statistics.map_err(|e| Refusal::new(Kind::Ending, e.to_string()))?;
    let table = members.table();
    let ports = table.members();
    let ports = ports.filter_map(|member| Some((&member.record, member.port()?)));
    let dns = members.instance.dns_outcomes();
    let dns_of = |port| members.instance.dns_outcomes_of(port);
    let network = &members.definition.name;
    let ports = (members.definition.trust, ports);
    let mut report = report::statistics(network, &statistics, (dns, dns_of), ports);
    report.dns_times = members.instance.dns_times();
    report.process = Some(metrics::process(members.started));
    Ok(report)
}
