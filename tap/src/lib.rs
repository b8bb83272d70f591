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
//! - [`host_addresses`]: the addresses of the current network namespace, as they change.
//! - [`namespace`]: namespaces pinned by descriptor, entered, and made.
//! - [`fork()`](fork::fork): making a process, while there is one thread.
//! - [`helper`]: forked processes that work inside namespaces and hand descriptors back.
//! - [`sandbox`]: what a process gives up before it reads what containers send.
//! - [`unix`]: private Unix sockets, and descriptors that cross them.
//! - [`watch`]: noticing that a process or a bind-mounted namespace is gone.
//! - [`signal`]: signals read as messages.
//! - [`inherited_fd`]: descriptors that the calling program left open.
//! - [`async_fd`]: descriptors that a tokio runtime waits for.
//! - [`socket`]: peeking and discarding TCP data, UDP segmentation, the socket error queue,
//!   `TCP_INFO`, ping sockets.
//!
//! # Features
//!
//! - `devices` (default): [`device`], [`netif`], [`host_addresses`], [`helper`] and [`sandbox`], with what
//!   they depend on. A program
//!   that only names namespaces does without.
//! - `tokio`: [`async_fd`].
//!
//! # Invariants
//!
//! Every descriptor made here is close-on-exec. Every descriptor for traffic is non-blocking.
//! Kernel features are detected by asking the kernel, never by its version.
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(feature = "tokio")]
pub mod async_fd;
#[cfg(feature = "devices")]
pub mod device;
pub mod error;
pub mod fork;
#[cfg(feature = "devices")]
pub mod helper;
#[cfg(feature = "devices")]
pub mod host_addresses;
pub mod inherited_fd;
pub mod namespace;
#[cfg(feature = "devices")]
pub mod netif;
#[cfg(feature = "devices")]
mod netlink;
#[cfg(feature = "devices")]
pub mod sandbox;
pub mod signal;
pub mod socket;
pub mod unix;
pub mod watch;

#[cfg(feature = "devices")]
pub use device::{Limit, Offloads, Tap, TapInfo, TapQueue, VNET_HDR_LEN};
pub use error::TapError;
#[cfg(feature = "devices")]
pub use helper::{SocketHelper, open_tap_in, run_in};
pub use namespace::Namespaces;
#[cfg(feature = "devices")]
pub use netif::InterfaceConfig;
