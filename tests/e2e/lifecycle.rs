//! How `cnet-slirp` ends, and that nothing of it is left.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::lab::container::{Options, Slirp};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, echo};
use crate::lab::{Lab, REMOTE_V4, REMOTES};

/// How long it may take to be gone.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ends_within_a_second_when_the_container_is_killed() {
    let lab = Lab::direct();
    for options in [Options::default(), Options::ordinary_user()] {
        let mut slirp = Slirp::start(&lab, &options);
        let server = TcpServer::hold(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
        // Descriptors of the tests' own would keep the namespace alive: the connection and the
        // namespace are held by the container alone, but for this one handle, which is the
        // stand-in for a bind mount or another process that lingers.
        drop(slirp.namespace().connect(server.address, CONNECT));
        slirp.container.kill();
        let ended = slirp.process.wait(AT_ONCE);
        assert!(ended.is_some(), "still there: {}", slirp.process);
        lab.assert_nothing_left(&[], AT_ONCE);
    }
}

/// The far end is reset: it must not take half an upload for a whole one.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_upload_that_a_crash_cuts_off_ends_with_a_reset() {
    let lab = Lab::direct();
    for remote in REMOTES {
        let slirp = Slirp::start(&lab, &Options::default());
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        let server = TcpServer::start(
            &lab.remote,
            SocketAddr::new(remote, 0),
            move |mut stream| {
                let tell = tell.lock().expect("no panic while it is held").clone();
                let mut block = vec![0; 64 << 10];
                stream.read_exact(&mut block)?;
                let _ = tell.send(Ok(block.len()));
                let end = loop {
                    match stream.read(&mut block) {
                        Ok(n) if n > 0 => {}
                        end => break end,
                    }
                };
                let _ = tell.send(end);
                Ok(())
            },
        );
        let mut stream = (slirp.namespace().connect(server.address, CONNECT)).expect("connected");
        let ours = stream.try_clone().expect("another descriptor");
        let upload = thread::spawn(move || while stream.write_all(&[1; 8192]).is_ok() {});
        let begun = told.recv_timeout(CONNECT).expect("the upload begins");
        assert!(begun.is_ok());
        slirp.process.signal(Signal::KILL);
        let end = told.recv_timeout(CONNECT).expect("the upload ends");
        let error = end.expect_err("an upload that looks whole");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{remote}");
        // Nothing carries the container's packets any more.
        let _ = ours.shutdown(Shutdown::Both);
        upload.join().expect("no panic");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ends_with_0_on_the_exit_descriptor_and_unlinks_its_socket() {
    let lab = Lab::direct();
    let options = Options {
        api: true,
        ..Options::default()
    };
    let mut slirp = Slirp::start(&lab, &options);
    let path = slirp.api.clone().expect("it was asked for");
    assert!(path.exists());
    slirp.close_exit_fd();
    let status = slirp.process.wait(AT_ONCE);
    let status = status.unwrap_or_else(|| panic!("still there: {}", slirp.process));
    assert_eq!(status.code(), Some(0), "{}", slirp.process);
    assert!(!path.exists(), "the API socket is still there");
    lab.assert_nothing_left(&[slirp.container.pid()], AT_ONCE);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn ends_within_a_second_on_sigterm_and_tells_the_peers() {
    let lab = Lab::direct();
    let mut slirp = Slirp::start(&lab, &Options::default());
    let (report, seen) = std::sync::mpsc::channel();
    let server = TcpServer::start(
        &lab.remote,
        SocketAddr::new(REMOTE_V4.into(), 0),
        move |mut stream| {
            let _ = stream.read(&mut [0]);
            report.send(Instant::now()).map_err(std::io::Error::other)
        },
    );
    let stream = slirp.namespace().connect(server.address, CONNECT);
    let _open = stream.expect("connected");
    std::thread::sleep(Duration::from_millis(100));
    slirp.process.signal(Signal::TERM);
    let ended = slirp.process.wait(AT_ONCE);
    assert!(ended.is_some(), "still there: {}", slirp.process);
    let told = seen.recv_timeout(AT_ONCE);
    assert!(told.is_ok(), "the server was not told");
    lab.assert_nothing_left(&[slirp.container.pid()], AT_ONCE);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn sigkill_fails_the_containers_connections_and_leaves_no_helper() {
    let lab = Lab::direct();
    for options in [Options::default(), Options::ordinary_user()] {
        let mut slirp = Slirp::start(&lab, &options);
        let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
        let mut stream = slirp
            .namespace()
            .connect(server.address, CONNECT)
            .expect("connected");
        echo(&mut stream, b"alive").expect("the echo");
        slirp.process.signal(Signal::KILL);
        assert!(slirp.process.wait(AT_ONCE).is_some());
        lab.assert_nothing_left(&[slirp.container.pid()], AT_ONCE);
        let limit = Some(Duration::from_secs(1));
        stream.set_read_timeout(limit).expect("a limit");
        assert!(echo(&mut stream, b"dead?").is_err(), "the echo came back");
        let again = slirp.namespace().connect(server.address, AT_ONCE);
        assert!(again.is_err(), "a new connection came about");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_container_may_be_served_again() {
    let lab = Lab::direct();
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    let mut slirp = Slirp::start(&lab, &Options::default());
    for _ in 0..3 {
        let mut stream = slirp
            .namespace()
            .connect(server.address, CONNECT)
            .expect("connected");
        echo(&mut stream, b"again").expect("the echo");
        slirp.process.signal(Signal::KILL);
        assert!(slirp.process.wait(AT_ONCE).is_some());
        let Slirp { container, .. } = slirp;
        slirp = Slirp::serve(&lab, &Options::with("-c"), container);
    }
}

/// Without traffic it sleeps: no timer wakes it.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn idle_it_uses_no_processor_time() {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::with("-c"));
    let path = format!("/proc/{}/stat", slirp.process.pid());
    let ticks = || {
        let stat = std::fs::read_to_string(&path).expect("it lives");
        let (_, fields) = stat.rsplit_once(')').expect("its name in parentheses");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // User and system time, fields 14 and 15 of proc(5), in hundredths of a second.
        let time = fields[11..13].iter().map(|field| field.parse::<u64>());
        time.map(|ticks| ticks.expect("a number")).sum::<u64>()
    };
    std::thread::sleep(Duration::from_secs(2));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(3));
    let used = ticks() - before;
    assert!(used <= 1, "{used} hundredths of a second in three seconds");
}
