//! What passes the namespace's interface, written to a file (`--pcap`).
//!
//! A packet socket inside the namespace hears the interface; this process reads it and writes the
//! file, so nothing on the way of a packet knows of it. The format is that of pcap-savefile(5), in this
//! machine's byte order.
//!
//! # Limits
//!
//! Packets are as the namespace's kernel hands them over: larger than the MTU where they are still to
//! be cut, and without checksums that are still to be filled in. Those that this process is too slow
//! for are missing.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use cnet_tap::async_fd::AsyncOwnedFd;
use cnet_tap::{Namespaces, TapError, device, netif, run_in};
use rustix::net::RecvFlags;
use tokio::io::Interest;

/// The first number of a file with microseconds, and the version of its format.
const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;
/// The longest packet.
const SNAP_LENGTH: u32 = 256 * 1024;

/// A file, and the socket whose packets it gets.
pub(super) struct Capture {
    socket: OwnedFd,
    file: File,
}

impl Capture {
    /// Begins to hear the interface `name`. To be called while there is one thread.
    ///
    /// # Errors
    ///
    /// What open(2) says of the file, and socket(2) of the packet socket.
    pub(super) fn open(
        path: &Path,
        namespaces: &Namespaces,
        name: &str,
    ) -> anyhow::Result<Capture> {
        let file = File::create(path);
        let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(&header())?;
        let (sockets, _) = run_in(namespaces, || {
            let socket = device::raw::listener(netif::index_of(name)?);
            let socket = socket.map_err(|source| TapError::Io {
                what: "cannot open a packet socket",
                source,
            })?;
            Ok((vec![socket], Vec::new()))
        })?;
        let socket = { sockets }.pop().context("no packet socket came")?;
        Ok(Capture { socket, file })
    }

    /// Writes what passes, until the file cannot be written any more.
    ///
    /// # Errors
    ///
    /// What write(2) says.
    pub(super) async fn run(self) -> io::Result<()> {
        let Capture { socket, mut file } = self;
        let socket = AsyncOwnedFd::new(socket, Interest::READABLE)?;
        let mut packet = vec![0; SNAP_LENGTH as usize];
        loop {
            let mut ready = socket.ready().await?;
            match rustix::net::recv(socket.fd(), &mut *packet, RecvFlags::DONTWAIT) {
                Ok((length, _)) => file.write_all(&record(&packet[..length]))?,
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                // The interface is down, or packets were lost.
                Err(_) => ready.clear_ready(),
            }
        }
    }
}

fn header() -> Vec<u8> {
    let mut bytes = Vec::from(MAGIC.to_ne_bytes());
    bytes.extend(VERSION.iter().flat_map(|number| number.to_ne_bytes()));
    // Time zone and accuracy, which no program uses.
    for number in [0, 0, SNAP_LENGTH, ETHERNET] {
        bytes.extend(u32::to_ne_bytes(number));
    }
    bytes
}

fn record(packet: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let length = packet.len() as u32;
    let numbers = [now.as_secs() as u32, now.subsec_micros(), length, length];
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
    bytes.extend(packet);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_begins_with_24_bytes_and_a_packet_with_16() {
        let header = header();
        assert_eq!(header.len(), 24);
        assert_eq!(header[..4], 0xa1b2_c3d4_u32.to_ne_bytes());
        assert_eq!(header[20..], 1_u32.to_ne_bytes());
        let record = record(b"packet");
        assert_eq!(record.len(), 16 + 6);
        assert_eq!(record[8..12], 6_u32.to_ne_bytes());
        assert_eq!(record[16..], *b"packet");
    }
}
