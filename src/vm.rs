//! Where a virtual machine and a network meet: two kinds of Unix sockets that QEMU speaks over.
//!
//! - `stream:PATH`: the network listens at PATH, QEMU connects:
//!   `-netdev stream,id=n,server=off,addr.type=unix,addr.path=PATH`.
//! - `dgram:LOCAL:REMOTE`: the network is at LOCAL, QEMU at REMOTE:
//!   `-netdev dgram,id=n,local.type=unix,local.path=REMOTE,remote.type=unix,remote.path=LOCAL`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cnet_wire::MacAddr;
use serde::{Deserialize, Serialize};

/// Where a virtual machine and the network meet; in JSON its text.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VmAddress {
    /// A stream socket that we listen at.
    Stream(PathBuf),
    /// Two datagram sockets.
    Datagram {
        /// Ours.
        local: PathBuf,
        /// QEMU's.
        remote: PathBuf,
    },
}

/// A text that is no [`VmAddress`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is neither stream:PATH nor dgram:LOCAL:REMOTE with paths that start with a slash")]
pub struct VmAddressError(String);

impl FromStr for VmAddress {
    type Err = VmAddressError;

    fn from_str(text: &str) -> Result<VmAddress, VmAddressError> {
        let path = |path: &str| path.starts_with('/').then(|| PathBuf::from(path));
        let read = || match text.split_once(':')? {
            ("stream", at) => Some(VmAddress::Stream(path(at)?)),
            ("dgram", both) => {
                let (local, remote) = both.split_once(':')?;
                let (local, remote) = (path(local)?, path(remote)?);
                (local != remote).then_some(VmAddress::Datagram { local, remote })
            }
            _ => None,
        };
        read().ok_or_else(|| VmAddressError(text.to_owned()))
    }
}

impl TryFrom<String> for VmAddress {
    type Error = VmAddressError;

    fn try_from(text: String) -> Result<VmAddress, VmAddressError> {
        text.parse()
    }
}

impl From<VmAddress> for String {
    fn from(address: VmAddress) -> String {
        address.to_string()
    }
}

impl fmt::Display for VmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmAddress::Stream(path) => write!(f, "stream:{}", path.display()),
            VmAddress::Datagram { local, remote } => {
                write!(f, "dgram:{}:{}", local.display(), remote.display())
            }
        }
    }
}

impl VmAddress {
    /// What QEMU is told to meet us, with the hardware address that the VM's card is to have.
    pub fn qemu_arguments(&self, mac: MacAddr) -> [String; 4] {
        // In QEMU's lists of options a comma is written twice.
        let path = |path: &Path| path.display().to_string().replace(',', ",,");
        let netdev = match self {
            VmAddress::Stream(at) => {
                let at = path(at);
                format!("stream,id=cnet,server=off,addr.type=unix,addr.path={at}")
            }
            VmAddress::Datagram { local, remote } => {
                let (ours, theirs) = (path(local), path(remote));
                format!(
                    "dgram,id=cnet,local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}"
                )
            }
        };
        let device = format!("virtio-net-pci,netdev=cnet,mac={mac}");
        ["-netdev".into(), netdev, "-device".into(), device]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> VmAddress {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["stream:/run/a.sock", "dgram:/run/a:/run/b,c"] {
            assert_eq!(address(text).to_string(), text);
        }
        for text in [
            "",
            "stream:",
            "stream:relative",
            "dgram:/a",
            "dgram:/a:b",
            "dgram:/a:/a",
            "tcp:/a",
            "/a",
        ] {
            assert!(text.parse::<VmAddress>().is_err(), "{text}");
        }
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let [_, netdev, _, device] = address("dgram:/run/a:/run/b,c").qemu_arguments(mac);
        assert!(netdev.contains("local.path=/run/b,,c,") && netdev.ends_with("remote.path=/run/a"));
        assert!(device.ends_with("mac=02:00:00:00:00:01"), "{device}");
    }
}
