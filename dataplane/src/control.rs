//! The handle that a running network is steered by.

use std::net::IpAddr;
use std::sync::Arc;

use cnet_tap::SocketHelper;
use cnet_tap::socket::Diagnostics;
use cnet_wire::access::Access;
use tokio::sync::oneshot;

use crate::forward::{BoundSockets, Replaced};
use crate::worker::command::{Command, Mailboxes};
use crate::{
    ForwardError, ForwardId, OpenForward, PortDevice, PortEnd, PortError, PortId, PortPlan,
    QueryId, Rule, Statistics, UplinkReport,
};

/// Steers a running network. Cheap to clone, from any thread.
#[derive(Clone, Debug)]
pub struct Control {
    workers: Mailboxes,
}

impl Control {
    pub(crate) fn new(workers: Mailboxes) -> Control {
        Control { workers }
    }

    /// Sends a command to the primary worker.
    pub(crate) fn send(&self, command: Command) {
        if let Some(primary) = self.workers.first() {
            primary.send(command);
        }
    }

    /// Asks the primary worker; `None` if the network has stopped.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let primary = self.workers.first()?;
        primary.ask(question).await.ok()
    }

    // ---- ports ----

    /// Plugs a container in. It is served from when this returns, until it is removed or its device
    /// is gone, which the future tells.
    ///
    /// # Errors
    ///
    /// See [`PortError`]; the device is closed then.
    pub async fn add_port(
        &self,
        plan: PortPlan,
        device: PortDevice,
    ) -> Result<(PortId, PortEnd), PortError> {
        let added = self.ask(|reply| Command::AddPort(plan, device, reply));
        added.await.unwrap_or(Err(PortError::Ended))
    }

    /// Takes a container out: its connections are reset towards the host, but for those on which it
    /// had sent all, its end included, which stay until the host's sockets have taken that, within
    /// limits ([`cnet_core::Network::remove_port`]); the published ports that lead to its fixed
    /// addresses are closed, and its device.
    ///
    /// # Errors
    ///
    /// [`PortError::Unknown`] if there is no such port, which may have gone by itself.
    pub async fn remove_port(&self, port: PortId) -> Result<(), PortError> {
        let removed = self.ask(|reply| Command::RemovePort(port, reply));
        removed.await.unwrap_or(Err(PortError::Ended))
    }

    /// Has `helper`, which stands in the network namespace of `port`'s container, make the sockets
    /// to splice connections with that come to published TCP ports from the host's loopback. Without
    /// a helper, and when it ends, they go through the container's device as others do.
    pub fn use_socket_helper(&self, port: PortId, helper: SocketHelper) {
        self.send(Command::UseSocketHelper(port, helper));
    }

    /// Has the kernel of `port`'s container be asked where the container listens, by `diagnostics`,
    /// which was made in its network namespace: its published TCP ports then listen while it does.
    /// A socket helper sends such itself. Without, they listen always.
    pub fn use_diagnostics(&self, port: PortId, diagnostics: Diagnostics) {
        self.send(Command::UseDiagnostics(port, diagnostics));
    }

    // ---- published ports ----

    /// Has `rules` take the place of all published ports of the network, and gives a result for each
    /// rule, in their order. Rules that are open already stay as they are, with their ids; those that
    /// are not in the list are closed first; then new ones are opened. Connections made through a
    /// port that is closed go on.
    ///
    /// # Errors
    ///
    /// [`ForwardError::Ended`] once the network has stopped; the reasons of single rules are in their
    /// results.
    pub async fn set_forwards(
        &self,
        rules: Vec<Rule>,
    ) -> Result<Vec<Result<OpenForward, ForwardError>>, ForwardError> {
        self.change_forwards(Replaced::All, rules).await
    }

    /// As [`Control::set_forwards`], but takes the place of the published ports with these `ids`
    /// alone: for a network whose containers have a list each. An id that is not open any more is
    /// passed over.
    ///
    /// # Errors
    ///
    /// [`ForwardError::Ended`] once the network has stopped.
    pub async fn replace_forwards(
        &self,
        ids: Vec<ForwardId>,
        rules: Vec<Rule>,
    ) -> Result<Vec<Result<OpenForward, ForwardError>>, ForwardError> {
        let ids = ids.into_iter().collect();
        self.change_forwards(Replaced::These(ids), rules).await
    }

    /// Opens a port of the host and forwards what comes there to the container.
    ///
    /// # Errors
    ///
    /// See [`ForwardError`]; nothing is opened then, and other forwards stay.
    pub async fn add_forward(&self, rule: Rule) -> Result<OpenForward, ForwardError> {
        let results = self.replace_forwards(Vec::new(), vec![rule]).await?;
        // There is a result for each rule.
        results
            .into_iter()
            .next()
            .unwrap_or(Err(ForwardError::Ended))
    }

    /// Closes published ports. An id that is not open any more is passed over.
    ///
    /// # Errors
    ///
    /// [`ForwardError::Ended`] once the network has stopped.
    pub async fn remove_forwards(&self, ids: Vec<ForwardId>) -> Result<(), ForwardError> {
        self.replace_forwards(ids, Vec::new()).await.map(drop)
    }

    /// The published ports that are open, in no order.
    ///
    /// # Errors
    ///
    /// [`ForwardError::Ended`] once the network has stopped.
    pub async fn forwards(&self) -> Result<Vec<OpenForward>, ForwardError> {
        let list = self.ask(Command::ListForwards).await;
        list.ok_or(ForwardError::Ended)
    }

    /// The sockets that programs in the container of `port` have bound; `None` if its kernel cannot be
    /// asked, or not yet, and once the network has stopped.
    pub async fn bound_sockets(&self, port: PortId) -> Option<BoundSockets> {
        let asked = self.ask(|reply| Command::ListBound(port, reply));
        asked.await.flatten()
    }

    async fn change_forwards(
        &self,
        replaced: Replaced,
        rules: Vec<Rule>,
    ) -> Result<Vec<Result<OpenForward, ForwardError>>, ForwardError> {
        let results = self.ask(|reply| Command::SetForwards {
            replaced,
            rules,
            reply,
        });
        results.await.ok_or(ForwardError::Ended)
    }

    // ---- the network ----

    /// What has passed, what was dropped, and what there is now.
    ///
    /// # Errors
    ///
    /// [`PortError::Ended`] once the network has stopped.
    pub async fn statistics(&self) -> Result<Statistics, PortError> {
        // All are asked before the first answer is waited for.
        let asked = self.workers.iter().map(|w| w.ask(Command::Statistics));
        let asked: Vec<_> = asked.collect();
        let mut sum: Option<Statistics> = None;
        for answer in asked {
            let counted = answer.await.map_err(|_| PortError::Ended)?;
            match &mut sum {
                Some(sum) => sum.add(&counted),
                None => sum = Some(counted),
            }
        }
        sum.ok_or(PortError::Ended)
    }

    /// What is behind each uplink, and what passed there.
    ///
    /// # Errors
    ///
    /// [`PortError::Ended`] once the network has stopped.
    pub async fn uplinks(&self) -> Result<Vec<UplinkReport>, PortError> {
        self.ask(Command::Uplinks).await.ok_or(PortError::Ended)
    }

    /// Waits until all that containers have sent over TCP, and that was acknowledged to them, was
    /// passed on to the host's kernel, the ends of their streams included. Meant for when their
    /// processes have ended, so that there is an end.
    pub async fn delivered(&self) {
        let asked = self.workers.iter().map(|w| w.ask(Command::Delivered));
        let asked: Vec<_> = asked.collect();
        for answer in asked {
            // A network that has stopped has nothing more to pass on.
            let _ = answer.await;
        }
    }

    /// Tells the addresses that the host has now, which filters may refuse to containers
    /// ([`cnet_nat::policy::PeerFilter::no_host`]).
    pub fn set_host_addresses(&self, addresses: &[IpAddr]) {
        for worker in self.workers.iter() {
            worker.send(Command::SetHostAddresses(addresses.to_vec()));
        }
    }

    /// Tells what is allowed to the containers at these ports from now on, `None` for everything. What is
    /// open and not allowed any more ends.
    pub fn set_access(&self, list: Vec<(PortId, Option<Arc<Access>>)>) {
        for worker in self.workers.iter() {
            worker.send(Command::SetAccess(list.clone()));
        }
    }

    /// Answers queries that came out of [`DnsQueries`](crate::DnsQueries). The
    /// worker is woken once for all of them.
    pub fn answer_dns(&self, answers: Vec<(QueryId, Vec<u8>)>) {
        self.send(Command::AnswerDns(answers));
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    use cnet_wire::Protocol;
    use cnet_wire::prefixes::Subnet;

    use super::*;
    use crate::{Dataplane, NetworkConfig};

    fn dataplane() -> Dataplane {
        let config = NetworkConfig::new(1500, Some(Subnet::DEFAULT.plan()), None);
        Dataplane::start(config).unwrap().0
    }

    fn rule(protocol: Protocol, host: SocketAddr, port: u16) -> Rule {
        Rule::new(protocol, host, SocketAddr::from(([10, 0, 2, 100], port)))
    }

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn is_free(open: &OpenForward) -> bool {
        match open.rule.protocol {
            Protocol::Tcp => TcpStream::connect(open.bound).is_err(),
            Protocol::Udp => UdpSocket::bind(open.bound).is_ok(),
        }
    }

    #[tokio::test]
    async fn a_list_replaces_another_by_difference_with_a_result_a_rule() {
        let dataplane = dataplane();
        let control = dataplane.control();
        let taken = TcpListener::bind(any()).unwrap();
        let taken_at = taken.local_addr().unwrap();
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let first = control
            .set_forwards(vec![
                rule(tcp, any(), 80),
                rule(tcp, taken_at, 80),
                rule(udp, any(), 53),
            ])
            .await
            .unwrap();
        let [Ok(web), Err(ForwardError::InUse { .. }), Ok(dns)] = &first[..] else {
            panic!("{first:?}");
        };
        assert!(web.bound.port() != 0 && !is_free(web) && !is_free(dns));
        // A client that waits at a port that stays is still there.
        let waits = TcpStream::connect(web.bound).unwrap();
        // What goes makes room in the same list, here for another protocol's rule and another place.
        let moved = rule(udp, dns.bound, 5353);
        let second = control
            .set_forwards(vec![moved, web.rule, rule(tcp, any(), 81)])
            .await
            .unwrap();
        let [Ok(again), Ok(stays), Ok(other)] = &second[..] else {
            panic!("{second:?}");
        };
        assert_eq!(stays, web, "it was not opened again");
        assert_eq!((again.bound, again.rule), (dns.bound, moved));
        assert!(again.id != dns.id && other.id != web.id);
        waits.set_nonblocking(true).unwrap();
        let error = waits.peek(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let mut open = control.forwards().await.unwrap();
        open.sort_by_key(|open| open.id);
        assert_eq!(open, [*web, *again, *other]);
        assert_eq!(control.set_forwards(Vec::new()).await, Ok(Vec::new()));
        assert!([web, again, other].into_iter().all(is_free));
        dataplane.stop().unwrap();
    }

    #[tokio::test]
    async fn one_list_leaves_the_others_alone() {
        let dataplane = dataplane();
        let control = dataplane.control();
        let tcp = |port| rule(Protocol::Tcp, any(), port);
        let others = control.add_forward(tcp(1)).await.unwrap();
        let ours = control.add_forward(tcp(2)).await.unwrap();
        let replaced = control.replace_forwards(vec![ours.id], vec![tcp(2), tcp(3)]);
        let results = replaced.await.unwrap();
        assert_eq!(results[0], Ok(ours));
        let new = results[1].clone().unwrap();
        control
            .remove_forwards(vec![ours.id, ours.id])
            .await
            .unwrap();
        assert!(is_free(&ours) && !is_free(&others) && !is_free(&new));
        // Two alike are two.
        let twice = control.set_forwards(vec![tcp(1), tcp(1), new.rule]).await;
        let twice = twice.unwrap();
        assert_eq!((&twice[0], &twice[2]), (&Ok(others), &Ok(new)));
        assert_ne!(twice[1].clone().unwrap().bound, others.bound);
        dataplane.stop().unwrap();
        let after = control.add_forward(tcp(4)).await;
        assert_eq!(after, Err(ForwardError::Ended));
    }
}
