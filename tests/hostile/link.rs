//! Link layer, ARP and the switch.

use std::net::{IpAddr, Ipv4Addr};

use cnet_wire::DropReason;

use crate::arena::Arena;
use crate::frames::changed;
use crate::lab::raw::{self, BROADCAST, ethernet};
use crate::lab::traffic::noise;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn frames_that_no_station_sends_are_dropped_by_their_reasons() {
    let arena = Arena::start();
    let (own, gateway, victim) = (arena.own, arena.gateway, arena.of_victim);
    let [to_gateway, to_victim] = [arena.world_v4(), (victim.mac, victim.v4)]
        .map(|(mac, address)| raw::udp((own.mac, own.v4, 9), (mac, address, 9), b"payload"));
    let long = raw::udp(
        (own.mac, own.v4, 9),
        (gateway.mac, victim.v4, 9),
        &[0; 4000],
    );
    arena.assert_dropped("over the MTU", DropReason::FrameTooLong, &[long]);

    let tagged = [0x8100, 0x88a8, 0x9100].map(|tag: u16| {
        changed(&to_victim, |frame| {
            frame.splice(12..12, [tag.to_be_bytes()[0], tag.to_be_bytes()[1], 0, 5]);
        })
    });
    arena.assert_dropped("VLAN and QinQ tags", DropReason::VlanTag, &tagged);
    let sources = [
        [1, 0, 0x5e, 0, 0, 1],
        BROADCAST,
        [0; 6],
        [0x33, 0x33, 0, 0, 0, 1],
    ];
    let frames = sources.map(|mac| changed(&to_victim, |f| f[6..12].copy_from_slice(&mac)));
    arena.assert_dropped("group and zero sources", DropReason::BadSourceMac, &frames);
    let kinds = [0x88cc, 0x0804, 0x1234, 0x0000, 0x05dc];
    let frames = kinds.map(|kind| ethernet(own.mac, BROADCAST, kind, &[0; 60]));
    arena.assert_dropped("what nobody speaks", DropReason::UnknownEtherType, &frames);

    let claims = [gateway.v4, victim.v4]
        .map(|claimed| raw::arp(BROADCAST, 1, (own.mac, claimed), ([0; 6], claimed)));
    arena.assert_dropped("claims by ARP", DropReason::Spoofed, &claims);
    let mut foreign = [to_gateway, to_victim];
    foreign[0][6..12].copy_from_slice(&victim.mac);
    foreign[1][6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    arena.assert_dropped("others' hardware addresses", DropReason::Spoofed, &foreign);
    let flood: Vec<Vec<u8>> = noise(6 * 20_000, 4)
        .chunks(6)
        .map(|random| {
            let mut mac: raw::Mac = random.try_into().expect("six octets");
            // One station, of local administration.
            mac[0] = mac[0] & 0xfc | 2;
            let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            raw::arp(BROADCAST, 1, (mac, unknown), ([0; 6], victim.v4))
        })
        .collect();
    arena.assert_dropped("a flood of stations", DropReason::Spoofed, &flood);
    arena.assert_undisturbed();
}

/// ARP packets shorter than they have to be, with lengths that lie.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn cve_2020_29129_and_29130_truncated_arp() {
    let arena = Arena::start();
    let (own, gateway) = (arena.own, arena.gateway);
    let whole = raw::arp(BROADCAST, 1, (own.mac, own.v4), ([0; 6], gateway.v4));
    let short: Vec<Vec<u8>> = (14..whole.len()).map(|end| whole[..end].to_vec()).collect();
    arena.assert_dropped("truncated ARP", DropReason::BadArp, &short);
    let fields = [
        (14, 9),
        (16, 9),
        (18, 0),
        (18, 5),
        (18, 255),
        (19, 0),
        (19, 16),
        (19, 255),
    ];
    let wrong = fields.map(|(at, value)| changed(&whole, |frame| frame[at] = value));
    arena.assert_dropped("wrong ARP", DropReason::BadArp, &wrong);
    arena.assert_undisturbed();
}

/// A container without spoof protection has a bounded number of stations behind its port.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_trusted_container_with_many_stations_fills_its_own_table_alone() {
    let arena = Arena::with(false);
    let frames: Vec<Vec<u8>> = (0..20_000u32)
        .map(|number| {
            let [a, b, c, d] = number.to_be_bytes();
            let mac = [2, 7, a, b, c, d];
            let address = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 200));
            raw::arp(BROADCAST, 1, (mac, address), ([0; 6], arena.of_victim.v4))
        })
        .collect();
    // All but those that the table has room for, of twice as many frames.
    let before = arena.drops(DropReason::MacTableFull);
    arena.send(&frames);
    crate::lab::wait_until("a full table", std::time::Duration::from_secs(10), || {
        let dropped = arena.drops(DropReason::MacTableFull) - before;
        (dropped >= 19_000)
            .then_some(())
            .ok_or(format!("{dropped} dropped"))
    });
    arena.assert_undisturbed();
}
