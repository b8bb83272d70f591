//! `cnet-slirp`: a drop-in for `slirp4netns`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cnet_cli::slirp::main(std::env::args_os())
}
