//! What a worker is asked to do, and the mailbox that it is asked by.

use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use cnet_tap::SocketHelper;
use tokio::sync::oneshot;

use super::workers::WorkerEvent;
use crate::forward::{ForwardError, OpenForward, Replaced, Rule};
use crate::port::{PortDevice, PortEnd, PortError};
use crate::{PortId, PortPlan, QueryId, Statistics};

/// What a worker is asked to do. All but `Statistics`, `Delivered`, `Stop` and `Worker` goes to the
/// primary worker.
pub(crate) enum Command {
    AddPort(
        PortPlan,
        PortDevice,
        oneshot::Sender<Result<(PortId, PortEnd), PortError>>,
    ),
    RemovePort(PortId, oneshot::Sender<Result<(), PortError>>),
    Statistics(oneshot::Sender<Statistics>),
    /// Use this process to make sockets inside the namespace of the port's container.
    UseSocketHelper(PortId, SocketHelper),
    /// Answer once all that containers have sent is delivered.
    Delivered(oneshot::Sender<()>),
    SetForwards {
        replaced: Replaced,
        rules: Vec<Rule>,
        reply: oneshot::Sender<Vec<Result<OpenForward, ForwardError>>>,
    },
    ListForwards(oneshot::Sender<Vec<OpenForward>>),
    AnswerDns(QueryId, Vec<u8>),
    Stop,
    /// From another worker.
    Worker(WorkerEvent),
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
