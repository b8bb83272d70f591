//! `cnet-uplink`: opens an interface of the host for a user's network.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cnet_cli::uplink::main(std::env::args_os())
}
