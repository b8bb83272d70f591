//! `pesto`: changes the ports of a running `pasta`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cnet_cli::pesto::main(std::env::args_os())
}
