//! `cnet-netavark`: a plug-in for netavark.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cnet_cli::netavark::main()
}
