//! Values of options that take more than one form.

use std::net::Ipv4Addr;

use cnet_wire::MacAddr;

use super::ArgsError;
use crate::getopt::station_mac;

/// A hardware address that one interface can have.
pub(super) fn mac_address(what: &'static str, text: &str) -> Result<MacAddr, ArgsError> {
    let mac = station_mac(text);
    mac.ok_or_else(|| ArgsError::Value(what, text.to_owned()))
}

/// A netmask as 255.255.255.0 or as 24.
pub(super) fn prefix_len(text: &str) -> Option<u8> {
    if let Ok(mask) = text.parse::<Ipv4Addr>() {
        let bits = u32::from(mask);
        let len = bits.leading_ones();
        return (bits.count_ones() == len && len > 0).then_some(len as u8);
    }
    text.parse().ok().filter(|len| (1..=32).contains(len))
}

/// `UID`, `UID:GID`, or names of a user and a group, as /etc/passwd and /etc/group have them.
pub(super) fn run_as(text: &str) -> Option<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, own) = match user.parse::<u32>() {
        Ok(uid) => (uid, uid),
        Err(_) => {
            let fields = entry("/etc/passwd", user)?;
            (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)
        }
    };
    let gid = match group.map(|group| group.parse::<u32>().map_err(|_| group)) {
        None => own,
        Some(Ok(gid)) => gid,
        Some(Err(name)) => entry("/etc/group", name)?.get(2)?.parse().ok()?,
    };
    Some((uid, gid))
}

/// The fields of the line of `name` in a file of users or groups.
fn entry(path: &str, name: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    Some(line.split(':').map(str::to_owned).collect())
}
