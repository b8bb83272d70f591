//! End to end: the two binaries, and the dataplane below them, between real namespaces, with the
//! kernel's own stack at both ends.
//!
//! `cargo xtask test e2e` runs these tests, as root; by hand it is
//! `cargo test --release -p cnet-tests --test e2e -- --ignored --test-threads=1 [NAME]`. They make
//! their own network namespaces ([`cnet_tests::lab`]) and leave the machine as it was. `CNET_E2E_SLIRP` puts
//! another program, such as slirp4netns, in the place of `cnet-slirp`; what it cannot do then fails.
#![forbid(unsafe_code)]

use cnet_tests::lab;

mod api;
mod bulk;
mod command_line;
mod connect;
mod crowd;
mod datagram;
mod dns;
mod dns_files;
mod errors;
mod gateway;
mod headers;
mod host_access;
mod lifecycle;
mod liveness;
mod macvlan;
mod mappings;
mod networks;
mod overlay;
mod pasta;
mod plugins;
mod protection;
mod publish;
mod publish_addresses;
mod publish_listen;
mod publish_syntax;
mod qemu;
mod reach;
mod run;
mod run_words;
mod sandbox;
mod source_ports;
mod splice;
mod switch;
mod throughput;
mod ways;
mod workers;
