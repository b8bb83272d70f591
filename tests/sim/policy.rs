//! Policies between nine pods, as a table: who may open what to whom, over TCP, UDP and echo, in both
//! families; and that answers pass where nothing else may.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cnet::policy::{Manifest, Pod, PolicySet};
use cnet_core::Network;
use cnet_nat::datagram::DatagramConfig;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway, Quirks};
use cnet_nat::io::Io;
use cnet_nat::policy::Policy;
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_testkit::frames::{self, Tcp, flag};
use cnet_testkit::host::scripted::Scripted;
use cnet_vswitch::port::{Lease, PortConfig};
use cnet_wire::headers::FRAME_BUFFER_LEN;
use cnet_wire::time::Instant;
use cnet_wire::{DropReason, FrameSink, MacAddr, PortFull, PortId};
use serde_json::{Value, json};

/// Bytes of the virtio-net header before the Ethernet header.
const VNET: usize = cnet_wire::vnet::VNET_HDR_LEN;
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 254]);
const NOW: Instant = Instant::from_millis(1000);

/// The ports that frames were written to.
#[derive(Default)]
struct Wire(Vec<(PortId, Vec<u8>)>);

impl FrameSink for Wire {
    fn emit(&mut self, port: PortId, frame: &[u8]) -> Result<(), PortFull> {
        self.0.push((port, frame.to_vec()));
        Ok(())
    }
}

/// Pods a, b and c of the namespaces x, y and z, at ports 0 to 8.
struct Cluster {
    network: Network,
    pods: Vec<Pod>,
    wire: Wire,
    host: Scripted,
    buf: Vec<u8>,
}

fn mac(n: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, n as u8])
}

fn port(n: usize) -> PortId {
    PortId(n as u32 + 1)
}

impl Cluster {
    fn new() -> Self {
        let config = RouterConfig {
            mtu: 1500,
            gateway: GatewayConfig {
                mac: GATEWAY_MAC,
                mtu: 1500,
                v4: Some(Ipv4Gateway {
                    address: [10, 0, 0, 254].into(),
                    prefix_len: 8,
                    dns: None,
                }),
                v6: None,
                search: Vec::new(),
                dhcp_range: None,
                quirks: Quirks::default(),
            },
            policy: Policy::default(),
            tcp: TcpConfig::default(),
            datagram: DatagramConfig::default(),
        };
        let mut network = Network::new(config, [7; 32], NOW);
        let mut pods = Vec::new();
        for n in 0..9 {
            let (namespace, name) = (["x", "y", "z"][n / 3], ["a", "b", "c"][n % 3]);
            let v4 = [10, 0, n as u8 / 3, n as u8 % 3 + 1];
            let v6 = format!("fd00::{n}:1").parse().expect("an address");
            let lease = Lease {
                mac: Some(mac(n)),
                ipv4: vec![v4.into()],
                ipv6: vec![v6],
                hostname: None,
            };
            let config = PortConfig {
                lease,
                spoof_protection: true,
                ..PortConfig::default()
            };
            network.add_port(port(n), config).expect("a free port");
            let labels = [("namespace", namespace), ("pod", name)];
            pods.push(Pod {
                name: format!("{namespace}/{name}"),
                labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                addresses: vec![v4.into(), v6.into()],
            });
        }
        Cluster {
            network,
            pods,
            wire: Wire::default(),
            host: Scripted::default(),
            buf: vec![0; FRAME_BUFFER_LEN],
        }
    }

    fn apply(&mut self, specs: &[(&str, Value)]) {
        let mut set = PolicySet::default();
        for (n, (namespace, spec)) in specs.iter().enumerate() {
            let manifest = json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": format!("p{n}"), "namespace": namespace}, "spec": spec,
            });
            set.apply(Manifest::read(manifest).expect("a policy"));
        }
        let mut io = Io::new(&mut self.wire, &mut self.host, &mut self.buf);
        for n in 0..9 {
            let access = set.access(&self.pods[n], &self.pods).map(Arc::new);
            self.network.set_access(NOW, port(n), access, &mut io);
        }
    }

    fn at(&self, n: usize, family: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.pods[n].addresses[family], port)
    }

    /// Whether the frame of pod `from` gets to pod `to`. What does not is counted as refused.
    fn passes(&mut self, from: usize, to: usize, mut frame: Vec<u8>) -> bool {
        frame[VNET..VNET + 6].copy_from_slice(&mac(to).0);
        frame[VNET + 6..VNET + 12].copy_from_slice(&mac(from).0);
        self.wire.0.clear();
        let drops = self.network.drops();
        let mut io = Io::new(&mut self.wire, &mut self.host, &mut self.buf);
        self.network.handle_frame(NOW, port(from), &frame, &mut io);
        self.network.end_batch(NOW, &mut io);
        let refused = self.network.drops().get(DropReason::Policy) - drops.get(DropReason::Policy);
        let delivered = self
            .wire
            .0
            .iter()
            .any(|(at, bytes)| *at == port(to) && *bytes == frame);
        let all = self.network.drops();
        assert_eq!(u64::from(!delivered), refused, "{from} to {to}: {all:?}");
        delivered
    }

    fn tcp(&mut self, from: usize, to: usize, ends: [SocketAddr; 2], flags: u8) -> bool {
        let segment = Tcp {
            from: ends[0],
            to: ends[1],
            seq: 1,
            ack: 0,
            flags,
            window: 1000,
            urgent: 0,
            options: &[],
            payload: &[],
        };
        self.passes(from, to, segment.frame())
    }

    /// Whether `from` can open a conversation with `to` and is answered.
    fn converses(&mut self, from: usize, to: usize, protocol: u8, service: u16) -> bool {
        let families = [0, 1].map(|family| {
            let (client, server) = (self.at(from, family, 40_000), self.at(to, family, service));
            match protocol {
                6 => {
                    let opened = self.tcp(from, to, [client, server], flag::SYN);
                    let answered = flag::SYN | flag::ACK;
                    opened && self.tcp(to, from, [server, client], answered)
                }
                17 => {
                    let asked = frames::udp(client, server, b"?");
                    let answer = frames::udp(server, client, b"!");
                    self.passes(from, to, asked) && self.passes(to, from, answer)
                }
                _ => {
                    let (request, reply) = [(8, 0), (128, 129)][family];
                    let body = |kind| [kind, 0, 0, 0, 0, from as u8 + 1, 0, 1];
                    let asked = frames::icmp(client.ip(), server.ip(), 64, &body(request));
                    let answer = frames::icmp(server.ip(), client.ip(), 64, &body(reply));
                    self.passes(from, to, asked) && self.passes(to, from, answer)
                }
            }
        });
        assert_eq!(
            families[0], families[1],
            "{from} to {to}: the families differ"
        );
        families[0]
    }

    /// Who reaches whom: nine rows of nine.
    fn matrix(&mut self, protocol: u8, service: u16) -> String {
        let mut rows = String::new();
        for from in 0..9 {
            for to in 0..9 {
                let reached = from == to || self.converses(from, to, protocol, service);
                rows.push(if reached { 'y' } else { '.' });
            }
            rows.push(' ');
        }
        rows.trim_end().to_owned()
    }
}

const ALL: &str =
    "yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy";

/// One scenario: policies with their namespaces, a protocol, a port, and who reaches whom.
type Row = (
    &'static [(&'static str, &'static str)],
    u8,
    u16,
    &'static str,
);

const DENY_IN: &str = r#"{"podSelector": {}, "policyTypes": ["Ingress"]}"#;
const DENY_OUT: &str = r#"{"podSelector": {}, "policyTypes": ["Egress"]}"#;
const FROM_OWN: &str = r#"{"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}"#;
const A_WEB_FROM_B: &str = r#"{"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [
    {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}], "ports": [{"port": 80}]}]}"#;
const TO_Y_UDP: &str = r#"{"podSelector": {}, "policyTypes": ["Egress"], "egress": [
    {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}],
     "ports": [{"protocol": "UDP", "port": 53, "endPort": 60}]}]}"#;
const FROM_BLOCK: &str = r#"{"podSelector": {}, "ingress": [{"from": [
    {"ipBlock": {"cidr": "10.0.1.0/24", "except": ["10.0.1.2/32"]}},
    {"ipBlock": {"cidr": "fd00::3:0/112"}}, {"ipBlock": {"cidr": "fd00::5:0/112"}}]}]}"#;

const TABLE: &[Row] = &[
    (&[], 6, 80, ALL),
    (
        &[("x", DENY_IN)],
        6,
        80,
        "y..yyyyyy .y.yyyyyy ..yyyyyyy ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy",
    ),
    (
        &[("x", DENY_OUT)],
        17,
        80,
        "y........ .y....... ..y...... yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy",
    ),
    (
        &[("x", DENY_IN), ("x", DENY_OUT), ("x", FROM_OWN)],
        6,
        80,
        "y........ .y....... ..y...... ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy",
    ),
    (
        &[("x", FROM_OWN)],
        1,
        0,
        "yyyyyyyyy yyyyyyyyy yyyyyyyyy ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy ...yyyyyy",
    ),
    (
        &[("x", A_WEB_FROM_B)],
        6,
        80,
        "yyyyyyyyy yyyyyyyyy .yyyyyyyy .yyyyyyyy yyyyyyyyy .yyyyyyyy .yyyyyyyy yyyyyyyyy .yyyyyyyy",
    ),
    // Another port, another protocol, and one without ports.
    (
        &[("x", A_WEB_FROM_B)],
        6,
        81,
        "yyyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy",
    ),
    (
        &[("x", A_WEB_FROM_B)],
        1,
        0,
        "yyyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy .yyyyyyyy",
    ),
    (
        &[("x", TO_Y_UDP)],
        17,
        53,
        "y..yyy... .y.yyy... ..yyyy... yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy",
    ),
    (
        &[("x", TO_Y_UDP)],
        6,
        53,
        "y........ .y....... ..y...... yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy yyyyyyyyy",
    ),
    // The sender's consent and the receiver's: y takes nothing, x may speak to y alone.
    (
        &[("x", TO_Y_UDP), ("y", DENY_IN)],
        17,
        53,
        "y........ .y....... ..y...... yyyy..yyy yyy.y.yyy yyy..yyyy yyy...yyy yyy...yyy yyy...yyy",
    ),
    (
        &[("x", FROM_BLOCK)],
        6,
        80,
        "y..yyyyyy .y.yyyyyy ..yyyyyyy yyyyyyyyy ...yyyyyy yyyyyyyyy ...yyyyyy ...yyyyyy ...yyyyyy",
    ),
];

#[test]
fn policies_decide_who_reaches_whom() {
    for (policies, protocol, service, expected) in TABLE {
        let mut cluster = Cluster::new();
        let specs: Vec<(&str, Value)> = policies
            .iter()
            .map(|(namespace, spec)| (*namespace, serde_json::from_str(spec).expect("JSON")))
            .collect();
        cluster.apply(&specs);
        let matrix = cluster.matrix(*protocol, *service);
        assert_eq!(matrix, *expected, "{policies:?} {protocol} {service}");
        // Taken out, all is open again.
        cluster.apply(&[]);
        assert_eq!(cluster.matrix(*protocol, *service), ALL);
    }
}

/// x/a is closed both ways but for what it opens to y/a's port 80 and 53.
fn closed_client(cluster: &mut Cluster) {
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}],
                    "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}],
    });
    cluster.apply(&[("x", spec)]);
}

#[test]
fn answers_pass_and_nothing_that_opens() {
    let mut cluster = Cluster::new();
    closed_client(&mut cluster);
    for family in [0, 1] {
        let (client, server) = (cluster.at(0, family, 40_000), cluster.at(3, family, 53));
        let answer = || frames::udp(server, client, b"!");
        assert!(!cluster.passes(3, 0, answer()), "unasked");
        assert!(cluster.passes(0, 3, frames::udp(client, server, b"?")));
        assert!(cluster.passes(3, 0, answer()));
        let other = SocketAddr::new(server.ip(), 54);
        assert!(
            !cluster.passes(3, 0, frames::udp(other, client, b"!")),
            "another port"
        );
        // An error about what was sent passes, one about anything else does not.
        let (error, code) = [(3, 3), (1, 4)][family];
        let quoting = |from: SocketAddr, to: SocketAddr| {
            let quoted = frames::udp(from, to, b"?");
            let mut body = vec![error, code, 0, 0, 0, 0, 0, 0];
            body.extend_from_slice(&quoted[VNET + 14..]);
            frames::icmp(to.ip(), from.ip(), 64, &body)
        };
        assert!(cluster.passes(3, 0, quoting(client, server)));
        assert!(!cluster.passes(3, 0, quoting(client, other)));
        // TCP: what is no SYN, from the port that may be spoken to.
        let web = cluster.at(3, family, 80);
        assert!(!cluster.tcp(3, 0, [web, client], flag::SYN));
        assert!(cluster.tcp(3, 0, [web, client], flag::ACK));
        assert!(!cluster.tcp(3, 0, [other, client], flag::ACK));
    }
}

#[test]
fn a_refusal_is_told_and_a_change_applies_to_what_is_open() {
    let mut cluster = Cluster::new();
    let (client, server) = (cluster.at(0, 0, 40_000), cluster.at(3, 0, 80));
    assert!(cluster.tcp(0, 3, [client, server], flag::SYN));
    assert!(cluster.tcp(3, 0, [server, client], flag::SYN | flag::ACK));
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    cluster.apply(&[("y", deny)]);
    assert!(!cluster.tcp(0, 3, [client, server], flag::ACK));
    let [(to, reset)] = &cluster.wire.0[..] else {
        panic!("{:?}", cluster.wire.0);
    };
    let flags = reset[VNET + 14 + 20 + 13];
    assert_eq!((*to, flags & flag::RST), (port(0), flag::RST));
    // The server's end of it goes as well.
    assert!(!cluster.tcp(3, 0, [server, client], flag::ACK | flag::PSH));
    let asked = frames::udp(cluster.at(0, 0, 40_000), cluster.at(3, 0, 53), b"?");
    assert!(!cluster.passes(0, 3, asked));
    let [(to, error)] = &cluster.wire.0[..] else {
        panic!("{:?}", cluster.wire.0);
    };
    // Communication administratively prohibited (RFC 1812 section 5.2.7.1).
    assert_eq!((*to, &error[VNET + 34..VNET + 36]), (port(0), &[3, 13][..]));
}

#[test]
fn fragments_follow_their_first_and_floods_ask_each() {
    let mut cluster = Cluster::new();
    closed_client(&mut cluster);
    let (client, server) = (cluster.at(0, 0, 40_000), cluster.at(3, 0, 53));
    let datagram = frames::udp(client, server, &[7; 3000]);
    let pieces = frames::fragments(&datagram, 1000);
    assert!(
        !cluster.passes(0, 3, pieces[1].clone()),
        "without its first"
    );
    for piece in &pieces {
        assert!(cluster.passes(0, 3, piece.clone()));
    }
    // To a group: those that are closed do not get it.
    let group: IpAddr = [224, 0, 0, 251].into();
    let mut frame = frames::udp(cluster.at(4, 0, 5353), SocketAddr::new(group, 5353), b"?");
    frame[VNET..VNET + 6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 251]);
    frame[VNET + 6..VNET + 12].copy_from_slice(&mac(4).0);
    cluster.wire.0.clear();
    let mut io = Io::new(&mut cluster.wire, &mut cluster.host, &mut cluster.buf);
    cluster.network.handle_frame(NOW, port(4), &frame, &mut io);
    let mut got: Vec<u32> = cluster.wire.0.iter().map(|(at, _)| at.0 - 1).collect();
    got.sort_unstable();
    assert_eq!(got, [1, 2, 3, 5, 6, 7, 8]);
}
