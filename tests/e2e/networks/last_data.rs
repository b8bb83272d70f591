//! What a container sent last, which outlives the container.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::Place;
use crate::lab::run::SHORT;
use crate::lab::servers::TcpServer;
use crate::lab::{Lab, REMOTES, any};

/// The far end reads only after the container, and the last of the network, is gone: what the
/// container was told is taken has to come.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_a_container_sent_last_reaches_a_slow_reader() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let (came, all) = mpsc::channel();
    let server = TcpServer::start(&lab.remote, any(REMOTES[0], 0), move |mut stream| {
        thread::sleep(Duration::from_secs(2));
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes).map(|_| bytes.len());
        let _ = came.send(read.map_err(|e| e.to_string()));
        Ok(())
    });
    let to = SocketAddr::new(REMOTES[0], server.address.port());
    // The first is the kernel's all in all when the container goes, the others in part.
    for len in [20_000, 200_000, 400_000] {
        let upload = format!(
            "head -c {len} /dev/zero >/dev/tcp/{}/{}",
            to.ip(),
            to.port()
        );
        let run = place.cnet("run --network cnet --");
        let done = run.args(["bash", "-c", &upload]).run(SHORT);
        assert!(done.success(), "{done}");
        let read = all.recv_timeout(Duration::from_secs(10)).expect("an end");
        assert_eq!(read, Ok(len));
    }
}
