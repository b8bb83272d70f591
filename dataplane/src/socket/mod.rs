//! The host's sockets, as the pure core asks for them.
//!
//! [`table`] implements [`cnet_nat::host::HostSockets`] by system calls, with the kernel features that
//! [`features`] has found; [`receive_batch`] fetches many datagrams by one call; [`errno`] says what
//! the kernel's errors mean to the core; [`local_ports`] which ports mappings may take.

mod errno;
mod features;
mod host_socket;
mod local_ports;
mod receive_batch;
mod table;

pub(crate) use features::{WITHOUT, allowed};
pub use local_ports::LocalPorts;
pub(crate) use table::HostTable;
