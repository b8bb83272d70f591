//! Networks are removed while others join them.

use std::thread;
use std::time::Duration;

use super::{GONE, Place, SHORT};
use crate::lab::Lab;
use crate::lab::process::Finished;

/// How often both are tried at once.
const ROUNDS: u32 = 10;

/// When the network is removed.
#[derive(Clone, Copy, PartialEq, Debug)]
enum When {
    Before,
    /// That many milliseconds after the container has begun to join.
    Meanwhile(u32),
    After,
}

/// Has the container join and removes the network.
fn both(place: &Place<'_>, attach: &str, when: When) -> (Finished, Finished) {
    let attach = || place.cnet(attach).run(SHORT);
    let remove = || place.cnet("network rm lan").run(SHORT);
    match when {
        When::Before => {
            let gone = remove();
            (attach(), gone)
        }
        When::After => (attach(), remove()),
        When::Meanwhile(milliseconds) => thread::scope(|scope| {
            let attached = scope.spawn(attach);
            thread::sleep(Duration::from_millis(milliseconds.into()));
            let gone = remove();
            (attached.join().expect("no panic"), gone)
        }),
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn one_of_removing_and_joining_at_once_is_refused() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let (process, namespace) = place.container();
        let attach = format!("attach --network lan --name web {}", process.pid());
        let directory = place.runtime.join("cnet/lan");
        // Later each time, up to when the container has joined.
        let meanwhile = (0..ROUNDS).map(|round| When::Meanwhile(3 * round));
        for when in [When::Before, When::After].into_iter().chain(meanwhile) {
            place.done("network create lan");
            let (attached, gone) = both(&place, &attach, when);
            let there = place.done("network ls").stdout.contains("lan");
            if gone.success() {
                assert_ne!(when, When::After, "{gone}");
                assert!(!there && !directory.exists(), "{when:?}: not all is gone");
                assert!(!attached.success(), "{when:?}: {attached}");
                assert!(attached.stderr.contains("`lan`"), "{attached}");
                assert!(!place.done("ps").stdout.contains("web"));
            } else {
                assert_ne!(when, When::Before, "{gone}");
                assert!(gone.stderr.contains("`lan` is in use"), "{gone}");
                assert!(there && attached.success(), "{when:?}: {attached}");
                place.done("detach web");
                place.done("network rm lan");
            }
            assert!(!directory.exists(), "{when:?}: lock or log is left");
            assert!(!namespace.ip("-o link").contains("eth0"));
        }
        lab.assert_nothing_left(&[process.pid()], GONE);
    }
}
