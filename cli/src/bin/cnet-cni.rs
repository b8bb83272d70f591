//! `cnet-cni`: a CNI plug-in.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cnet_cli::cni::main()
}
