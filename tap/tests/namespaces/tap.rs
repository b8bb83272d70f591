//! Making, attaching to and configuring a TAP.

use std::io::IoSlice;
use std::net::UdpSocket;

use cnet_tap::namespace::{NewNamespaces, current_net, unshare};
use cnet_tap::netif::{index_of, loopback_up, mac_of};
use cnet_tap::socket::{ping_socket, receive_details, recv_datagram, send_datagram};
use cnet_tap::{InterfaceConfig, Limit, Namespaces, Offloads, Tap, TapError, open_tap_in};

use crate::stage::{alone, eventually, in_new_namespaces};

pub fn config() -> InterfaceConfig {
    InterfaceConfig {
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, 9]),
        addresses: vec![
            ("10.0.2.100".parse().unwrap(), 24),
            ("fd00::100".parse().unwrap(), 64),
        ],
        gateways: vec!["10.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        tx_queue_len: Some(4000),
        joins_others: false,
        ..InterfaceConfig::default()
    }
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn a_tap_is_made_and_goes_with_its_descriptors() {
    in_new_namespaces(|| {
        for queues in [1, 3] {
            let tap = Tap::create("tap%d", queues).unwrap();
            assert_eq!(
                (tap.queues.len(), tap.name.as_str()),
                (usize::from(queues), "tap0")
            );
            assert!(tap.offloads.csum && tap.offloads.tso4 && tap.offloads.tso6);
            assert_eq!(index_of("tap0").unwrap(), tap.ifindex);
            assert_eq!(mac_of(tap.ifindex).unwrap(), tap.mac);
            assert_ne!(tap.mac, [0; 6]);
            let error = tap.queues[0].read(&mut [0; 100]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            drop(tap);
            assert!(index_of("tap0").is_err());
        }
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn fewer_offloads_are_walked() {
    in_new_namespaces(|| {
        let made = |limit| Tap::create_with("tap0", 1, limit).unwrap().offloads;
        let no_uso = made(Limit {
            no_uso: true,
            ..Limit::default()
        });
        assert_eq!(
            no_uso,
            Offloads {
                csum: true,
                tso4: true,
                tso6: true,
                uso: false
            }
        );
        let no_tso = made(Limit {
            no_tso: true,
            ..Limit::default()
        });
        assert_eq!(
            no_tso,
            Offloads {
                csum: true,
                ..Offloads::default()
            }
        );
        assert_eq!(
            made(Limit {
                no_csum: true,
                ..Limit::default()
            }),
            Offloads::default()
        );
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn an_existing_tap_is_attached_to_or_refused_clearly() {
    in_new_namespaces(|| {
        let error = Tap::create("lo", 1).unwrap_err();
        assert!(matches!(error, TapError::NotATap { .. }), "{error}");

        let single = Tap::create("single", 1).unwrap();
        let error = Tap::create("single", 1).unwrap_err();
        assert!(matches!(error, TapError::NameTaken { .. }), "{error}");
        single.queues[0].set_persistent(true).unwrap();
        let ifindex = single.ifindex;
        drop(single);
        let error = Tap::create("single", 2).unwrap_err();
        assert!(
            matches!(
                error,
                TapError::QueueMismatch {
                    multi_queue: false,
                    ..
                }
            ),
            "{error}"
        );
        let again = Tap::create("single", 1).unwrap();
        assert_eq!(again.ifindex, ifindex);
        assert!(again.offloads.tso4);
        again.queues[0].set_persistent(false).unwrap();
        drop(again);
        assert!(index_of("single").is_err());

        let many = Tap::create("many", 2).unwrap();
        let error = Tap::create("many", 2).unwrap_err();
        assert!(matches!(error, TapError::NameTaken { .. }), "{error}");
        many.queues[0].set_persistent(true).unwrap();
        drop(many);
        let error = Tap::create("many", 1).unwrap_err();
        assert!(
            matches!(
                error,
                TapError::QueueMismatch {
                    multi_queue: true,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(Tap::create("many", 4).unwrap().queues.len(), 4);
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn an_interface_is_configured_and_can_be_again() {
    in_new_namespaces(|| {
        loopback_up().unwrap();
        let tap = Tap::create("tap0", 1).unwrap();
        for _ in 0..2 {
            cnet_tap::netif::configure(tap.ifindex, "tap0", &config()).unwrap();
        }
        assert_eq!(mac_of(tap.ifindex).unwrap(), [2, 0, 0, 0, 0, 9]);
        // The addresses can be used at once, IPv6 included: no duplicate address detection.
        for address in ["127.0.0.1:0", "[::1]:0", "10.0.2.100:0", "[fd00::100]:0"] {
            UdpSocket::bind(address).unwrap();
        }
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read("/proc/sys/net/ipv6/conf/tap0/mtu").trim(), "1500");
        // 10.0.2.2 as the kernel prints it: the bytes in network order read as one number.
        let gateway = format!("{:08X}", u32::from_ne_bytes([10, 0, 2, 2]));
        let routes = read("/proc/net/route");
        let default = format!("tap0\t00000000\t{gateway}\t");
        assert_eq!(routes.matches(&default).count(), 1, "{routes}");
        let routes = read("/proc/net/ipv6_route");
        assert!(
            routes.contains("fd000000000000000000000000000002"),
            "{routes}"
        );

        let far = InterfaceConfig {
            gateways: vec!["192.0.2.1".parse().unwrap()],
            ..InterfaceConfig::default()
        };
        let error = cnet_tap::netif::configure(tap.ifindex, "tap0", &far).unwrap_err();
        assert!(error.to_string().contains("set the MTU to 0"), "{error}");
        let far = InterfaceConfig { mtu: 1500, ..far };
        let error = cnet_tap::netif::configure(tap.ifindex, "tap0", &far).unwrap_err();
        assert!(
            error.to_string().contains("default route via 192.0.2.1"),
            "{error}"
        );

        std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1").unwrap();
        let whole = cnet_tap::netif::configure(tap.ifindex, "tap0", &config());
        assert!(!whole.unwrap(), "IPv6 is left out");
        let mut ipv6 = config();
        ipv6.addresses.retain(|(address, _)| address.is_ipv6());
        let error = cnet_tap::netif::configure(tap.ifindex, "tap0", &ipv6).unwrap_err();
        assert!(matches!(error, TapError::Ipv6Disabled { .. }), "{error}");
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn without_a_user_namespace_to_enter_a_thread_does_it() {
    in_new_namespaces(|| {
        let first = Namespaces {
            user: None,
            net: current_net().unwrap(),
        };
        unshare(NewNamespaces {
            net: true,
            ..NewNamespaces::default()
        })
        .unwrap();
        let tap = open_tap_in(&first, "tap0", 2, Some(&config())).unwrap();
        assert_eq!((tap.queues.len(), tap.mac), (2, [2, 0, 0, 0, 0, 9]));
        // This thread stayed where it was.
        assert!(index_of("tap0").is_err());
        first.enter().unwrap();
        assert_eq!(index_of("tap0").unwrap(), tap.ifindex);
        UdpSocket::bind("[fd00::100]:0").unwrap();
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn the_permission_that_lacks_is_named() {
    alone(|| {
        if !rustix::process::getuid().is_root() {
            // An ordinary user lacks it in the first namespace already.
            let error = Tap::create("tap0", 1).unwrap_err();
            assert!(matches!(error, TapError::CreateDenied { .. }), "{error}");
            return;
        }
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let open = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .is_ok();
        match Tap::create("tap0", 1).unwrap_err() {
            TapError::CreateDenied { .. } if open => {}
            TapError::DeviceDenied { .. } if !open => {}
            other => panic!("{other}"),
        }
        let error = Namespaces::of_process(1).unwrap_err();
        assert!(
            matches!(error, TapError::ProcessDenied { pid: 1, .. }),
            "{error}"
        );
        let own = Namespaces::from_paths("/proc/thread-self/ns/net".as_ref(), None);
        if let Ok(own) = own {
            let error = own.enter().unwrap_err();
            assert!(
                matches!(
                    error,
                    TapError::EnterDenied {
                        kind: "network",
                        ..
                    }
                ),
                "{error}"
            );
        }
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn ping_sockets_echo() {
    in_new_namespaces(|| {
        loopback_up().unwrap();
        // The setting before it was allowed: no group at all.
        let error = ping_socket(false).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        // Echo requests, ICMP type 8 and ICMPv6 type 128; identifier and checksum are the kernel's.
        for (v6, request, reply) in [(false, 8, 0), (true, 128, 129)] {
            let socket = ping_socket(v6).unwrap();
            receive_details(&socket, v6).unwrap();
            let to = if v6 { "[::1]:0" } else { "127.0.0.1:0" }.parse().unwrap();
            let message = [request, 0, 0, 0, 0, 0, 0, 7, b'h', b'i'];
            let pieces = [IoSlice::new(&message)];
            assert_eq!(
                send_datagram(&socket, Some(to), &pieces, None, Some(9), None).unwrap(),
                10
            );
            let mut buf = [0; 64];
            let mut got = None;
            eventually("the reply", || {
                got = recv_datagram(&socket, &mut buf).ok();
                got.is_some()
            });
            let got = got.unwrap();
            assert_eq!(
                (got.len, buf[0], &buf[6..10]),
                (10, reply, &[0, 7, b'h', b'i'][..])
            );
            assert_eq!((got.from.ip(), got.ttl), (to.ip(), Some(64)));
        }
    });
}
