//! What a container sent last, which outlives the container.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::{GONE, Place};
use crate::lab::run::SHORT;
use crate::lab::servers::TcpServer;
use crate::lab::{Lab, REMOTES, any};

/// How long the far end waits before it reads.
const SLOW: Duration = Duration::from_secs(2);

/// A far end that begins to read late: its address, and what it has read up to the end.
fn slow_reader(lab: &Lab) -> (TcpServer, SocketAddr, mpsc::Receiver<Result<usize, String>>) {
    let (came, all) = mpsc::channel();
    let server = TcpServer::start(&lab.remote, any(REMOTES[0], 0), move |mut stream| {
        thread::sleep(SLOW);
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes).map(|_| bytes.len());
        let _ = came.send(read.map_err(|e| e.to_string()));
        Ok(())
    });
    let to = SocketAddr::new(REMOTES[0], server.address.port());
    (server, to, all)
}

/// A container on `network` sends that many bytes, and is gone.
fn upload(place: &Place<'_>, network: &str, len: usize, to: SocketAddr) {
    let upload = format!(
        "head -c {len} /dev/zero >/dev/tcp/{}/{}",
        to.ip(),
        to.port()
    );
    let run = place.cnet(&format!("run --network {network} --"));
    let done = run.args(["bash", "-c", &upload]).run(SHORT);
    assert!(done.success(), "{done}");
}

/// The far end reads only after the container, and the last of the network, is gone: what the
/// container was told is taken has to come.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_a_container_sent_last_reaches_a_slow_reader() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let (_server, to, all) = slow_reader(&lab);
    // The first is the kernel's all in all when the container goes, the others in part.
    for len in [20_000, 200_000, 400_000] {
        upload(&place, "cnet", len, to);
        let read = all.recv_timeout(Duration::from_secs(10)).expect("an end");
        assert_eq!(read, Ok(len));
    }
}

/// The same when the network is removed at once: that takes as long as the far end needs.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn what_a_container_sent_last_is_delivered_before_its_network_is_removed() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    // Less than what is sent, and not growing: the rest is ours when the container goes.
    lab.host.sysctl("ipv4/tcp_wmem", "4096 32768 32768");
    lab.remote.sysctl("ipv4/tcp_rmem", "4096 32768 32768");
    let (_server, to, all) = slow_reader(&lab);
    for len in [100_000, 140_000] {
        place.done("network create lan");
        upload(&place, "lan", len, to);
        let begun = Instant::now();
        place.done("network rm lan");
        assert!(begun.elapsed() < SLOW * 2, "{:?}", begun.elapsed());
        let read = all.recv_timeout(Duration::from_secs(10)).expect("an end");
        assert_eq!(read, Ok(len));
    }
    lab.assert_nothing_left(&[], GONE);
}
