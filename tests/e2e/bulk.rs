//! 256 MiB each way with equal SHA-256, at four MTUs, under two congestion controls, over both
//! families, while a hundred other flows open and close.

use std::fs;
use std::net::SocketAddr;

use crate::lab::container::{Options, Slirp};
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{Churn, Payload};
use crate::lab::{Lab, REMOTES};

/// Where the machine lists the congestion controls that any namespace may choose.
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// Sets the congestion control of every namespace of the test. Only one that the machine allows to
/// everybody may be chosen in a namespace, so it is allowed for as long as that takes.
fn choose_congestion_control(lab: &Lab, slirp: &Slirp, name: &str) {
    let allowed = fs::read_to_string(ALLOWED).expect("a list");
    let more = format!("{} {name}", allowed.trim());
    fs::write(ALLOWED, more)
        .unwrap_or_else(|error| panic!("this kernel has no congestion control {name}: {error}"));
    for namespace in [&lab.host, &lab.remote, slirp.namespace()] {
        namespace.sysctl("ipv4/tcp_congestion_control", name);
    }
    fs::write(ALLOWED, allowed.trim()).expect("the list as it was");
}

fn bulk_both_ways(mtu: u32, congestion_control: &str) {
    let lab = Lab::direct();
    let slirp = Slirp::start(&lab, &Options::with(&format!("-m {mtu}")));
    choose_congestion_control(&lab, &slirp, congestion_control);
    let payload = Payload::bulk();
    for remote in REMOTES {
        let at = SocketAddr::new(remote, 0);
        let sink = TcpServer::digest(&lab.remote, at);
        let source = TcpServer::source(&lab.remote, at, &payload);
        let echoes: Vec<_> = (0..4).map(|_| TcpServer::echo(&lab.remote, at)).collect();
        let echoes: Vec<_> = echoes
            .iter()
            .map(|server| (server.address, server))
            .collect();
        let addresses: Vec<_> = echoes.iter().map(|(address, _)| *address).collect();

        let churn = Churn::start(slirp.namespace(), &addresses);
        let out = payload.upload(slirp.namespace(), sink.address);
        let out = out.unwrap_or_else(|error| panic!("out to {remote}: {error}"));
        let back = payload.download(slirp.namespace(), source.address);
        let back = back.unwrap_or_else(|error| panic!("in from {remote}: {error}"));
        let others = churn.stop();

        assert!(others >= 100, "only {others} other flows");
        let rate = |time: std::time::Duration| {
            payload.bytes().len() as f64 * 8.0 / 1e9 / time.as_secs_f64()
        };
        println!(
            "MTU {mtu}, {congestion_control}, {remote}: out {:.2}, in {:.2} Gbit/s, {others} flows beside",
            rate(out),
            rate(back)
        );
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_at_mtu_1280_under_cubic() {
    bulk_both_ways(1280, "cubic");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_at_mtu_1280_under_bbr() {
    bulk_both_ways(1280, "bbr");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_at_mtu_1500_under_cubic() {
    bulk_both_ways(1500, "cubic");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_at_mtu_1500_under_bbr() {
    bulk_both_ways(1500, "bbr");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_at_mtu_9000_under_cubic() {
    bulk_both_ways(9000, "cubic");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_at_mtu_9000_under_bbr() {
    bulk_both_ways(9000, "bbr");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_at_mtu_65520_under_cubic() {
    bulk_both_ways(65520, "cubic");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bulk_at_mtu_65520_under_bbr() {
    bulk_both_ways(65520, "bbr");
}
