//! DNS through the container's resolver address to the host's resolvers.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lab::container::{DNS_V4, Options, Slirp};
use crate::lab::namespace::Namespace;
use crate::lab::servers::{TcpServer, UdpServer};
use crate::lab::traffic::CONNECT;
use crate::lab::{Lab, REMOTE_V4, REMOTE_V6, REMOTES, SILENT_V4, any, run};

/// What every name that exists resolves to.
const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
/// Where DNS is answered over IPv6.
const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

const NOERROR: u8 = 0;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// A query for the A record of `name` (RFC 1035, section 4).
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The resolver's answer: names that start with `missing` do not exist, `large` ones have forty
/// addresses, which over UDP do not fit, any other has one.
fn answer(query: &[u8], over_udp: bool) -> Option<Vec<u8>> {
    let label_length = usize::from(*query.get(12)?);
    let label = query.get(13..13 + label_length)?;
    let mut message = query.to_vec();
    let count = match label {
        b"missing" => 0,
        b"large" => 40,
        _ => 1,
    };
    let cut = count > 1 && over_udp;
    let code = if count == 0 { NXDOMAIN } else { NOERROR };
    // A response; recursion desired and available.
    message[2] = 0x81 | if cut { 0x02 } else { 0 };
    message[3] = 0x80 | code;
    if cut {
        return Some(message);
    }
    message[7] = count;
    for _ in 0..count {
        // The name by a pointer to the question, type A, class IN, 60 s, 4 bytes.
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend(ANSWER.octets());
    }
    Some(message)
}

/// A resolver, over UDP and TCP.
struct Resolver {
    udp: UdpServer,
    ids: Arc<Mutex<Vec<u16>>>,
    _tcp: TcpServer,
}

impl Resolver {
    fn start(namespace: &Namespace, address: IpAddr) -> Self {
        let at = SocketAddr::new(address, 53);
        let ids = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ids);
        let udp = UdpServer::start(namespace, at, move |query| {
            let id = u16::from_be_bytes([*query.first()?, *query.get(1)?]);
            seen.lock().expect("one thread").push(id);
            answer(query, true)
        });
        let tcp = TcpServer::start(namespace, at, |mut stream| {
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut query)?;
                let answer = answer(&query, false).unwrap_or_default();
                let length = u16::try_from(answer.len()).expect("a short answer");
                stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
            }
            Ok(())
        });
        Self {
            udp,
            ids,
            _tcp: tcp,
        }
    }
}

/// The response code of an answer, and its addresses.
fn read_answer(message: &[u8], id: u16) -> (u8, usize) {
    assert!(message.len() >= 12, "{message:?}");
    assert_eq!(message[..2], id.to_be_bytes(), "the id of the query");
    assert_eq!(message[2] & 0x80, 0x80, "a response");
    let octets = ANSWER.octets();
    let addresses = message.windows(4).filter(|window| *window == octets);
    (message[3] & 0x0f, addresses.count())
}

fn ask_udp(from: &Namespace, server: IpAddr, name: &str, limit: Duration) -> Option<(u8, usize)> {
    let socket = from.udp(any(server, 0), limit);
    socket.connect((server, 53)).expect("a route");
    socket.send(&query(0x1234, name)).expect("sent");
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    Some(read_answer(&buffer[..length], 0x1234))
}

fn ask_tcp(from: &Namespace, server: IpAddr, name: &str) -> std::io::Result<(u8, usize)> {
    let mut stream = from.connect(SocketAddr::new(server, 53), CONNECT)?;
    let query = query(0x4321, name);
    let length = u16::try_from(query.len()).expect("a short query");
    stream.write_all(&[&length.to_be_bytes()[..], &query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(read_answer(&message, 0x4321))
}

fn resolv_conf(lab: &Lab, servers: &[IpAddr]) -> Option<PathBuf> {
    let lines = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"));
    Some(lab.file("resolv.conf", &lines.collect::<String>()))
}

fn start(lab: &Lab, servers: &[IpAddr]) -> Slirp {
    let options = Options {
        resolv_conf: resolv_conf(lab, servers),
        ..Options::default()
    };
    Slirp::start(lab, &options)
}

const LIMIT: Duration = Duration::from_secs(6);

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn queries_over_udp_reach_the_hosts_resolver() {
    let lab = Lab::direct();
    for remote in REMOTES {
        let _resolver = Resolver::start(&lab.remote, remote);
        let slirp = start(&lab, &[remote]);
        let ask = |name| ask_udp(slirp.namespace(), DNS_V4.into(), name, LIMIT);
        assert_eq!(ask("service.test"), Some((NOERROR, 1)), "by {remote}");
        assert_eq!(ask("missing.test"), Some((NXDOMAIN, 0)), "by {remote}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn queries_over_tcp_reach_the_hosts_resolver() {
    let lab = Lab::direct();
    let _resolver = Resolver::start(&lab.remote, REMOTE_V4.into());
    let slirp = start(&lab, &[REMOTE_V4.into()]);
    for (name, addresses) in [("service.test", 1), ("large.test", 40)] {
        let answer = ask_tcp(slirp.namespace(), DNS_V4.into(), name);
        assert_eq!(answer.expect("an answer"), (NOERROR, addresses), "{name}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_resolver_is_there_over_ipv6() {
    let lab = Lab::direct();
    let _resolver = Resolver::start(&lab.remote, REMOTE_V6.into());
    let slirp = start(&lab, &[REMOTE_V6.into()]);
    let answer = ask_udp(slirp.namespace(), DNS_V6.into(), "service.test", LIMIT);
    assert_eq!(answer, Some((NOERROR, 1)));
}

/// As systemd-resolved has it: the host's resolver is on the host's loopback, which the container
/// cannot reach itself.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_resolver_on_the_hosts_loopback_serves() {
    let lab = Lab::direct();
    let stub = IpAddr::from(Ipv4Addr::new(127, 0, 0, 53));
    let _resolver = Resolver::start(&lab.host, stub);
    let slirp = start(&lab, &[stub]);
    let answer = ask_udp(slirp.namespace(), DNS_V4.into(), "service.test", LIMIT);
    assert_eq!(answer, Some((NOERROR, 1)));
}

/// Queries come by either queue of the TAP, each from a port of its own.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn two_workers_answer_queries() {
    let lab = Lab::direct();
    let _resolver = Resolver::start(&lab.remote, REMOTE_V4.into());
    let options = Options {
        resolv_conf: resolv_conf(&lab, &[REMOTE_V4.into()]),
        ..Options::with("--workers=2")
    };
    let slirp = Slirp::start(&lab, &options);
    for n in 0..16 {
        let (name, server) = (format!("service{n}.test"), DNS_V4.into());
        let answer = ask_udp(slirp.namespace(), server, &name, LIMIT);
        assert_eq!(answer, Some((NOERROR, 1)));
        let answer = ask_tcp(slirp.namespace(), server, &name);
        assert_eq!(answer.expect("an answer"), (NOERROR, 1));
    }
}

/// Port and id are what a forger has to guess (RFC 5452).
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn every_query_has_its_own_source_port_and_id() {
    let lab = Lab::direct();
    let resolver = Resolver::start(&lab.remote, REMOTE_V4.into());
    let slirp = start(&lab, &[REMOTE_V4.into()]);
    let socket = slirp
        .namespace()
        .udp(any(DNS_V4.into(), 0), Duration::from_secs(5));
    socket.connect((DNS_V4, 53)).expect("a route");
    for index in 0..32 {
        let name = format!("name{index}.test");
        socket.send(&query(7, &name)).expect("sent");
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("an answer");
        assert_eq!(read_answer(&buffer[..length], 7), (NOERROR, 1));
    }
    let ports = resolver.udp.log.sockets();
    let ports: HashSet<u16> = ports.iter().map(SocketAddr::port).collect();
    let ids = resolver.ids.lock().expect("one thread").clone();
    let distinct: HashSet<u16> = ids.iter().copied().collect();
    // Two of 32 may meet by chance, once in a hundred times; more than two hardly ever.
    assert!(ports.len() >= 30, "{} ports", ports.len());
    assert!(distinct.len() >= 30, "{ids:?}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_next_resolver_answers_where_the_first_is_silent_or_closed() {
    let lab = Lab::direct();
    let _resolver = Resolver::start(&lab.remote, REMOTE_V4.into());
    // Nothing listens on the remote's IPv6 address.
    for dead in [IpAddr::V4(SILENT_V4), IpAddr::V6(REMOTE_V6)] {
        let slirp = start(&lab, &[dead, REMOTE_V4.into()]);
        let started = Instant::now();
        let answer = ask_udp(slirp.namespace(), DNS_V4.into(), "service.test", LIMIT);
        let elapsed = started.elapsed();
        assert_eq!(answer, Some((NOERROR, 1)), "behind {dead}");
        assert!(elapsed < Duration::from_secs(2), "{dead}: {elapsed:?}");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn silent_resolvers_are_reported_when_the_hosts_patience_is_over() {
    let lab = Lab::direct();
    let conf = format!("nameserver {SILENT_V4}\noptions timeout:1 attempts:2\n");
    let options = Options {
        resolv_conf: Some(lab.file("resolv.conf", &conf)),
        ..Options::default()
    };
    let slirp = Slirp::start(&lab, &options);
    let started = Instant::now();
    let answer = ask_udp(slirp.namespace(), DNS_V4.into(), "service.test", LIMIT);
    let elapsed = started.elapsed();
    assert_eq!(answer, Some((SERVFAIL, 0)));
    let about = Duration::from_millis(1900)..Duration::from_millis(4000);
    assert!(about.contains(&elapsed), "{elapsed:?}");
}

/// A resolver that answers each query `delay` after it came, and how many came.
fn slow_resolver(lab: &Lab, delay: Duration) -> (UdpServer, Arc<Mutex<usize>>) {
    let at = SocketAddr::new(REMOTE_V4.into(), 53);
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let server = UdpServer::start_slow(&lab.remote, at, delay, move |query| {
        *count.lock().expect("one thread") += 1;
        answer(query, true)
    });
    (server, asked)
}

/// More at once than there were places for.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn hundreds_of_queries_to_a_slow_resolver_are_all_answered_and_each_is_asked_once() {
    let lab = Lab::direct();
    let (_server, asked) = slow_resolver(&lab, Duration::from_secs(1));
    let slirp = start(&lab, &[REMOTE_V4.into()]);
    // All answers come in one instant: the buffer of a single socket would not hold them.
    const SOCKETS: u16 = 20;
    const NAMES: u16 = 400;
    let connected = |_| {
        let socket = slirp.namespace().udp(any(DNS_V4.into(), 0), LIMIT);
        socket.connect((DNS_V4, 53)).expect("a route");
        socket
    };
    let sockets: Vec<UdpSocket> = (0..SOCKETS).map(connected).collect();
    for id in 0..2 * NAMES {
        let name = format!("n{}.test", id % NAMES);
        let socket = &sockets[usize::from(id % SOCKETS)];
        socket.send(&query(id, &name)).expect("sent");
        if id % 50 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let mut answered = HashSet::new();
    let mut buffer = [0; 512];
    for socket in &sockets {
        for _ in 0..2 * NAMES / SOCKETS {
            let length = socket.recv(&mut buffer).expect("an answer");
            let id = u16::from_be_bytes([buffer[0], buffer[1]]);
            assert_eq!(read_answer(&buffer[..length], id), (NOERROR, 1));
            answered.insert(id);
        }
    }
    assert_eq!(answered.len(), usize::from(2 * NAMES));
    assert_eq!(*asked.lock().expect("one thread"), usize::from(NAMES));
    // And now nothing is asked any more.
    let started = Instant::now();
    let again = ask_udp(slirp.namespace(), DNS_V4.into(), "N7.test", LIMIT);
    assert_eq!(again, Some((NOERROR, 1)));
    assert!(started.elapsed() < Duration::from_millis(900));
}

/// As slow as no resolver might be once.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn an_answer_that_takes_long_arrives() {
    let lab = Lab::direct();
    let (_server, asked) = slow_resolver(&lab, Duration::from_millis(4700));
    let slirp = start(&lab, &[REMOTE_V4.into()]);
    let answer = ask_udp(slirp.namespace(), DNS_V4.into(), "service.test", LIMIT);
    assert_eq!(answer, Some((NOERROR, 1)));
    assert_eq!(*asked.lock().expect("one thread"), 1);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_hundred_clients_over_tcp_are_answered_at_once() {
    let lab = Lab::direct();
    let _resolver = Resolver::start(&lab.remote, REMOTE_V4.into());
    let slirp = start(&lab, &[REMOTE_V4.into()]);
    let server = SocketAddr::new(DNS_V4.into(), 53);
    let connect = || {
        slirp
            .namespace()
            .connect(server, CONNECT)
            .expect("a connection")
    };
    let _idle: Vec<_> = (0..200).map(|_| connect()).collect();
    let mut clients: Vec<_> = (0..100).map(|_| connect()).collect();
    let started = Instant::now();
    for (id, client) in (0..).zip(&mut clients) {
        let query = query(id, &format!("n{id}.test"));
        let length = u16::try_from(query.len()).expect("a short query");
        let message = [&length.to_be_bytes()[..], &query].concat();
        client.write_all(&message).expect("sent");
    }
    for (id, client) in (0..).zip(&mut clients) {
        let mut length = [0; 2];
        client.read_exact(&mut length).expect("a length");
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        client.read_exact(&mut message).expect("a message");
        assert_eq!(read_answer(&message, id), (NOERROR, 1));
    }
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

/// Whether an answer ends with an OPT record of version 0 (RFC 6891).
fn speaks_edns(message: &[u8]) -> bool {
    let opt = &message[message.len() - 11..];
    message[11] == 1 && opt[..3] == [0, 0, 41] && opt[6] == 0
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn own_answers_to_a_client_that_speaks_edns_speak_it_too() {
    let lab = Lab::direct();
    let slirp = start(&lab, &[SILENT_V4.into()]);
    let socket = slirp.namespace().udp(any(DNS_V4.into(), 0), LIMIT);
    socket.connect((DNS_V4, 53)).expect("a route");
    for (name, version, code) in [
        ("host.containers.internal", 0, NOERROR),
        ("localhost", 0, NOERROR),
        ("single", 0, NXDOMAIN),
        ("x.invalid", 0, NXDOMAIN),
        ("service.test", 1, NOERROR),
    ] {
        let mut message = query(5, name);
        message[11] = 1;
        message.extend([0, 0, 41, 4, 0xd0, 0, version, 0, 0, 0, 0]);
        socket.send(&message).expect("sent");
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("an answer");
        let answer = &buffer[..length];
        assert_eq!(read_answer(answer, 5).0, code, "{name}");
        assert!(speaks_edns(answer), "{name}: {answer:02x?}");
        // The upper bits of BADVERS, which is 16.
        assert_eq!(answer[length - 6], u8::from(version > 0), "{name}");
    }
}

/// An ICMP error is an answer, and the next resolver's or SERVFAIL comes at once.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn unreachable_resolvers_are_reported_at_once() {
    let lab = Lab::direct();
    // Nothing listens there.
    let slirp = start(&lab, &[REMOTE_V4.into(), REMOTE_V6.into()]);
    let started = Instant::now();
    let answer = ask_udp(slirp.namespace(), DNS_V4.into(), "service.test", LIMIT);
    assert_eq!(answer, Some((SERVFAIL, 0)));
    assert!(
        started.elapsed() < Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn names_of_a_domain_are_asked_for_at_its_own_server() {
    let lab = Lab::direct();
    let _resolver = Resolver::start(&lab.remote, REMOTE_V6.into());
    let options = run::Options::with(&format!(
        "--dns {SILENT_V4} --dns corp.test={REMOTE_V6} --dns-option timeout:1"
    ));
    let done = options.command(&lab, &["getent", "ahostsv4", "x.corp.test"]);
    let done = done.run(run::SHORT);
    assert!(done.stdout.contains(&ANSWER.to_string()), "{done}");
    let options = run::Options::with("--subnet 10.77.0.0/24 --dns 10.77.0.3");
    let done = options.command(&lab, &["true"]).run(run::SHORT);
    assert!(
        !done.success() && done.stderr.contains("would ask itself"),
        "{done}"
    );
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn disabled_nothing_answers() {
    let lab = Lab::direct();
    let resolver = Resolver::start(&lab.remote, REMOTE_V4.into());
    let options = Options {
        resolv_conf: resolv_conf(&lab, &[REMOTE_V4.into()]),
        ..Options::with("--disable-dns")
    };
    let slirp = Slirp::start(&lab, &options);
    let limit = Duration::from_secs(2);
    let answer = ask_udp(slirp.namespace(), DNS_V4.into(), "service.test", limit);
    assert_eq!(answer, None);
    assert!(resolver.udp.log.peers().is_empty());
    // The address itself is there, as with slirp4netns.
    let ping = slirp.namespace().command("ping");
    let arguments = format!("-n -c 1 -W 1 {DNS_V4}");
    let done = ping.args(arguments.split(' ')).run(Duration::from_secs(5));
    assert!(done.success(), "{done}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn run_gives_its_command_a_resolv_conf_that_works() {
    let lab = Lab::direct();
    for (index, user) in [run::Options::default(), run::Options::ordinary_user()]
        .into_iter()
        .enumerate()
    {
        // A resolver on the host's loopback: a copy of the host's file would not do.
        let stub = IpAddr::from(Ipv4Addr::new(127, 0, 0, 53));
        let resolver = Resolver::start(&lab.host, stub);
        let options = run::Options {
            resolv_conf: resolv_conf(&lab, &[stub]),
            ..user
        };
        let script = "cat /etc/resolv.conf && getent ahostsv4 service.test";
        let done = options.shell(&lab, script).run(run::SHORT);
        assert!(done.success(), "user {index}: {done}");
        assert!(done.stdout.contains(&ANSWER.to_string()), "{done}");
        assert!(!resolver.udp.log.peers().is_empty());
    }
}
