//! `pasta`: a drop-in for passt's program of that name.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cnet_cli::pasta::main(std::env::args_os())
}
