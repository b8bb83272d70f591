//! Names of link-layer things: MAC addresses and switch ports.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An Ethernet address (IEEE 802), in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All ones: every station.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// Group bit: the address names several stations (broadcast included).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// All zeros, which no station may use as a source.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// The modified EUI-64 interface identifier of this address (RFC 4291, appendix A).
    pub fn eui64(self) -> [u8; 8] {
        let m = self.0;
        [m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(
            f,
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            m[0], m[1], m[2], m[3], m[4], m[5]
        )
    }
}

/// A text that is not a MAC address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no MAC address such as 02:42:0a:58:00:02")]
pub struct MacAddrError(String);

impl FromStr for MacAddr {
    type Err = MacAddrError;

    /// Reads six octets in hexadecimal, of one or two digits each, with colons between.
    fn from_str(text: &str) -> Result<MacAddr, MacAddrError> {
        let octet = |part: &str| match part.len() {
            1..=2 if part.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u8::from_str_radix(part, 16).ok()
            }
            _ => None,
        };
        let mut parts = text.split(':');
        let mut octets = [0; 6];
        let mut read = || {
            for each in &mut octets {
                *each = octet(parts.next()?)?;
            }
            parts.next().is_none().then_some(())
        };
        match read() {
            Some(()) => Ok(MacAddr(octets)),
            None => Err(MacAddrError(text.to_owned())),
        }
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether `ip` can be a single station's address on a link: no group, no loopback address, and none of
/// 0.0.0.0/8 or 240.0.0.0/4.
pub fn is_station(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(a) => a.octets()[0] == 0 || a.is_loopback() || a.octets()[0] >= 224,
        IpAddr::V6(a) => a.is_unspecified() || a.is_multicast() || a.is_loopback(),
    };
    !special
}

/// A port of the switch. The shell gives the numbers; they are small and reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortId(pub u32);

impl PortId {
    /// The router's port. All other ports have numbers from 1 on.
    pub const ROUTER: PortId = PortId(0);
}

/// Transport of a published port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A text that is neither `tcp` nor `udp`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown protocol `{0}`: it is tcp or udp")]
pub struct ProtocolError(pub String);

impl FromStr for Protocol {
    type Err = ProtocolError;

    fn from_str(text: &str) -> Result<Protocol, ProtocolError> {
        match text {
            _ if text.eq_ignore_ascii_case("tcp") => Ok(Protocol::Tcp),
            _ if text.eq_ignore_ascii_case("udp") => Ok(Protocol::Udp),
            _ => Err(ProtocolError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints_and_nothing_else() {
        let mac = MacAddr([2, 0x42, 10, 0x58, 0, 2]);
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert_eq!("2:42:A:58:0:2".parse(), Ok(mac));
        for text in [
            "",
            "02:00:00",
            "2:42:a:58:0:2:",
            "+2:42:a:58:0:2",
            "002:42:a:58:0:2",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
        assert_eq!("UDP".parse(), Ok(Protocol::Udp));
        assert!("sctp".parse::<Protocol>().is_err());
    }

    #[test]
    fn prints_as_users_write_it() {
        assert_eq!(
            MacAddr([0x52, 0x55, 10, 0, 2, 2]).to_string(),
            "52:55:0a:00:02:02"
        );
    }

    #[test]
    fn eui64_flips_the_universal_bit() {
        assert_eq!(
            MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]).eui64(),
            [0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56]
        );
    }
}
