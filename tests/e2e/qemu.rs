//! A virtual machine on the switch: it gets its address by DHCP and talks to a container, by name,
//! and to the world, and the container to it.
//!
//! Frames to it have no virtio-net header, so bulk that arrives whole proves that super-frames of a
//! container and of the router were cut right.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cnet::definition::Directories;
use cnet::vm::VmAddress;
use cnet_dataplane::{Control, DnsQueries, PortDevice, PortPlan};
use cnet_netd::dns::{self, Host, LocalNames, Names, Service, Zone};
use cnet_netd::vm_endpoint::Endpoint;
use cnet_wire::{DropReason, MacAddr};
use rustix::process::{Signal, kill_process};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::lab::dataplane::{Member, Network};
use crate::lab::namespace::{Namespace, limit_stalls};
use crate::lab::place::Place;
use crate::lab::process::Running;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::flood;
use crate::lab::traffic::{CONNECT, Payload, echo, ping};
use crate::lab::vm::Kernel;
use crate::lab::{Lab, REMOTE_V4, any, wait_until};

/// From the start of QEMU to its lease: the emulated processor takes its time to boot.
const BOOT: Duration = Duration::from_secs(60);

/// For what it does then.
const WORK: Duration = Duration::from_secs(60);

/// For a change to show.
const SOON: Duration = Duration::from_secs(10);

/// Bytes each way.
const BULK: usize = 8 << 20;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x0a, 0x0b, 0x0c]);
const V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 20);
/// What the machine makes of its hardware address and the network's prefix (RFC 4862, RFC 2464).
const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0x5054, 0xff, 0xfe0a, 0x0b0c);

/// The machine's part. It knows nothing of the network but what DHCP tells and the name `web`.
const SCRIPT: &str = r#"
cat > /lease <<'END'
#!/bin/sh
test "$1" = bound || exit 0
ip address add $ip/$mask dev $interface
ip route add default via $router
for server in $dns; do echo nameserver $server; done > /etc/resolv.conf
hostname $hostname
END
chmod +x /lease
ip link set lo up
ip link set eth0 up
udhcpc -i eth0 -f -q -n -t 20 -T 1 -O mtu -s /lease > /tmp/udhcpc 2>&1 || cat /tmp/udhcpc
say() { echo "vm: $* ."; }
say lease $(ip -4 -o address show dev eth0) of $(hostname)
ping -c 2 -w 10 -q web > /dev/null && say ping done
say near $(wget -q -O - http://web:8080/ | sha256sum)
say far $(wget -q -O - http://198.51.100.2:8080/ | sha256sum)
nc -ll -p 7 -e cat &
say serves
while true; do sleep 1000; done
"#;

// Longer than 60 lines: one loop whose arms share the network, the endpoint and the names.
/// Lets machines at `address` join, one after the other, and answers the containers' queries, until
/// told to stop.
fn serve(
    control: Control,
    address: VmAddress,
    queries: DnsQueries,
    web: &Member,
) -> oneshot::Sender<()> {
    let names = Names::new(Zone::default());
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (web.v4, web.v6) else {
        panic!("one address of each family");
    };
    let hosts = [("web", v4, v6), ("machine", V4, V6)];
    for (name, v4, v6) in hosts {
        let host = Host {
            name: name.to_owned(),
            ipv4: Some(v4),
            ipv6: Some(v6),
            ..Host::default()
        };
        names.join(name, host);
    }
    let dns = Service::new(dns::Config {
        names: LocalNames::default().with_containers(names),
        ..dns::Config::default()
    });
    let plan = PortPlan {
        mac: Some(MAC),
        ipv4: Some(V4),
        hostname: Some("machine".to_owned()),
        spoof_protection: true,
        ..PortPlan::default()
    };
    let (stop, mut stopped) = oneshot::channel::<()>();
    let (open, opened) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("an event loop");
        runtime.block_on(async {
            let directories = Directories::of_this_user().expect("root's");
            let host = cnet_netd::outside::Host::network_here(directories);
            let mut endpoint =
                Endpoint::open(address, Box::new(host)).expect("a path of the test's own");
            open.send(()).expect("the test waits for it");
            let machines = async {
                loop {
                    let device = endpoint.next().await.expect("a machine");
                    let added = control.add_port(plan.clone(), device).await;
                    let (port, end) = added.expect("room for a machine");
                    tokio::select! {
                        reason = end => println!("the machine's port: {reason}"),
                        () = endpoint.departed() => {
                            control.remove_port(port).await.expect("a port that is there");
                        }
                    }
                }
            };
            let names = cnet_netd::dns::serve(dns, control.clone(), queries);
            tokio::select! {
                () = machines => {}
                () = async { tokio::join!(names, std::future::pending::<()>()); } => {}
                _ = &mut stopped => {}
            }
        });
    });
    opened.recv().expect("the socket is made");
    stop
}

/// Answers any request with `payload`, as a web server does.
fn web_server(at: &Namespace, address: SocketAddr, payload: &Payload) -> TcpServer {
    let payload = payload.clone();
    TcpServer::start(at, address, move |mut stream| {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n")?;
        stream.write_all(payload.bytes())?;
        stream.shutdown(Shutdown::Write)?;
        io::copy(&mut stream, &mut io::sink()).map(|_| ())
    })
}

/// Sends `payload` to a server that sends all back, reading meanwhile; gives what came.
fn exchange(from: &Namespace, to: SocketAddr, payload: &Payload) -> io::Result<Vec<u8>> {
    let mut stream: TcpStream = from.connect(to, CONNECT)?;
    limit_stalls(&stream)?;
    let mut writer = stream.try_clone()?;
    let payload = payload.clone();
    let writing = thread::spawn(move || {
        writer.write_all(payload.bytes())?;
        writer.shutdown(Shutdown::Write)
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    writing.join().expect("a thread that writes")?;
    Ok(back)
}

/// What the machine says of `topic`.
fn told(machine: &mut Running, topic: &str, limit: Duration) -> String {
    let started = Instant::now();
    let start = format!("vm: {topic}");
    // To the dot that ends it: the last line may be there in part.
    let line = machine.wait_for_line(limit, |line| {
        line.starts_with(&start) && line.trim_end().ends_with(" .")
    });
    println!("{} ({:.1?})", line.trim(), started.elapsed());
    let said = line
        .trim_start_matches(&start)
        .trim_end()
        .trim_end_matches('.');
    said.trim().to_owned()
}

// Longer than 60 lines: one booted machine does all of its work in turn: a boot takes seconds.
/// A machine behind `address` does what machines are for.
fn machine_at_work(kernel: &Kernel, lab: &Lab, address: &VmAddress) {
    let mut network = Network::start(lab, 1500);
    let web = network.join(5);
    let queries = network.queries.take().expect("nobody took them");
    let _serving = serve(network.control.clone(), address.clone(), queries, &web);
    let payload = Payload::new(BULK, 3);
    let digest: String = Sha256::digest(payload.bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let _near = web_server(&web.namespace, any(web.v4, 8080), &payload);
    let _far = web_server(
        &lab.remote,
        SocketAddr::new(REMOTE_V4.into(), 8080),
        &payload,
    );

    let mut machine = kernel.boot(lab, SCRIPT, &address.qemu_arguments(MAC));
    let lease = told(&mut machine, "lease", BOOT);
    assert!(
        lease.contains("inet 10.0.2.20/24") && lease.ends_with("of machine"),
        "{lease}"
    );
    told(&mut machine, "ping", WORK);
    for server in ["near", "far"] {
        let seen = told(&mut machine, server, WORK);
        assert!(
            seen.starts_with(&digest),
            "{server}: {seen} instead of {digest}"
        );
    }
    told(&mut machine, "serves", WORK);

    let resolv_conf = lab.file("resolv.conf", "nameserver 10.0.2.3\n");
    let by_name = web.namespace.command("ping").resolv_conf(&resolv_conf);
    let done = by_name
        .args("-4 -n -c 2 -w 10 machine".split(' '))
        .run(WORK);
    assert!(
        done.success() && done.stdout.contains("10.0.2.20"),
        "{done}"
    );
    for at in [V4.into(), V6.into()] {
        // Larger than the MTU as well, in fragments.
        ping(&web.namespace, at, 56);
        ping(&web.namespace, at, 3000);
        let started = Instant::now();
        let back = exchange(&web.namespace, SocketAddr::new(at, 7), &payload);
        let back = back.expect("an exchange with the machine");
        assert!(
            back == payload.bytes(),
            "{at}: other bytes came back: {}",
            back.len()
        );
        println!("{BULK} bytes to {at} and back in {:.1?}", started.elapsed());
    }
    let ports = network.statistics().ports;
    let of_machine = ports.iter().find(|port| port.port != web.port);
    let of_machine = of_machine.expect("the machine's port");
    // Plain frames: of super-frames there would be a tenth.
    assert!(
        of_machine.frames_out > 3 * BULK as u64 / 1460,
        "{of_machine:?}"
    );
    println!("{of_machine:?}");
}

// Longer than 60 lines: one scenario in the order of its events.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_machine_that_reads_nothing_and_lies_harms_nobody() {
    let lab = Lab::direct();
    let network = Network::start(&lab, 1500);
    let [a, b] = [5, 6].map(|n| network.join(n));
    let (ours, mut machine) = UnixStream::pair().expect("two sockets");
    let plan = PortPlan {
        mac: Some(MAC),
        ipv4: Some(V4),
        spoof_protection: true,
        ..PortPlan::default()
    };
    let added = network
        .control
        .add_port(plan, PortDevice::Stream(ours.into()));
    let (port, end) = network.runtime.block_on(added).expect("room for a machine");

    a.namespace.ip(&format!(
        "neigh replace {V4} lladdr {MAC} dev eth0 nud permanent"
    ));
    let echoing = TcpServer::echo(&b.namespace, any(b.v4, 0));
    let at = SocketAddr::new(b.v4, echoing.address.port());
    let mut stream = a.namespace.connect(at, CONNECT).expect("a connect");
    let flooding = thread::spawn({
        let from = a.namespace.clone();
        move || flood(&from, (V4, 9).into(), Duration::from_secs(2))
    });
    let started = Instant::now();
    for _ in 0..1000 {
        echo(&mut stream, b"undisturbed").expect("an echo");
    }
    let took = started.elapsed();
    assert!(took < SOON, "a thousand round trips took {took:?}");
    let sent = flooding.join().expect("a flood");
    let of_machine = network.of_port(port);
    let lost = of_machine.drops.get(DropReason::PortFull);
    // What its outbox and the socket hold was taken; of the rest nothing waits anywhere.
    assert!(
        lost > 100 && of_machine.frames_out < 1000,
        "{sent} sent, {of_machine:?}"
    );
    assert_eq!(network.of_port(b.port).drops.get(DropReason::PortFull), 0);

    // From an address that is not its own.
    let mut foreign = vec![0, 0, 0, 42];
    foreign.extend([0xff; 6]);
    foreign.extend([2, 0, 0, 0, 0, 9, 8, 6]);
    foreign.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 2, 5]);
    foreign.extend([0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    machine.write_all(&foreign).expect("room in the socket");
    wait_until("the spoofed frame is counted", SOON, || {
        match network.of_port(port).drops.get(DropReason::Spoofed) {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    machine.write_all(&[0xff; 4]).expect("room in the socket");
    let reason = network.runtime.block_on(end);
    assert!(reason.contains("a frame of 4294967295 bytes"), "{reason}");
    echo(&mut stream, b"still undisturbed").expect("an echo");
    assert_eq!(network.statistics().ports.len(), 2);
}

/// A machine on a named network that has come as far as to serve.
fn boot_on_named(kernel: &Kernel, lab: &Lab, arguments: &[String]) -> Running {
    let mut machine = kernel.boot(lab, SCRIPT, arguments);
    let lease = told(&mut machine, "lease", BOOT);
    assert!(
        lease.contains("inet 10.88.0.3/16") && lease.ends_with("of machine"),
        "{lease}"
    );
    told(&mut machine, "ping", WORK);
    told(&mut machine, "serves", WORK);
    machine
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_machine_has_its_place_on_a_named_network_across_reboots_and_a_crash() {
    let Some(kernel) = kernel() else { return };
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let (web, web_namespace) = place.container();
    place.done(&format!("attach --name web {}", web.pid()));
    let payload = Payload::new(BULK, 4);
    let _near = web_server(
        &web_namespace,
        "0.0.0.0:8080".parse().expect("an address"),
        &payload,
    );
    let far = SocketAddr::new(REMOTE_V4.into(), 8080);
    let _far = web_server(&lab.remote, far, &payload);
    let address = VmAddress::Datagram {
        local: lab.directory().join("network.sock"),
        remote: lab.directory().join("vm.sock"),
    };
    let attached = place.done(&format!(
        "attach --vm {address} --name machine --alias box -p 127.0.0.1:18081:7"
    ));
    let arguments = attached
        .stdout
        .lines()
        .find(|line| line.starts_with("-netdev "));
    let arguments = arguments.unwrap_or_else(|| panic!("{attached}"));
    let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
    let machine = boot_on_named(&kernel, &lab, &arguments);
    let resolved = place.done("run --network cnet -- getent ahostsv4 box");
    assert!(resolved.stdout.contains("10.88.0.3"), "{resolved}");
    let published: SocketAddr = "127.0.0.1:18081".parse().expect("an address");
    let through = |what: &str| {
        wait_until(what, SOON, || {
            match exchange(&lab.host, published, &Payload::new(100_000, 5)) {
                Ok(back) if back == Payload::new(100_000, 5).bytes() => Ok(()),
                other => Err(format!("{:?}", other.map(|back| back.len()))),
            }
        });
    };
    through("its published port");

    drop(machine);
    let machine = boot_on_named(&kernel, &lab, &arguments);
    through("its published port after a reboot");

    let process = place.process("cnet").expect("a network's process");
    kill_process(process, Signal::KILL).expect("a process to kill");
    let listed = place.done("ps --format json");
    assert!(listed.stdout.contains(&address.to_string()), "{listed}");
    through("its published port after the crash");

    place.done("detach box");
    let listed = place.done("ps");
    assert!(!listed.stdout.contains("machine"), "{listed}");
    assert!(!lab.directory().join("network.sock").exists());
    drop((machine, web));
    lab.assert_nothing_left(&[], SOON);
}

fn kernel() -> Option<Kernel> {
    match Kernel::fetch(Path::new(env!("CARGO_TARGET_TMPDIR"))) {
        Ok(kernel) => Some(kernel),
        Err(why) => {
            println!("SKIPPED: there can be no virtual machine here: {why}");
            None
        }
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_machine_behind_a_stream_socket_is_on_the_network() {
    let Some(kernel) = kernel() else { return };
    let lab = Lab::direct();
    let address = VmAddress::Stream(lab.directory().join("vm.sock"));
    machine_at_work(&kernel, &lab, &address);
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_machine_behind_a_datagram_socket_is_on_the_network() {
    let Some(kernel) = kernel() else { return };
    let lab = Lab::direct();
    let address = VmAddress::Datagram {
        local: lab.directory().join("network.sock"),
        remote: lab.directory().join("vm.sock"),
    };
    machine_at_work(&kernel, &lab, &address);
}
