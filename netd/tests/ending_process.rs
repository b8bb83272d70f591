//! What a client does while the network's process is ending.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cnet::Network;
use cnet::control::{Action, Answer, Kind, NetworkReport, Refusal};
use cnet::definition::{Directories, Store};
use cnet::network::END_INTERVAL;
use cnet_netd::Subscriber;
use cnet_netd::serve::{self, Actions, Busy};

/// A network process that is ending the first times it is asked.
struct EndsAtFirst(AtomicUsize);

impl Actions for EndsAtFirst {
    fn admit(&self, _: BorrowedFd<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    async fn act(&self, _: Action, _: Vec<OwnedFd>) -> Result<Answer, Refusal> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0..20 => Err(Refusal::new(Kind::Ending, "the network is being stopped")),
            _ => Ok(Answer::Network(NetworkReport::new(
                "cnet",
                "ab".repeat(32),
                7,
            ))),
        }
    }

    fn subscribe(&self) -> Result<Subscriber, Refusal> {
        Err(Refusal::new(Kind::Ending, "the network is being stopped"))
    }
}

#[tokio::test]
async fn a_process_that_is_ending_is_waited_for() {
    let place = tempfile::tempdir().unwrap();
    let directories = Directories {
        config: place.path().join("c"),
        state: place.path().join("s"),
        runtime: place.path().join("r"),
    };
    directories.make_network_runtime("cnet").unwrap();
    let listener = serve::bind(&directories.socket("cnet")).unwrap();
    let process = Arc::new(EndsAtFirst(AtomicUsize::new(0)));
    tokio::spawn(serve::serve(
        listener,
        Arc::clone(&process),
        Busy::default(),
    ));
    let definition = Store::open(directories.clone()).get("cnet").unwrap();
    let network = Network::new(definition, directories);
    let begun = Instant::now();
    let report = network.inspect().await.unwrap();
    assert_eq!(report.map(|report| report.pid), Some(7));
    assert_eq!(process.0.load(Ordering::Relaxed), 21);
    assert!(
        begun.elapsed() >= 20 * END_INTERVAL,
        "it was asked without a pause"
    );
}
