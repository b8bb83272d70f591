//! The host's sockets, as the pure core asks for them.
//!
//! [`table`] implements [`cnet_nat::host::HostSockets`] by system calls; [`receive_batch`] fetches
//! many datagrams by one of them.

mod receive_batch;
mod table;

pub(crate) use table::{Features, HostTable, allowed};
