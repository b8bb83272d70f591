//! `cnet`: networks of containers for a person at a terminal.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cnet_cli::cnet::main()
}
