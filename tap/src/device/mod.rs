//! Devices that carry frames: one file a kind.
//!
//! - [`tap`]: TAPs, one descriptor a queue, each frame with its virtio-net header.
//! - [`offloads`]: what a TAP hands over without doing it itself.
//!
//! A packet socket on an interface of the host (`raw`) will live beside them.

mod ioctl;
pub mod offloads;
pub mod tap;

pub use offloads::{Limit, Offloads};
pub use tap::{MAX_QUEUES, Tap, TapInfo, TapQueue, VNET_HDR_LEN};
