//! A child in the whole sandbox, which tries to get out.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use cnet_tap::sandbox::{Mode, Policy, Role, enter, spawn_isolated};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Signal, WaitOptions};

use crate::stage::alone;

/// Has a child in the sandbox run `attempt`, and gives what it says, or the number of the signal that
/// has ended it.
fn in_sandbox(policy: Policy, attempt: impl FnOnce() -> String) -> Result<String, i32> {
    let what = "cannot fork";
    let (child, socket) = spawn_isolated(what, false, |isolated, socket| {
        let isolation = Some(isolated.isolation);
        let entered = enter(&Policy {
            isolation,
            ..policy
        });
        let said = match entered {
            Ok(_) => attempt(),
            Err(error) => format!("not entered: {error}"),
        };
        let sent = rustix::net::send(&socket, said.as_bytes(), SendFlags::NOSIGNAL);
        u8::from(sent.is_err())
    })
    .unwrap();
    let mut bytes = [0; 4096];
    let (_, length) = rustix::net::recv(&socket, &mut bytes, RecvFlags::empty()).unwrap();
    let ended = rustix::process::waitpid(Some(child), WaitOptions::empty());
    let (_, status) = ended.unwrap().unwrap();
    match status.terminating_signal() {
        Some(signal) => Err(signal),
        None => Ok(String::from_utf8_lossy(&bytes[..length]).into_owned()),
    }
}

fn private() -> Policy {
    Policy::new(Role::Private, Mode::Required)
}

/// For a process that has files, below this directory.
fn network(directory: PathBuf) -> Policy {
    let mut policy = Policy::new(Role::Network, Mode::Required);
    policy.writable = vec![directory];
    policy
}

fn scratch(name: &str) -> PathBuf {
    let name = format!("cnet-tap-sandbox-{}-{name}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn outcome<T>(result: io::Result<T>) -> String {
    result.map_or_else(|error| error.kind().to_string(), |_| "done".to_owned())
}

#[test]
#[ignore = "needs user namespaces"]
fn files_are_out_of_reach() {
    alone(|| {
        let said = in_sandbox(private(), || outcome(File::open("/etc/passwd")));
        assert_ne!(said.unwrap(), "done");
        let place = scratch("files");
        let inside = place.join("inside");
        // One that may open files has those of its own directory, and no others.
        let said = in_sandbox(network(place.clone()), || {
            let own = outcome(std::fs::write(&inside, "x"));
            let others = ["/etc/passwd", "/proc/1/environ", "/dev/null", "/tmp/other"];
            let others = others.map(|path| outcome(File::open(path)));
            let above = outcome(File::open(place.join("../../etc/passwd")));
            format!("{own} {} {above}", others.join(" "))
        });
        assert_eq!(
            said.unwrap(),
            "done entity not found entity not found entity not found entity not found entity not found"
        );
        assert_eq!(std::fs::read_to_string(&inside).unwrap(), "x");
        std::fs::remove_dir_all(place).unwrap();
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn unix_sockets_are_out_of_reach() {
    alone(|| {
        let place = scratch("sockets");
        let path = place.join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let said = in_sandbox(network(place.clone()), || {
            outcome(UnixStream::connect(&path))
        });
        assert_ne!(said.unwrap(), "done");
        std::fs::remove_dir_all(place).unwrap();
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn other_processes_hear_nothing() {
    alone(|| {
        let parent = rustix::process::getpid();
        let said = in_sandbox(private(), move || {
            let sent = rustix::process::kill_process(parent, Signal::TERM);
            outcome(sent.map_err(io::Error::from))
        });
        assert_ne!(said.unwrap(), "done");
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn a_program_that_is_started_ends_the_process() {
    alone(|| {
        let killed = in_sandbox(private(), || {
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            // SAFETY: the path and the one argument are C strings, and the list ends with a null
            // pointer.
            let failed = unsafe { libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr()) };
            failed.to_string()
        });
        assert_eq!(killed, Err(Signal::SYS.as_raw()));
        // What it is for goes on.
        let said = in_sandbox(private(), || outcome(UdpSocket::bind("127.0.0.1:0")));
        assert_eq!(said.unwrap(), "done");
        // Threads too.
        let said = in_sandbox(private(), || {
            let thread = std::thread::Builder::new().spawn(|| 7).unwrap();
            thread.join().unwrap().to_string()
        });
        assert_eq!(said.unwrap(), "7");
    });
}
