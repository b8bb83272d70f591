//! A runtime that embeds the crate `cnet`: it listens to a network's events, publishes a port, and
//! removes the network.

use std::time::Duration;

use cnet::control::client::AskError;
use cnet::definition::{Directories, StoreError};
use cnet::{Event, Network, NetworkError};

use super::Place;
use crate::lab::Lab;
use crate::lab::binaries::binary;

/// How long an event may take.
const SOON: Duration = Duration::from_secs(5);

/// The network of that name, as a program of the same user has it.
fn network(place: &Place<'_>, name: &str) -> Network {
    let own = place.runtime.join("cnet");
    let directories = Directories {
        config: own.clone(),
        state: own.clone(),
        runtime: own,
    };
    let definition = cnet::definition::Store::open(directories.clone()).get(name);
    let network = Network::new(definition.expect("the network"), directories);
    network.with_program(binary("cnet"))
}

async fn next(events: &mut cnet::Events) -> Result<Option<Event>, AskError> {
    let event = tokio::time::timeout(SOON, events.next());
    event.await.expect("an event in time")
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_runtime_hears_who_joins_and_leaves_and_removes_the_network_at_last() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create lan");
    let _first = place.join("lan", "first", "");
    let lan = network(&place, "lan");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an event loop");
    let mut events = runtime
        .block_on(lan.events())
        .expect("an answer")
        .expect("it runs");
    let second = place.join("lan", "second", "");
    runtime.block_on(async {
        let joined = next(&mut events).await.expect("an event");
        let Some(Event::Joined { container }) = joined else {
            panic!("{joined:?}");
        };
        assert_eq!(container.name, "second");
        assert_eq!(container.ipv4.map(|net| net.addr().into()), Some(second.v4));
        let spec = "127.0.0.1::80".parse().expect("a port");
        let published = lan.publish("second", &[spec]).await.expect("published");
        assert_eq!(published.ports[0].container.ip(), second.v4);
        let in_use = lan.remove().await;
        let is_in_use = |e: &NetworkError| {
            matches!(e, NetworkError::Store(StoreError::InUse { containers, .. }) if containers.len() == 2)
        };
        assert!(in_use.as_ref().is_err_and(is_in_use), "{in_use:?}");
    });
    drop(second);
    place.done("detach first");
    runtime.block_on(async {
        let mut left = Vec::new();
        for _ in 0..2 {
            match next(&mut events).await.expect("an event") {
                Some(Event::Left { name, why, .. }) => left.push((name, why)),
                other => panic!("{other:?}"),
            }
        }
        left.sort();
        let told: Vec<_> = left.iter().map(|(n, w)| (n.as_str(), w.as_str())).collect();
        assert_eq!(told, [("first", "detached"), ("second", "it has ended")]);
        lan.remove().await.expect("removed");
        assert_eq!(next(&mut events).await.expect("the end"), None);
        assert!(lan.events().await.expect("an answer").is_none());
    });
    let gone = place.cnet("network inspect lan").run(SOON);
    assert!(!gone.success(), "{gone}");
}
