//! Programs of other projects that call `cnet-slirp` in the place of slirp4netns: rootlesskit, podman,
//! bubblewrap, each from its Debian package and as an ordinary user, and slirp4netns itself beside it,
//! option by option. Then those that read what `cnet` says, such as Prometheus' checker of metrics.
//!
//! `cargo xtask test clients` runs these tests, as root; by hand it is
//! `cargo test --release -p cnet-tests --test clients -- --ignored --test-threads=1 [NAME]`.
//!
//! # Limits
//!
//! A test whose program is not installed says so on standard error and passes: the packages are another
//! project's, and the stage installs them where it can.
#![forbid(unsafe_code)]

use cnet_tests::lab;

mod caller;
mod confinement;
mod metrics;
mod nat_behaviour;
mod option_by_option;
mod podman_cni;
mod programs;
