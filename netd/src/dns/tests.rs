//! The service as the gateway sees it.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::*;
use crate::dns::message::tests::{query, rcode};

/// A service, and what it has answered.
struct Bench {
    service: Arc<Service>,
    sender: mpsc::UnboundedSender<(PortId, Vec<u8>)>,
    answers: mpsc::UnboundedReceiver<(PortId, Vec<u8>)>,
}

impl Bench {
    fn new(config: Config) -> Bench {
        let (sender, answers) = mpsc::unbounded_channel();
        Bench {
            service: Service::new(config),
            sender,
            answers,
        }
    }

    fn towards(server: SocketAddr) -> Bench {
        Bench::new(asks(server))
    }

    fn ask(&self, port: u32, query: Vec<u8>) {
        let (port, sender) = (PortId(port), self.sender.clone());
        let reply = move |answer: Vec<u8>| sender.send((port, answer)).unwrap();
        let asker = Asker {
            transport: Transport::Udp,
            port,
            address: Ipv4Addr::new(10, 0, 2, 100).into(),
        };
        self.service.handle(asker, query, reply);
    }

    fn answer(&mut self) -> Option<(PortId, Vec<u8>)> {
        self.answers.try_recv().ok()
    }

    fn count(&self, name: &str) -> u64 {
        let outcomes = self.service.outcomes();
        outcomes.iter().find(|(n, _)| *n == name).unwrap().1
    }
}

fn asks(server: SocketAddr) -> Config {
    let text = server.to_string();
    Config {
        servers: Some(vec![text.parse().unwrap()]),
        ..Config::default()
    }
}

async fn server() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

async fn receive(server: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = [0; 512];
    let (length, from) = server.recv_from(&mut buf).await.unwrap();
    (buf[..length].to_vec(), from)
}

/// An address for the name that is asked for, with this TTL.
fn response(query: &[u8], ttl: u32) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[7] = 1;
    answer.extend([0xc0, 12, 0, 1, 0, 1]);
    answer.extend(ttl.to_be_bytes());
    answer.extend([0, 4, 192, 0, 2, 7]);
    answer
}

#[tokio::test]
async fn identical_questions_are_asked_once_and_then_answered_from_memory() {
    let (server, address) = server().await;
    let mut bench = Bench::towards(address);
    bench.ask(1, query(1, "Example.org", 1));
    bench.ask(2, query(2, "example.ORG", 1));
    bench.ask(2, query(3, "example.org", 28));
    let (first, from) = receive(&server).await;
    let (second, _) = receive(&server).await;
    assert_ne!(first[12..], second[12..]);
    let mut buf = [0; 512];
    assert!(server.try_recv(&mut buf).is_err(), "asked once");
    server.send_to(&response(&first, 60), from).await.unwrap();
    for (port, sent) in [
        (1, query(1, "Example.org", 1)),
        (2, query(2, "example.ORG", 1)),
    ] {
        let (to, answer) = bench.answers.recv().await.unwrap();
        assert_eq!(to, PortId(port));
        assert_eq!(answer, response(&sent, 60));
    }
    bench.ask(3, query(9, "EXAMPLE.org", 1));
    assert_eq!(
        bench.answer().unwrap().1,
        response(&query(9, "EXAMPLE.org", 1), 60)
    );
    assert_eq!((bench.count("forwarded"), bench.count("cached")), (2, 1));
    assert_eq!(bench.service.flights().waiting(), 1);
}

#[tokio::test]
async fn a_ports_own_oldest_query_gives_way() {
    let (_server, address) = server().await;
    let mut bench = Bench::towards(address);
    bench.ask(2, query(7, "neighbour.example", 1));
    for n in 0..MAX_OF_PORT {
        bench.ask(1, query(n as u16, &format!("n{n}.example"), 1));
    }
    assert!(bench.answer().is_none(), "all wait");
    bench.ask(1, query(9999, "late.example", 1));
    let (port, answer) = bench.answer().unwrap();
    assert_eq!(
        (port, rcode(&answer), message::id_of(&answer)),
        (PortId(1), 2, 0)
    );
    assert!(bench.answer().is_none());
    // Where all together have too many, it is the oldest of the port with most.
    for n in 0..MAX_WAITERS - MAX_OF_PORT - 1 {
        bench.ask(
            3 + (n % 2) as u32,
            query(n as u16, &format!("m{n}.example"), 1),
        );
    }
    assert_eq!(bench.service.flights().waiting(), MAX_WAITERS);
    bench.ask(3, query(1, "more.example", 1));
    let (port, answer) = bench.answer().unwrap();
    assert_eq!((port, message::id_of(&answer)), (PortId(1), 1));
    assert_eq!(bench.count("over_limit"), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_when_servers_are_silent() {
    let (_server, address) = server().await;
    let mut bench = Bench::towards(address);
    for n in 0..100 {
        bench.ask(1, query(n, "example.org", 1));
        bench.ask(1, query(n, &format!("n{n}.example"), 1));
    }
    for _ in 0..200 {
        assert_eq!(rcode(&bench.answers.recv().await.unwrap().1), 2);
    }
    assert_eq!(bench.count("failed"), 200);
    assert!(bench.service.flights().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_serves_where_no_server_does() {
    let (server, address) = server().await;
    let mut bench = Bench::new(Config {
        stale: Duration::from_secs(3600),
        ..asks(address)
    });
    bench.ask(1, query(1, "example.org", 1));
    let (first, from) = receive(&server).await;
    server.send_to(&response(&first, 1), from).await.unwrap();
    bench.answers.recv().await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    let started = tokio::time::Instant::now();
    bench.ask(1, query(2, "example.org", 1));
    let stale = bench.answers.recv().await.unwrap().1;
    assert_eq!(stale, response(&query(2, "example.org", 1), 30));
    assert!(started.elapsed() >= STALE_WAIT && started.elapsed() < 2 * STALE_WAIT);
    bench.ask(1, query(3, "example.org", 1));
    assert_eq!(
        bench.answer().unwrap().1,
        response(&query(3, "example.org", 1), 30)
    );
    assert_eq!(bench.count("stale"), 1);
    // The late answer is fresh again.
    receive(&server).await;
}

#[test]
fn a_network_that_asks_nowhere_knows_only_its_own() {
    let names = Names::new(Zone::default());
    names.join(
        "1",
        Host {
            name: "web".into(),
            ipv4: Some([10, 0, 2, 9].into()),
            ..Host::default()
        },
    );
    let mut bench = Bench::new(Config {
        names: LocalNames::default().with_containers(names),
        ..Config::default()
    });
    let mut ask = |name, kind| {
        // There is no runtime that it could ask from.
        bench.ask(1, query(5, name, kind));
        rcode(&bench.answer().unwrap().1)
    };
    assert_eq!(
        (ask("web", 1), ask("example.org", 1), ask("com", 2)),
        (0, 3, 3)
    );
}

/// One client is on another network as well.
#[derive(Debug)]
struct OneOnAnother {
    servers: Option<Vec<DnsServer>>,
    own: Vec<DnsServer>,
}

impl Clients for OneOnAnother {
    fn host(&self, _client: IpAddr) -> Option<HostAddress> {
        Some(HostAddress::Unreachable)
    }

    fn other_networks(&self, _: IpAddr) -> Vec<OtherNetwork> {
        let names = Names::new(Zone {
            network: "back".into(),
            ..Zone::default()
        });
        let host = Host {
            name: "db".into(),
            ipv4: Some([10, 0, 3, 9].into()),
            ..Host::default()
        };
        names.join("1", host);
        let servers = self.servers.clone().map(Arc::from);
        vec![OtherNetwork { names, servers }]
    }

    fn servers(&self, _: IpAddr) -> Arc<[DnsServer]> {
        self.own.clone().into()
    }
}

#[tokio::test]
async fn a_client_of_an_internal_network_asks_where_its_other_network_asks() {
    let (server, address) = server().await;
    let servers = vec![address.to_string().parse().unwrap()];
    for (servers, asks) in [(None, false), (Some(servers), true)] {
        let clients = OneOnAnother {
            servers,
            own: Vec::new(),
        };
        let mut bench = Bench::new(Config {
            clients: Some(Arc::new(clients)),
            ..Config::default()
        });
        bench.ask(1, query(1, "db", 1));
        assert_eq!(rcode(&bench.answer().unwrap().1), 0);
        bench.ask(1, query(1, "gone.back", 1));
        assert_eq!(rcode(&bench.answer().unwrap().1), 3);
        bench.ask(1, query(1, "example.org", 1));
        match asks {
            false => assert_eq!(rcode(&bench.answer().unwrap().1), 3),
            true => assert_eq!(
                receive(&server).await.0[12..],
                query(1, "example.org", 1)[12..]
            ),
        }
    }
}

#[tokio::test]
async fn a_client_may_have_servers_of_its_own_and_domains_theirs() {
    let (network, network_at) = server().await;
    let (own, own_at) = server().await;
    let (corp, corp_at) = server().await;
    let of = |text: String| text.parse::<DnsServer>().unwrap();
    let clients = OneOnAnother {
        servers: None,
        own: vec![of(own_at.to_string())],
    };
    let domain = of(format!("corp.example={corp_at}"));
    for (clients, name, asked) in [
        (None, "example.org", &network),
        (None, "x.corp.example", &corp),
        (Some(clients), "example.org", &own),
    ] {
        let bench = Bench::new(Config {
            servers: Some(vec![of(network_at.to_string()), domain.clone()]),
            clients: clients.map(|c| Arc::new(c) as Arc<dyn Clients>),
            ..Config::default()
        });
        bench.ask(1, query(1, name, 1));
        assert_eq!(receive(asked).await.0[12..], query(1, name, 1)[12..]);
    }
}

#[tokio::test]
async fn single_labels_and_special_names_are_asked_for_nowhere() {
    let (server, address) = server().await;
    let mut bench = Bench::towards(address);
    for (name, kind, code) in [
        ("web", 1, 3),
        ("web", 28, 3),
        ("localhost", 1, 0),
        ("x.localhost", 15, 0),
        ("x.invalid", 16, 3),
    ] {
        bench.ask(1, query(1, name, kind));
        assert_eq!(rcode(&bench.answer().unwrap().1), code, "{name}");
    }
    bench.ask(1, query(1, "com", 2));
    assert_eq!(receive(&server).await.0[12..], query(1, "com", 2)[12..]);
}

#[tokio::test]
async fn what_is_no_query_gets_no_answer_and_a_broken_one_formerr() {
    let mut bench = Bench::towards("127.0.0.1:9".parse().unwrap());
    bench.ask(1, vec![1, 2, 3]);
    let mut response = query(7, "example.org", 1);
    response[2] |= 0x80;
    bench.ask(1, response);
    assert!(bench.answer().is_none());
    let mut broken = query(7, "example.org", 1);
    broken.truncate(20);
    bench.ask(1, broken);
    assert_eq!(rcode(&bench.answer().unwrap().1), 1);
}

/// A task that ends before its time leaves no flight behind that later queries would join.
#[tokio::test]
async fn a_flight_that_ends_early_is_over_for_those_who_wait() {
    let (server, address) = server().await;
    let mut bench = Bench::towards(address);
    bench.ask(1, query(1, "example.org", 1));
    receive(&server).await;
    bench.service.flights().abort_all();
    let (_, answer) = bench.answers.recv().await.unwrap();
    assert_eq!(rcode(&answer), 2);
    assert!(bench.service.flights().is_empty());
    bench.ask(1, query(2, "example.org", 1));
    receive(&server).await;
}
