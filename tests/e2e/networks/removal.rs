//! Networks are removed while others join them.

use std::thread;

use super::{GONE, Place, SHORT};
use crate::lab::Lab;

/// How often both are tried at once.
const ROUNDS: usize = 10;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn one_of_removing_and_joining_at_once_is_refused() {
    let lab = Lab::direct();
    for place in Place::each(&lab) {
        let (process, namespace) = place.container();
        let attach = format!("attach --network lan --name web {}", process.pid());
        let directory = place.runtime.join("cnet/lan");
        let mut removed = 0;
        for round in 0..ROUNDS {
            place.done("network create lan");
            let (attached, gone) = thread::scope(|scope| {
                let attached = scope.spawn(|| place.cnet(&attach).run(SHORT));
                // Later each time, up to when the container has joined.
                thread::sleep(std::time::Duration::from_millis(3) * round as u32);
                let gone = place.cnet("network rm lan").run(SHORT);
                (attached.join().expect("no panic"), gone)
            });
            let there = place.done("network ls").stdout.contains("lan");
            if gone.success() {
                removed += 1;
                assert!(!there && !directory.exists(), "{round}: not all is gone");
                assert!(!attached.success(), "{round}: {attached}");
                assert!(attached.stderr.contains("`lan`"), "{attached}");
                assert!(!place.done("ps").stdout.contains("web"));
            } else {
                assert!(gone.stderr.contains("`lan` is in use"), "{gone}");
                assert!(there && attached.success(), "{round}: {attached}");
                place.done("detach web");
                place.done("network rm lan");
            }
            assert!(!directory.exists(), "{round}: lock or log is left");
            assert!(!namespace.ip("-o link").contains("eth0"));
        }
        println!("{removed} of {ROUNDS} were removed first");
        lab.assert_nothing_left(&[process.pid()], GONE);
    }
}
