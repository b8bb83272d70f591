//! Sixty-four containers on one network: each reaches each, a broadcast reaches all, and what they
//! cost.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use cnet_wire::checksum;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};

use super::{Member, Place};
use crate::lab::namespace::Namespace;
use crate::lab::run::SHORT;
use crate::lab::traffic::median;
use crate::lab::{Lab, any};

const CONTAINERS: usize = 64;

/// What the middle one of all may take to join. The aim is 30 ms on a quiet machine.
const ATTACH: Duration = Duration::from_millis(100);

/// How many ping at a time. The kernel has one neighbour cache for all namespaces, of 1,024 entries
/// (`gc_thresh3` in arp(7)): each that pings fills one at itself and one at each other.
const AT_ONCE: usize = 6;

/// Sends an echo request (RFC 792) to each of `others`, up to ten times; gives those who stay
/// silent.
fn ping_all(from: &Namespace, others: &BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
    let mut silent = others.clone();
    from.enter(|| {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP));
        let socket = socket.expect("a raw socket as root");
        let limit = Some(Duration::from_millis(200));
        set_socket_timeout(&socket, Timeout::Recv, limit).expect("a read limit");
        let mut request = [8, 0, 0, 0, 0x63, 0x6e, 0, 1];
        let sum = checksum::finish(0, &request);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut buffer = [0; 2048];
        for _ in 0..10 {
            for to in &silent {
                let to = SocketAddr::from((*to, 0));
                sendto(&socket, &request, SendFlags::empty(), &to).expect("a request");
            }
            while !silent.is_empty()
                && let Ok((length, _)) = recv(&socket, &mut buffer, RecvFlags::empty())
            {
                // The IPv4 header, which has no options, comes along; requests of others do too.
                let (header, message) = buffer[..length].split_at(20);
                if message[0] == 0 && message[4..] == request[4..] {
                    let from: [u8; 4] = header[12..16].try_into().expect("four octets");
                    silent.remove(&Ipv4Addr::from(from));
                }
            }
        }
    });
    silent
}

fn v4(member: &Member) -> Ipv4Addr {
    match member.v4 {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(address) => panic!("{address}"),
    }
}

/// Resident memory of a process in KiB.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).expect("a number")
}

fn all_pairs_ping(members: &[Member]) {
    let all: BTreeSet<Ipv4Addr> = members.iter().map(v4).collect();
    assert_eq!(all.len(), CONTAINERS);
    let started = Instant::now();
    for batch in members.chunks(AT_ONCE) {
        thread::scope(|scope| {
            for member in batch {
                let mut others = all.clone();
                others.remove(&v4(member));
                scope.spawn(move || {
                    let silent = ping_all(&member.namespace, &others);
                    assert!(silent.is_empty(), "{} misses {silent:?}", member.name);
                });
            }
        });
        for member in members {
            member.namespace.ip("neigh flush all");
        }
    }
    let pairs = CONTAINERS * (CONTAINERS - 1);
    println!("{pairs} pairs in {:?}", started.elapsed());
}

fn a_broadcast_reaches_all(members: &[Member]) {
    const PORT: u16 = 9999;
    let (sender, others) = members.split_first().expect("sixty-four");
    let receivers: Vec<_> = others
        .iter()
        .map(|m| m.namespace.udp(any(m.v4, PORT), Duration::from_secs(2)))
        .collect();
    let socket = sender.namespace.udp(any(sender.v4, 0), SHORT);
    socket.set_broadcast(true).expect("a right of any socket");
    let to = (Ipv4Addr::new(10, 88, 255, 255), PORT);
    socket.send_to(b"to all", to).expect("a broadcast");
    for (receiver, member) in receivers.iter().zip(others) {
        let mut buffer = [0; 100];
        let received = receiver.recv_from(&mut buffer);
        let (length, from) = received.unwrap_or_else(|e| panic!("{}: {e}", member.name));
        assert_eq!((&buffer[..length], from.ip()), (&b"to all"[..], sender.v4));
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn sixty_four_containers_reach_each_other_and_a_broadcast_reaches_all() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let waiting: Vec<_> = (0..CONTAINERS).map(|_| place.container()).collect();
    let mut times = Vec::new();
    let mut alone = 0;
    let mut members = Vec::new();
    for (number, (process, namespace)) in waiting.into_iter().enumerate() {
        let pid = process.pid();
        let attach = format!("attach --json --name c{number} {pid}");
        let done = place.done(&attach);
        times.push(done.elapsed.as_secs_f64() * 1e3);
        let joined = serde_json::from_str(&done.stdout).expect("JSON");
        members.push(Member::read(&joined, Some(process), namespace));
        if number == 0 {
            let network = place.process("cnet").expect("a network process");
            alone = resident(network.as_raw_nonzero().get());
        }
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    let middle = median(times);
    println!("attach: {middle:.1} ms at the median, {worst:.1} ms at worst");
    all_pairs_ping(&members);
    a_broadcast_reaches_all(&members);
    let network = place.process("cnet").expect("a network process");
    let all = resident(network.as_raw_nonzero().get());
    println!("resident: {alone} KiB with one container, {all} KiB with {CONTAINERS}");
    let shown = place.inspect("cnet");
    let containers = shown["Containers"].as_object().expect("a table");
    assert_eq!(containers.len(), CONTAINERS);
    assert!(middle <= ATTACH.as_secs_f64() * 1e3, "{middle} ms");
    drop(members);
    lab.assert_nothing_left(&[], super::GONE);
}
