//! Ports: the devices by which containers and virtual machines stand on the network.
//!
//! [`table`] holds a worker's ports and gives them their turns; [`vm`] is the socket of a virtual
//! machine. What comes next (raw sockets, VXLAN, a patch to another network) is a variant of
//! [`table::Device`] with a file of its own here.

pub(crate) mod table;
mod vm;

pub(crate) use table::{Device, Opened, Ports, Seat, Unplugged};
pub use table::{PortDevice, PortEnd, PortError};
pub use vm::VmSocket;
