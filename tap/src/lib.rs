//! The kernel-facing crate of cnet: everything that needs a system call rustix does not wrap.
//!
//! # Purpose
//!
//! The rest of the project forbids `unsafe`; what cannot be said without it lives here, behind
//! safe functions, each block with its `SAFETY:` line. The crate knows nothing about flows,
//! switches or policy: it opens devices, enters namespaces, configures interfaces and does the
//! socket calls that the standard library and rustix lack. It is for Linux alone.
//!
//! # Parts
//!
//! - [`device`]: TAP devices with virtio-net headers and segmentation offloads, one descriptor a
//!   queue.
//! - [`netif`]: addresses, routes, MTU and link state over rtnetlink, in the current network
//!   namespace.
//! - [`fork()`](fork::fork): making a process, while there is one thread.
//! - [`namespace`]: namespaces pinned by descriptor, entering them, and doing work inside one from
//!   a helper process that hands descriptors back.
//! - [`supplier`]: a process inside a network namespace that hands out TCP sockets made there.
//! - [`watch`]: noticing that a process or a bind-mounted namespace is gone.
//! - [`sockets`]: peeking and discarding TCP data, UDP segmentation, the socket error queue,
//!   `TCP_INFO`, ping sockets.
//!
//! # Invariants
//!
//! Every descriptor made here is close-on-exec. Every descriptor for traffic is non-blocking.
//! Kernel features are detected by asking the kernel, never by its version.
#![deny(unsafe_op_in_unsafe_fn)]

mod control;
pub mod device;
pub mod error;
pub mod fork;
pub mod inherited_fd;
pub mod namespace;
pub mod netif;
pub mod sockets;
pub mod supplier;
pub mod watch;

pub use device::{Limit, Offloads, Tap, TapInfo, TapQueue, VNET_HDR_LEN};
pub use error::TapError;
pub use namespace::{Namespaces, open_tap_in, run_in};
pub use netif::InterfaceConfig;
pub use supplier::Supplier;
