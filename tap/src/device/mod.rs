//! Devices that carry frames: one file a kind.
//!
//! - [`tap`]: TAPs, one descriptor a queue, each frame with its virtio-net header.
//! - [`offloads`]: what a TAP hands over without doing it itself.
//! - [`raw`]: packet sockets on an interface.

mod ioctl;
pub mod offloads;
pub mod raw;
pub mod tap;

pub use ioctl::VNET_HDR_LEN;
pub use offloads::{Limit, Offloads};
pub use tap::{Adopted, MAX_QUEUES, Tap, TapInfo, TapQueue, adopt};
