//! The stream of what happens on the network, for clients that listen.
//!
//! # Theory of operation
//!
//! Each client has a place in one ring of the last [`MAX_EVENTS_BEHIND`] events. A client that is
//! further behind loses the oldest and is told how many; the network never waits for a client.

use std::sync::{Mutex, PoisonError};

use cnet::control::{Event, Kind, MAX_EVENTS_BEHIND, Refusal};
use tokio::sync::broadcast::{self, error::RecvError};

/// Clients that may listen at a time.
const MAX_SUBSCRIBERS: usize = 16;

/// Where events come from, until it is closed.
pub(crate) struct EventSource(Mutex<Option<broadcast::Sender<Event>>>);

impl Default for EventSource {
    fn default() -> EventSource {
        EventSource(Mutex::new(Some(broadcast::Sender::new(MAX_EVENTS_BEHIND))))
    }
}

impl EventSource {
    /// Tells all who listen.
    pub(crate) fn tell(&self, event: &Event) {
        if let Some(sender) = &*self.lock() {
            // Only without a listener it fails.
            let _ = sender.send(event.clone());
        }
    }

    /// One more that listens from now on.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if there are too many, [`Kind::Ending`] after [`EventSource::close`].
    pub(crate) fn subscribe(&self) -> Result<Subscriber, Refusal> {
        let sender = self.lock();
        let Some(sender) = &*sender else {
            return Err(Refusal::new(Kind::Ending, "the network is being stopped"));
        };
        if sender.receiver_count() >= MAX_SUBSCRIBERS {
            let text = format!("{MAX_SUBSCRIBERS} clients listen to events already");
            return Err(Refusal::new(Kind::Conflict, text));
        }
        Ok(Subscriber(sender.subscribe()))
    }

    /// No event comes any more: listeners get those that were told, and then the end.
    pub(crate) fn close(&self) {
        self.lock().take();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<broadcast::Sender<Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place in the stream.
#[derive(Debug)]
pub struct Subscriber(broadcast::Receiver<Event>);

impl Subscriber {
    /// Waits for the next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(count)) => Some(Event::Lost { count }),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cnet::control::{Action, Answer};
    use cnet::definition::{Directories, Store};
    use cnet::{ContainerReport, Network, PublishedPort};
    use cnet_wire::Protocol;

    use super::*;
    use crate::serve::{self, Actions, Busy};

    fn left(number: usize) -> Event {
        Event::Left {
            id: String::new(),
            name: number.to_string(),
            why: String::new(),
        }
    }

    #[tokio::test]
    async fn a_slow_client_is_told_how_much_it_lost_and_holds_up_no_other() {
        let source = EventSource::default();
        let mut slow = source.subscribe().unwrap();
        let mut quick = source.subscribe().unwrap();
        for number in 0..MAX_EVENTS_BEHIND + 10 {
            source.tell(&left(number));
            assert_eq!(quick.next().await, Some(left(number)));
        }
        assert_eq!(slow.next().await, Some(Event::Lost { count: 10 }));
        assert_eq!(slow.next().await, Some(left(10)));
        source.close();
        assert_eq!(quick.next().await, None);
        assert_eq!(
            slow.next().await,
            Some(left(11)),
            "what was told still comes"
        );
        assert_eq!(source.subscribe().unwrap_err().kind, Kind::Ending);
    }

    #[test]
    fn the_number_of_clients_is_bounded() {
        let source = EventSource::default();
        let all: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| source.subscribe()).collect();
        assert_eq!(source.subscribe().unwrap_err().kind, Kind::Conflict);
        drop(all);
        assert!(source.subscribe().is_ok());
    }

    /// A network process that is ending the first times it is asked for events.
    #[derive(Default)]
    struct EndsAtFirst {
        asked: AtomicUsize,
        source: EventSource,
    }

    impl Actions for EndsAtFirst {
        fn admit(&self, _: BorrowedFd<'_>) -> Result<(), Refusal> {
            Ok(())
        }

        async fn act(&self, _: Action, _: Vec<OwnedFd>) -> Result<Answer, Refusal> {
            Err(Refusal::new(Kind::Invalid, "it is asked for events alone"))
        }

        fn subscribe(&self) -> Result<Subscriber, Refusal> {
            match self.asked.fetch_add(1, Ordering::Relaxed) {
                0..3 => Err(Refusal::new(Kind::Ending, "the network is being stopped")),
                _ => self.source.subscribe(),
            }
        }
    }

    #[tokio::test]
    async fn a_client_waits_for_a_process_that_is_ending_and_reads_long_events() {
        let place = tempfile::tempdir().unwrap();
        let directories = Directories {
            config: place.path().join("c"),
            state: place.path().join("s"),
            runtime: place.path().join("r"),
        };
        directories.make_network_runtime("cnet").unwrap();
        let listener = serve::bind(&directories.socket("cnet")).unwrap();
        let process = Arc::new(EndsAtFirst::default());
        tokio::spawn(serve::serve(
            listener,
            Arc::clone(&process),
            Busy::default(),
        ));
        let definition = Store::open(directories.clone()).get("cnet").unwrap();
        let network = Network::new(definition, directories);
        let mut events = network.events().await.unwrap().expect("it runs");
        assert_eq!(process.asked.load(Ordering::Relaxed), 4);
        let mut container = ContainerReport::new("ab".repeat(32), "web");
        let address = "[fd12:3456::42:acff:fe1b:2]:443".parse().unwrap();
        container.ports = vec![PublishedPort::new(Protocol::Tcp, address, address); 20_000];
        let container = Box::new(container);
        let told = [Event::Joined { container }, left(1), left(2)];
        for event in &told {
            process.source.tell(event);
        }
        process.source.close();
        for event in told {
            assert_eq!(events.next().await.unwrap(), Some(event));
        }
        assert_eq!(events.next().await.unwrap(), None);
    }
}
