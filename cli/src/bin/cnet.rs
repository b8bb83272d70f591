//! `cnet`: networks of containers for a person at a terminal.

use std::process::ExitCode;

fn main() -> ExitCode {
    cnet_cli::cnet::main()
}
