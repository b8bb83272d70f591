//! What needs `/dev/net/tun` and namespaces of its own: run by `cargo xtask test`, or by
//! `cargo test -p cnet-tap -- --ignored` as root, or as any user where `/dev/net/tun` is 0666 and
//! user namespaces are allowed.
//!
//! Every test runs in a child process with one thread ([`stage::alone`]), which makes its own
//! user and network namespace; nothing it does is seen outside.

mod helper;
mod offload;
mod sandbox;
mod stage;
mod tap;
