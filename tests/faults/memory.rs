//! Little memory: a control group with a limit. New flows are refused, and the old ones kept, where
//! the kernel would otherwise end the program and all flows with it.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lab::cgroup::MemoryGroup;
use crate::lab::container::{Options, Slirp};
use crate::lab::namespace::connect_here;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, connect_and_echo, echo};
use crate::lab::{Lab, REMOTE_V4, wait_until};

/// Bytes that the program may use. Its own are a few MiB.
const LIMIT: u64 = 16 << 20;

/// Connections that are tried: their sockets alone would take more than [`LIMIT`].
const ATTEMPTS: usize = 4500;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_memory_limit_refuses_new_flows_and_keeps_the_old_ones() {
    let Some(group) = MemoryGroup::create(LIMIT) else {
        println!("no controller of memory here: only the reader's own tests have run");
        return;
    };
    let lab = Lab::direct();
    let options = Options {
        memory: Some(Arc::new(group.door())),
        ..Options::with("-c")
    };
    let mut slirp = Slirp::bare(&lab, &options);
    let server = TcpServer::hold(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let echoing = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let mut old = slirp
        .namespace()
        .connect(echoing.address, CONNECT)
        .expect("an old flow");
    let mut open: Vec<TcpStream> = Vec::new();
    let longest = slirp.namespace().enter(|| {
        let mut longest = Duration::ZERO;
        for number in 0..ATTEMPTS {
            let started = Instant::now();
            match connect_here(server.address, CONNECT) {
                Ok(stream) => open.push(stream),
                Err(error) => {
                    assert_eq!(
                        error.kind(),
                        ErrorKind::ConnectionRefused,
                        "{number}: {error}"
                    );
                    longest = longest.max(started.elapsed());
                }
            }
        }
        longest
    });
    println!(
        "{} of {ATTEMPTS} connections; refused within {longest:?}",
        open.len()
    );
    assert!(
        (100..2000).contains(&open.len()),
        "{} connections",
        open.len()
    );
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    let ended = slirp.process.wait(Duration::ZERO);
    assert!(ended.is_none(), "it has ended: {}", slirp.process);
    echo(&mut old, &[7; 100_000]).expect("an old flow");
    drop(open);
    wait_until("a new flow", Duration::from_secs(1), || {
        let done = connect_and_echo(slirp.namespace(), echoing.address, b"again");
        done.map_err(|error| error.to_string())
    });
    drop(slirp);
}
