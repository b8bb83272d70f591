//! The namespace helper's client: asks the helper for TAPs, from tasks that wait side by side.
//!
//! The helper is a process ([`cnet_tap::helper::ns_helper`]) that the network process forks before
//! it has any thread and before it holds a lock or a socket, so that the helper keeps neither after
//! the network process's end.
//!
//! # Limits
//!
//! If the helper itself is killed, the network process cannot take in containers any more:
//! [`NsHelperClient::ended`] tells, and it ends.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use cnet::control::{Kind, Refusal};
use cnet_tap::async_fd::AsyncOwnedFd;
use cnet_tap::helper::ns_helper::Answer;
use cnet_tap::helper::{NsHelper, OpenedTap, Request, TapRequest};
use cnet_tap::netif::policy_routing::RoutesBySource;
use tokio::io::Interest;
use tokio::sync::{Semaphore, oneshot, watch};

/// Requests under way at a time.
const MAX_REQUESTS: usize = 32;

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It could not be made, as the text says.
    #[error("{0}")]
    Refused(String),
    /// The helper has ended.
    #[error(
        "the process that enters namespaces has ended; the network starts again with the next command"
    )]
    Ended,
    /// A message to the helper could not be sent.
    #[error("cannot talk to the process that enters namespaces: {0}")]
    Conversation(String),
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Refusal {
        let kind = match error {
            OpenError::Refused(_) => Kind::Impossible,
            OpenError::Ended => Kind::Ending,
            OpenError::Conversation(_) => Kind::Internal,
        };
        Refusal::new(kind, error.to_string())
    }
}

#[derive(Debug, Default)]
struct Waiting {
    requests: Mutex<(u64, HashMap<u64, oneshot::Sender<Answer>>)>,
}

impl Waiting {
    fn add(&self) -> (u64, oneshot::Receiver<Answer>) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.0 += 1;
        let number = requests.0;
        let (sender, receiver) = oneshot::channel();
        requests.1.insert(number, sender);
        (number, receiver)
    }

    fn take(&self, number: u64) -> Option<oneshot::Sender<Answer>> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.1.remove(&number)
    }

    fn clear(&self) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.1.clear();
    }
}

async fn listen(
    socket: AsyncOwnedFd,
    helper: Arc<NsHelper>,
    waiting: Arc<Waiting>,
    ended: watch::Sender<bool>,
) {
    while let Ok(mut ready) = socket.ready().await {
        match helper.take() {
            Ok(Some(answer)) => {
                if let Some(waiter) = waiting.take(answer.number) {
                    // If the request was given up, the descriptors close, and the TAP goes with
                    // them.
                    let _ = waiter.send(answer);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Ok(None) | Err(_) => break,
        }
    }
    let _ = ended.send(true);
    waiting.clear();
}

/// The namespace helper, seen from the network process's tasks.
#[derive(Clone, Debug)]
pub struct NsHelperClient {
    helper: Arc<NsHelper>,
    waiting: Arc<Waiting>,
    ended: watch::Receiver<bool>,
    room: Arc<Semaphore>,
}

impl NsHelperClient {
    /// Begins to listen to the helper, on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// What dup(2) and epoll_ctl(2) say.
    pub fn new(helper: NsHelper) -> io::Result<NsHelperClient> {
        let socket = helper.as_fd().try_clone_to_owned();
        let socket = socket.and_then(|fd| AsyncOwnedFd::new(fd, Interest::READABLE))?;
        let (helper, waiting) = (Arc::new(helper), Arc::new(Waiting::default()));
        let (ended_sender, ended) = watch::channel(false);
        let listening = listen(
            socket,
            Arc::clone(&helper),
            Arc::clone(&waiting),
            ended_sender,
        );
        tokio::spawn(listening);
        Ok(NsHelperClient {
            helper,
            waiting,
            ended,
            room: Arc::new(Semaphore::new(MAX_REQUESTS)),
        })
    }

    /// Makes a TAP in the network namespace `net`, or takes one over. It goes with its descriptors until [`cnet_tap::TapQueue::set_persistent`] says otherwise.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub async fn open(
        &self,
        net: BorrowedFd<'_>,
        request: &TapRequest,
    ) -> Result<OpenedTap, OpenError> {
        let answer = self.ask(net, &Request::Tap(request.clone())).await?;
        answer
            .into_tap(request.queues)
            .map_err(|error| OpenError::Refused(error.to_string()))
    }

    /// Brings the routes by source of the interface `ifindex` in the network namespace `net` to `routes`.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub async fn set_routes(
        &self,
        net: BorrowedFd<'_>,
        ifindex: u32,
        routes: &RoutesBySource,
    ) -> Result<(), OpenError> {
        let request = Request::Routes(ifindex, routes.clone());
        let done = self.ask(net, &request).await?.into_done();
        done.map_err(|error| OpenError::Refused(error.to_string()))
    }

    /// Asks the helper for something, and waits for its answer.
    async fn ask(&self, net: BorrowedFd<'_>, request: &Request) -> Result<Answer, OpenError> {
        let _room = self.room.acquire().await.map_err(|_| OpenError::Ended)?;
        let (number, answer) = self.waiting.add();
        if *self.ended.borrow() {
            return Err(OpenError::Ended);
        }
        if let Err(error) = self.helper.ask(number, net, request) {
            self.waiting.take(number);
            return Err(match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => OpenError::Ended,
                _ => OpenError::Conversation(error.to_string()),
            });
        }
        answer.await.map_err(|_| OpenError::Ended)
    }

    /// Waits until the helper has ended.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error is the listening task's end, which is the same.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}
