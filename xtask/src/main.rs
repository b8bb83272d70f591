//! The project's scripts: `cargo xtask test` is the one test command, `cargo xtask house` the part
//! of it that reads the sources, `cargo xtask fuzz` lets the fuzz targets run, and `cargo xtask
//! bench` compares cnet with its peers.
//!
//! It needs a Rust toolchain and a Linux kernel, and nothing else: what the namespace tests use
//! besides is installed with apt when run as root, and named with the command to install it
//! otherwise (see [`machine`]). The stages are listed in [`mod@test`]; each runs under a time limit, so
//! the command ends whatever a test does.

#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod deny;
mod fuzz;
mod house;
mod install;
mod machine;
mod stage;
mod test;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask test [STAGE…]    run the tests, all of them or the stages named
       cargo xtask test --list      name the stages
       cargo xtask house            print what breaks the rules of the house
       cargo xtask fuzz --minutes N [TARGET…]  let the fuzz targets run
       cargo xtask dnsperf [OPTION…]  compare the gateway's DNS with dnsmasq's
       cargo xtask install [--prefix DIR] [--links]  install the programs, manual pages and completions
       cargo xtask documentation    make the manual pages and completions that `cargo deb` packs
       cargo xtask bench [OPTION…]  compare cnet with its peers; --help names the options";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["test", "--list"] => {
            test::list();
            Ok(true)
        }
        ["test", stages @ ..] => test::run(stages),
        ["house"] => house::run().map(|findings| findings == 0),
        ["fuzz", words @ ..] => fuzz::run(words),
        ["bench", words @ ..] => bench::run(words),
        ["dnsperf", words @ ..] => bench::dns::run(words),
        ["install", words @ ..] => install::run(words),
        ["documentation"] => install::documentation(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
