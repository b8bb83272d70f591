//! Leases by example, and what holds whatever happens.

use std::fs;

use proptest::prelude::*;

use super::*;
use cnet::definition::pool::{Ipv4Pool, Ipv6Pool};

fn network(v4: Option<&str>, range: Option<&str>, v6: Option<&str>) -> Definition {
    let v4 = v4.map(|v4| {
        let range = range.map(|r| r.parse().unwrap());
        Ipv4Pool::new(v4.parse().unwrap(), None, range).unwrap()
    });
    let mut definition = Definition::new("n", "ab".repeat(32));
    definition.ipv4 = v4;
    definition.ipv6 = v6.map(|v6| Ipv6Pool::new(v6.parse().unwrap(), None, None).unwrap());
    definition
}

fn ipam(v4: Option<&str>, range: Option<&str>, v6: Option<&str>) -> Ipam {
    Ipam::empty("/nowhere".into(), &network(v4, range, v6))
}

fn dual() -> Ipam {
    ipam(Some("10.89.0.0/24"), None, Some("fd12::/64"))
}

fn v4(text: &str) -> AddressRequest {
    AddressRequest {
        v4: Some(text.parse().unwrap()),
        ..AddressRequest::default()
    }
}

fn lease(ipam: &mut Ipam, name: &str) -> String {
    let addresses = ipam.lease(name, AddressRequest::default()).unwrap();
    addresses.v4.unwrap().to_string()
}

#[test]
fn the_lowest_free_address_with_docker_s_mac_and_its_identifier() {
    let mut ipam = dual();
    let first = ipam.lease("a", AddressRequest::default()).unwrap();
    assert_eq!(
        first.v4.unwrap().to_string(),
        "10.89.0.2",
        "after the gateway"
    );
    assert_eq!(first.mac.to_string(), "02:42:0a:59:00:02");
    assert_eq!(first.v6.unwrap().to_string(), "fd12::42:aff:fe59:2");
    assert_eq!(lease(&mut ipam, "b"), "10.89.0.3");
    assert_eq!(
        ipam.lease("a", AddressRequest::default()).unwrap(),
        first,
        "held"
    );
}

#[test]
fn names_are_remembered_until_nothing_else_is_free() {
    // .1 is the gateway's; .2 to .6 are for containers.
    let mut ipam = ipam(Some("10.89.0.0/29"), None, None);
    for name in ["a", "b", "c"] {
        lease(&mut ipam, name);
    }
    ipam.release("b");
    ipam.release("a");
    assert_eq!(
        lease(&mut ipam, "d"),
        "10.89.0.5",
        "no name had that before"
    );
    assert_eq!(lease(&mut ipam, "a"), "10.89.0.2");
    ipam.release("a");
    assert_eq!(lease(&mut ipam, "e"), "10.89.0.6");
    assert_eq!(lease(&mut ipam, "f"), "10.89.0.3", "b left before a");
    assert_eq!(lease(&mut ipam, "g"), "10.89.0.2");
    let error = ipam
        .lease("h", AddressRequest::default())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "no address of 10.89.0.0/29 is free: 5 of 5 are held, the gateway's not counted"
    );
    ipam.release("c");
    assert_eq!(lease(&mut ipam, "h"), "10.89.0.4");
}

#[test]
fn wanted_addresses_are_honoured_or_refused_with_who_has_them() {
    let mut ipam = ipam(
        Some("10.89.0.0/24"),
        Some("10.89.0.128/25"),
        Some("fd12::/64"),
    );
    assert_eq!(lease(&mut ipam, "a"), "10.89.0.128");
    ipam.lease("b", v4("10.89.0.9"))
        .expect("within the subnet, outside the range");
    let refused = |ipam: &mut Ipam, wanted| ipam.lease("x", wanted).unwrap_err().to_string();
    for (wanted, why) in [
        (
            "10.89.0.9",
            "10.89.0.9 belongs to the container `b`: choose another, or leave it to the network",
        ),
        ("10.89.1.9", "not within the network's 10.89.0.0/24"),
        ("10.89.0.0", "not for containers"),
        ("10.89.0.255", "not for containers"),
        ("10.89.0.1", "not for containers"),
    ] {
        let error = refused(&mut ipam, v4(wanted));
        assert!(error.contains(why), "{error}");
    }
    ipam.reserved.insert(number("10.89.0.129".parse().unwrap()));
    assert!(refused(&mut ipam, v4("10.89.0.129")).contains("reserved"));
    assert_eq!(lease(&mut ipam, "c"), "10.89.0.130");
    ipam.release("b");
    ipam.lease("d", v4("10.89.0.9"))
        .expect("its holder has left");
    let error = ipam.lease("d", v4("10.89.0.10")).unwrap_err().to_string();
    assert!(
        error.contains("with 10.89.0.9 and not 10.89.0.10"),
        "{error}"
    );
    assert_eq!(
        ipam.lease("d", v4("10.89.0.9"))
            .unwrap()
            .v4
            .unwrap()
            .octets()[3],
        9
    );
    let mut four = super::tests::ipam(Some("10.89.0.0/24"), None, None);
    let six = AddressRequest {
        v6: Some("fd12::9".parse().unwrap()),
        ..AddressRequest::default()
    };
    assert!(refused(&mut four, six).contains("has no IPv6"));
    assert_eq!(
        ipam.lease("six", six).unwrap().v6.unwrap().to_string(),
        "fd12::9"
    );
}

#[test]
fn mac_addresses_are_one_stations_each() {
    let mut ipam = dual();
    let mac = |mac| AddressRequest {
        mac: Some(MacAddr(mac)),
        ..AddressRequest::default()
    };
    let own = ipam.lease("a", mac([2, 0, 0, 0, 0, 9])).unwrap();
    assert_eq!(own.v6.unwrap().to_string(), "fd12::ff:fe00:9");
    let error = ipam
        .lease("b", mac([2, 0, 0, 0, 0, 9]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("belongs to the container `a`"), "{error}");
    for bad in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 0], ipam.gateway_mac.0] {
        assert!(matches!(ipam.lease("b", mac(bad)), Err(IpamError::Mac(_))));
    }
    // Another name has the one that would be made of 10.89.0.4.
    ipam.lease("c", mac([2, 0x42, 10, 89, 0, 4])).unwrap();
    let d = ipam.lease("d", AddressRequest::default()).unwrap();
    assert_eq!(d.v4.unwrap().to_string(), "10.89.0.4");
    assert_ne!(d.mac, MacAddr([2, 0x42, 10, 89, 0, 4]));
    assert_eq!(d.mac.0[..2], MAC_PREFIX);
}

#[test]
fn ipv6_alone_follows_the_name() {
    for subnet in ["fd12::/64", "fd12::/48", "fd12::/96"] {
        let mut one = ipam(None, None, Some(subnet));
        let mut other = one.clone();
        other.lease("before", AddressRequest::default()).unwrap();
        let a = one.lease("web", AddressRequest::default()).unwrap();
        assert_eq!(
            a,
            other.lease("web", AddressRequest::default()).unwrap(),
            "{subnet}"
        );
        assert!(
            subnet
                .parse::<ipnet::Ipv6Net>()
                .unwrap()
                .contains(&a.v6.unwrap())
        );
    }
    let mut small = ipam(None, None, Some("fd12::/126"));
    for name in ["a", "b"] {
        small.lease(name, AddressRequest::default()).unwrap();
    }
    let error = small
        .lease("c", AddressRequest::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("2 of 2"), "{error}");
}

#[test]
fn a_file_brings_all_of_it_back_and_nothing_that_does_not_fit() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("n/leases.toml");
    let definition = network(Some("10.89.0.0/24"), None, Some("fd12::/64"));
    let mut ipam = Ipam::load(&path, &definition).unwrap();
    for name in ["a", "b.x", "c"] {
        lease(&mut ipam, name);
    }
    ipam.release("b.x");
    ipam.save().unwrap();
    let mut again = Ipam::load(&path, &definition).unwrap();
    assert_eq!(again.entries, ipam.entries);
    assert_eq!(
        (again.releases, &again.by_mac),
        (ipam.releases, &ipam.by_mac)
    );
    again.release_absent(|name| name == "a");
    let held: Vec<_> = again.held().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(held, ["a"]);
    assert_eq!(again.entries["c"].released, Some(2));

    let moved = network(Some("10.90.0.0/24"), None, Some("fd12::/64"));
    assert!(Ipam::load(&path, &moved).unwrap().entries.is_empty());
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("10.89.0.3", "10.89.0.1")).unwrap();
    assert_eq!(Ipam::load(&path, &definition).unwrap().entries.len(), 2);
    fs::write(&path, format!("colour = 1\n{text}")).unwrap();
    let error = Ipam::load(&path, &definition).unwrap_err().to_string();
    assert!(
        error.contains("colour") && error.contains("remove it"),
        "{error}"
    );
}

#[test]
fn memory_is_bounded() {
    let mut ipam = ipam(Some("10.0.0.0/8"), None, None);
    for n in 0..MAX_REMEMBERED + 3 {
        let addresses = Addresses {
            v4: Some(Ipv4Addr::from_bits(0x0a00_0002 + n as u32)),
            v6: None,
            mac: mac_of((n as u32).to_be_bytes()),
        };
        let released = None;
        ipam.insert(
            format!("c{n}"),
            Entry {
                addresses,
                released,
            },
        );
        ipam.release(&format!("c{n}"));
    }
    assert_eq!(ipam.entries.len(), MAX_REMEMBERED);
    assert!(!ipam.entries.contains_key("c2") && ipam.entries.contains_key("c3"));
    assert_eq!(ipam.by_address.len(), MAX_REMEMBERED);
}

/// What may happen to a network of few addresses and few names.
#[derive(Clone, Debug)]
enum Event {
    Lease(u8),
    Want(u8, u8),
    WantMac(u8, u8),
    Release(u8),
    Reload,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..12u8).prop_map(Event::Lease),
        1 => (0..12u8, 0..16u8).prop_map(|(n, a)| Event::Want(n, a)),
        1 => (0..12u8, 0..16u8).prop_map(|(n, a)| Event::WantMac(n, a)),
        4 => (0..12u8).prop_map(Event::Release),
        1 => Just(Event::Reload),
    ];
    prop::collection::vec(event, 1..60)
}

fn check(ipam: &Ipam) {
    let mut addresses = BTreeSet::new();
    let mut macs = BTreeSet::new();
    for (name, entry) in &ipam.entries {
        let Addresses { v4, v6, mac } = entry.addresses;
        let (v4, v6) = (v4.unwrap(), v6.unwrap());
        assert!(
            addresses.insert(number(v4.into())),
            "{v4} of {name} is another's"
        );
        assert!(
            addresses.insert(number(v6.into())),
            "{v6} of {name} is another's"
        );
        assert!(macs.insert(mac), "{mac} of {name} is another's");
        assert!((2..=14).contains(&v4.octets()[3]), "{v4} is no container's");
        assert!(ipam.permits_mac(mac));
    }
    let indexed: BTreeSet<_> = ipam.by_address.keys().copied().collect();
    assert_eq!(indexed, addresses);
    assert_eq!(ipam.by_mac.keys().copied().collect::<BTreeSet<_>>(), macs);
}

proptest! {
    // Each reload waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn nobody_shares_and_everybody_is_remembered(events in events()) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("leases.toml");
        let definition = network(Some("10.89.0.0/28"), None, Some("fd12::/64"));
        let mut ipam = Ipam::load(&path, &definition).unwrap();
        for event in events {
            let before = ipam.entries.clone();
            let (name, result) = match event {
                Event::Reload => {
                    ipam.save().unwrap();
                    ipam = Ipam::load(&path, &definition).unwrap();
                    prop_assert_eq!(&ipam.entries, &before);
                    continue;
                }
                Event::Release(n) => {
                    ipam.release(&format!("c{n}"));
                    check(&ipam);
                    continue;
                }
                Event::Lease(n) => (n, ipam.lease(&format!("c{n}"), AddressRequest::default())),
                Event::Want(n, a) => (n, ipam.lease(&format!("c{n}"), v4(&format!("10.89.0.{a}")))),
                Event::WantMac(n, a) => {
                    let mac = Some(MacAddr([2, 0x42, 10, 89, 0, a]));
                    (n, ipam.lease(&format!("c{n}"), AddressRequest { mac, ..AddressRequest::default() }))
                }
            };
            check(&ipam);
            let name = format!("c{name}");
            match result {
                Ok(addresses) => {
                    prop_assert_eq!(ipam.entries[&name].addresses, addresses);
                    prop_assert_eq!(ipam.entries[&name].released, None);
                    // Those who are there are left alone.
                    for (other, entry) in before.iter().filter(|(_, e)| e.released.is_none()) {
                        prop_assert_eq!(&ipam.entries[other], entry);
                    }
                    if let (Event::Lease(_), Some(known)) = (&event, before.get(&name)) {
                        prop_assert_eq!(known.addresses, addresses, "what it had");
                    }
                }
                Err(_) => prop_assert_eq!(&ipam.entries, &before, "a failure changes nothing"),
            }
        }
    }
}
