//! What a worker is asked to do, what workers tell each other, and the mailboxes that carry both.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use cnet_nat::host::Token;
use cnet_nat::policy::PeerFilter;
use cnet_tap::SocketHelper;
use cnet_tap::socket::Diagnostics;
use cnet_vswitch::port::PortConfig;
use cnet_wire::access::Access;
use tokio::sync::oneshot;

use crate::forward::{BoundSockets, ForwardError, OpenForward, Replaced, Rule};
use crate::handoff::Inlet;
use crate::port::{PortDevice, PortEnd, PortError, PortQueue, UplinkReport};
use crate::{PortId, PortPlan, QueryId, Statistics};

/// What a worker is asked to do. All but `Statistics`, `Delivered`, `SetHostAddresses`, `SetAccess`,
/// `Stop` and `Worker` goes to the primary worker.
pub(crate) enum Command {
    AddPort(
        PortPlan,
        PortDevice,
        oneshot::Sender<Result<(PortId, PortEnd), PortError>>,
    ),
    RemovePort(PortId, oneshot::Sender<Result<(), PortError>>),
    Statistics(oneshot::Sender<Statistics>),
    Uplinks(oneshot::Sender<Vec<UplinkReport>>),
    /// Use this process to make sockets inside the namespace of the port's container.
    UseSocketHelper(PortId, SocketHelper),
    /// Ask the kernel of the port's container, by this, where the container listens.
    UseDiagnostics(PortId, Diagnostics),
    /// Answer once all that containers have sent is delivered.
    Delivered(oneshot::Sender<()>),
    SetForwards {
        replaced: Replaced,
        rules: Vec<Rule>,
        reply: oneshot::Sender<Vec<Result<OpenForward, ForwardError>>>,
    },
    ListForwards(oneshot::Sender<Vec<OpenForward>>),
    /// What the container of a port has bound.
    ListBound(PortId, oneshot::Sender<Option<BoundSockets>>),
    AnswerDns(Vec<(QueryId, Vec<u8>)>),
    /// To all workers: the host has these addresses now.
    SetHostAddresses(Vec<IpAddr>),
    /// To all workers: this is allowed to the containers at these ports from now on.
    SetAccess(AccessList),
    Stop,
    /// From another worker.
    Worker(WorkerEvent),
}

/// What is allowed to containers, by their ports; `None` for everything.
pub(crate) type AccessList = Vec<(PortId, Option<Arc<Access>>)>;

/// What workers tell each other.
pub(crate) enum WorkerEvent {
    /// To all but the primary worker: there is a port.
    PortAdded(Box<AddedPort>),
    /// To all but the primary worker: the port is gone.
    PortRemoved(Token),
    /// To the primary worker: the port's device failed, for this reason.
    PortFailed(Token, String),
    /// To the primary worker: a worker has failed, for this reason.
    WorkerFailed(String),
}

/// A port, as the primary worker describes it to another.
pub(crate) struct AddedPort {
    pub(crate) queue: PortQueue,
    pub(crate) config: PortConfig,
    pub(crate) filter: PeerFilter,
    pub(crate) access: Option<Arc<Access>>,
}

/// Where a worker takes its commands from.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox {
    pub(crate) commands: mpsc::Sender<Command>,
    /// An eventfd that the worker waits on.
    pub(crate) wake: Arc<OwnedFd>,
}

impl Mailbox {
    /// Puts a command into the mailbox and wakes the worker.
    pub(crate) fn send(&self, command: Command) {
        // A worker that has ended answers nothing; the caller's own channel tells it.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Asks a question; waiting for the answer fails if the worker has ended.
    pub(crate) fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        self.send(question(reply));
        answer
    }
}

/// The mailboxes of all workers, the primary one's first.
pub(crate) type Mailboxes = Arc<[Mailbox]>;

/// The other workers, as one worker sees them. Dropping it ends them, if it is the primary one's.
pub(crate) struct Peers {
    /// All others, for the primary worker; empty for the rest.
    pub(crate) others: Vec<Mailbox>,
    /// What they hand over.
    pub(crate) inlets: Vec<Inlet>,
    /// The primary worker, for the others.
    pub(crate) primary: Option<Mailbox>,
}

impl Peers {
    /// Tells the primary worker. Does nothing in the primary worker itself.
    pub(crate) fn tell_primary(&self, event: WorkerEvent) {
        if let Some(primary) = &self.primary {
            primary.send(Command::Worker(event));
        }
    }

    /// Tells the workers that are not the primary one, if this is the primary one.
    pub(crate) fn tell_others(&self, event: impl Fn() -> WorkerEvent) {
        for other in &self.others {
            other.send(Command::Worker(event()));
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for other in &self.others {
            other.send(Command::Stop);
        }
    }
}
