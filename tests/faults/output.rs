//! Standard output and the log are closed, full, or nothing reads them: forwarding goes on.

use std::net::SocketAddr;
use std::time::Duration;

use crate::lab::container::{Options, Slirp};
use crate::lab::run::{self, SHORT};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::connect_and_echo;
use crate::lab::{Lab, REMOTE_V4};

/// Both streams, in every way that takes nothing.
const NOWHERE: [&str; 3] = [
    ">/dev/full 2>/dev/full",
    ">&- 2>&-",
    "2>&1 >/dev/full | true",
];

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn forwarding_goes_on_without_standard_streams() {
    let lab = Lab::direct();
    let server = TcpServer::echo(&lab.remote, SocketAddr::new(REMOTE_V4.into(), 0));
    for redirection in &NOWHERE[..2] {
        let options = Options {
            redirection: Some(redirection),
            ..Options::with("-c")
        };
        let mut slirp = Slirp::bare(&lab, &options);
        for _ in 0..3 {
            let done = connect_and_echo(slirp.namespace(), server.address, b"on");
            done.unwrap_or_else(|error| panic!("{redirection}: {error}"));
        }
        // What it does not answer, it logs: nothing serves there.
        let refused = slirp.namespace().connect(([10, 0, 2, 2], 1).into(), SHORT);
        assert!(refused.is_err(), "{redirection}");
        assert!(
            slirp.process.wait(Duration::ZERO).is_none(),
            "{redirection}: it has ended"
        );
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_command_runs_and_its_exit_code_is_told_without_standard_streams() {
    let lab = Lab::direct();
    let program = crate::lab::binaries::binary("cnet");
    for redirection in NOWHERE {
        let told = lab.directory().join("code");
        let script = format!(
            "(\"$0\" run -vv -p 192.0.2.1:18080:80 -- ping -n -c 1 -W 2 {REMOTE_V4}; echo $? >'{}') {redirection}",
            told.display()
        );
        let shell = lab
            .command("sh")
            .args(["-c", script.as_str()])
            .arg(&program);
        shell.run(SHORT);
        let code = std::fs::read_to_string(&told).unwrap_or_default();
        // The command itself may fail for want of its output; cnet does not (125).
        assert!(
            ["0", "1", "2", "141"].contains(&code.trim()),
            "{redirection}: {code}"
        );
        let reached = run::Options::default().command(&lab, &["true"]).run(SHORT);
        assert!(reached.success(), "{reached}");
    }
}
