//! Stations of a network, as frames made by hand name them.

use std::net::IpAddr;

use super::place::Member;
use super::raw::Mac;

/// A station, as its neighbours know it.
#[derive(Clone, Copy)]
pub struct Station {
    /// Its hardware address.
    pub mac: Mac,
    /// Its address.
    pub v4: IpAddr,
    /// Its address.
    pub v6: IpAddr,
}

impl Station {
    /// A container of a network process.
    pub fn of(member: &Member) -> Self {
        Self {
            mac: mac_of(&member.namespace.ip("-o link show eth0")),
            v4: member.v4,
            v6: member.v6.expect("an address"),
        }
    }

    /// The gateway, as `member` has it in its caches.
    pub fn gateway(member: &Member) -> Self {
        let route = member.namespace.ip("-6 route show default");
        let v6 = route.split_whitespace().skip_while(|w| *w != "via").nth(1);
        let v6: IpAddr = v6.and_then(|v6| v6.parse().ok()).expect("a route");
        let shown = member
            .namespace
            .ip(&format!("neigh show {}", member.gateway));
        let mac = mac_of(&shown);
        let v4 = member.gateway;
        Self { mac, v4, v6 }
    }
}

/// The first hardware address that `ip` names.
pub fn mac_of(shown: &str) -> Mac {
    let mut words = shown.split_whitespace();
    let mac = words.find(|word| word.len() == 17 && word.matches(':').count() == 5);
    let mac = mac.unwrap_or_else(|| panic!("no hardware address: {shown}"));
    let octets = mac
        .split(':')
        .map(|o| u8::from_str_radix(o, 16).expect("hexadecimal"));
    let octets: Vec<u8> = octets.collect();
    octets.try_into().expect("six octets")
}
