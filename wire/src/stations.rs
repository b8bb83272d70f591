//! Who is where, as the router asks and the switch answers.
//!
//! The switch has the one table of stations; the router keeps none. What joins the two lends it, as an
//! argument next to the router's effects.

use std::net::IpAddr;

use crate::addr::{MacAddr, PortId};
use crate::time::Instant;

/// Where an address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// The port it is behind.
    pub port: PortId,
    /// The MAC address it was last used with; `None` if its port is known by lease alone.
    pub mac: Option<MacAddr>,
}

/// The address is leased or granted to another port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken;

/// The table of stations.
pub trait Stations {
    /// Where `address` is: the port it is leased or granted to, or was learned from.
    fn by_address(&self, now: Instant, address: IpAddr) -> Option<Location>;

    /// DHCP grants `address` to `port`, whose station is at `mac` if that is told. A port that had only
    /// learned it loses it.
    ///
    /// # Errors
    ///
    /// [`Taken`]: a grant does not take an address from a lease or from another grant.
    fn grant(&self, address: IpAddr, port: PortId, mac: Option<MacAddr>) -> Result<(), Taken>;

    /// DHCP takes back what it granted to `port`.
    fn take_back(&self, address: IpAddr, port: PortId);

    /// All ports that containers are behind.
    fn ports(&self) -> impl Iterator<Item = PortId> + '_;
}
