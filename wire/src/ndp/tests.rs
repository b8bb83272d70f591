//! Neighbour discovery against smoltcp's reader, and messages that are not right.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr, NdiscRouterFlags};

use super::*;

const MAC: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const STATION: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);

/// The whole message of type `kind` that `rest` makes.
fn message(kind: u8, rest: &[u8]) -> Vec<u8> {
    let message = IcmpMessage::ndp(kind, rest);
    let mut l4 = vec![0; message.wire_len()];
    message.write(&mut l4, ROUTER.into(), STATION.into());
    l4
}

/// What smoltcp makes of a message.
fn smoltcp_reads(l4: &[u8]) -> NdiscRepr<'_> {
    let packet = Icmpv6Packet::new_checked(l4).unwrap();
    let caps = ChecksumCapabilities::default();
    match Icmpv6Repr::parse(&ROUTER, &STATION, &packet, &caps) {
        Ok(Icmpv6Repr::Ndisc(repr)) => repr,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read() {
    let solicitation = NeighbourSolicitation {
        target: STATION,
        source: MAC,
    };
    let l4 = message(v6::NEIGHBOUR_SOLICITATION, &solicitation.write());
    let want = NdpMessage::NeighbourSolicitation {
        target: STATION,
        source: Some(MAC),
    };
    assert_eq!(NdpMessage::read(&l4), Ok(want));
    assert_eq!(target(&l4), Some(STATION));
    let NdiscRepr::NeighborSolicit {
        target_addr,
        lladdr,
    } = smoltcp_reads(&l4)
    else {
        panic!("no solicitation");
    };
    assert_eq!(target_addr, STATION);
    assert_eq!(lladdr.unwrap().as_bytes(), MAC.0);

    for solicited in [false, true] {
        let advertisement = NeighbourAdvertisement {
            target: ROUTER,
            solicited,
            mac: MAC,
        };
        let l4 = message(v6::NEIGHBOUR_ADVERTISEMENT, &advertisement.write());
        let want = NdpMessage::NeighbourAdvertisement {
            target: ROUTER,
            solicited,
            mac: Some(MAC),
        };
        assert_eq!(NdpMessage::read(&l4), Ok(want));
        let NdiscRepr::NeighborAdvert { flags, .. } = smoltcp_reads(&l4) else {
            panic!("no advertisement");
        };
        assert_eq!(flags.contains(NdiscNeighborFlags::SOLICITED), solicited);
        assert!(flags.contains(NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE));
    }
}

#[test]
fn a_router_advertisement_says_what_it_was_given() {
    let search = vec!["net.example".to_string()];
    let ra = RouterAdvertisement {
        hop_limit: 64,
        managed: true,
        lifetime: 1800,
        mac: MAC,
        mtu: Some(1500),
        prefix: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0),
        prefix_len: 64,
        autonomous: true,
        prefix_lifetimes: None,
        default_route: true,
        dns: Some(ROUTER),
        search: &search,
    };
    let l4 = message(v6::ROUTER_ADVERTISEMENT, &ra.write());
    let NdiscRepr::RouterAdvert {
        hop_limit,
        flags,
        router_lifetime,
        lladdr,
        mtu,
        prefix_info,
        ..
    } = smoltcp_reads(&l4)
    else {
        panic!("no router advertisement");
    };
    assert_eq!(
        (hop_limit, router_lifetime.secs(), mtu),
        (64, 1800, Some(1500))
    );
    assert_eq!(flags, NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER);
    assert_eq!(lladdr.unwrap().as_bytes(), MAC.0);
    let prefix = prefix_info.unwrap();
    assert_eq!((prefix.prefix, prefix.prefix_len), (ra.prefix, 64));
    assert_eq!(prefix.flags.bits(), PREFIX_ON_LINK | PREFIX_AUTONOMOUS);
    // Behind those: route, DNS server and search list, which smoltcp does not read.
    let mut rest = vec![OPT_ROUTE, 1, 0, 0, 0xff, 0xff, 0xff, 0xff];
    rest.extend([OPT_RDNSS, 3, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    rest.extend(ROUTER.octets());
    rest.extend([OPT_DNSSL, 3, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    rest.extend(b"\x03net\x07example\x00\x00\x00\x00");
    assert!(l4.ends_with(&rest));
    assert_eq!(NdpMessage::read(&l4), Ok(NdpMessage::RouterAdvertisement));
}

#[test]
fn what_does_not_add_up_is_refused() {
    let whole = NeighbourSolicitation {
        target: STATION,
        source: MAC,
    };
    let whole = message(v6::NEIGHBOUR_SOLICITATION, &whole.write());
    for len in 0..whole.len() {
        // A message may end before its options.
        let want = if len == TARGET_END {
            Ok(NdpMessage::NeighbourSolicitation {
                target: STATION,
                source: None,
            })
        } else {
            Err(DropReason::BadIcmp)
        };
        assert_eq!(NdpMessage::read(&whole[..len]), want, "{len}");
    }
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let changes: [(usize, &[u8]); 4] = [
        // Code; the option's length; a target that is a group.
        (1, &[1]),
        (TARGET_END + 1, &[0]),
        (TARGET_END + 1, &[2]),
        (HEADER_LEN, &group.octets()),
    ];
    for (at, value) in changes {
        let mut bad = whole.clone();
        bad[at..at + value.len()].copy_from_slice(value);
        assert_eq!(NdpMessage::read(&bad), Err(DropReason::BadIcmp), "{at}");
    }
    // A link-layer address of another length.
    let mut long = whole.clone();
    long[TARGET_END + 1] = 2;
    long.extend([0; 8]);
    assert_eq!(NdpMessage::read(&long), Err(DropReason::BadIcmp));
    let options = NdpOptions::of(&long).unwrap();
    let macs: Vec<_> = options.map(|o| o.unwrap().link_layer_address()).collect();
    assert_eq!(macs, [Some(MAC)]);
}

#[test]
fn the_last_link_layer_address_counts_and_other_options_do_not() {
    let mut rest = vec![0; 4];
    put_link_layer(&mut rest, OPT_SOURCE_LINK_LAYER, MAC);
    put_link_layer(&mut rest, 200, MAC);
    put_link_layer(&mut rest, OPT_SOURCE_LINK_LAYER, OTHER);
    let l4 = message(v6::ROUTER_SOLICITATION, &rest);
    let want = NdpMessage::RouterSolicitation {
        source: Some(OTHER),
    };
    assert_eq!(NdpMessage::read(&l4), Ok(want));
    let options = NdpOptions::of(&l4).unwrap();
    let macs: Vec<_> = options.map(|o| o.unwrap().link_layer_address()).collect();
    assert_eq!(macs, [Some(MAC), None, Some(OTHER)]);
}
