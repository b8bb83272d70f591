//! The options about the sandbox, which several commands have.

use clap::Args;
use cnet_tap::sandbox::Mode;

/// How much of the sandbox is insisted upon.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct SandboxOptions {
    /// Refuse to run where the host lacks a stage of the sandbox.
    ///
    /// Without this, what is lacking is logged. `cnet doctor` tells what to do about it.
    #[arg(long, conflicts_with = "no_sandbox")]
    require_sandbox: bool,

    /// Run the network outside the sandbox, for debugging only.
    #[arg(long)]
    no_sandbox: bool,
}

impl SandboxOptions {
    pub(crate) fn mode(self) -> Mode {
        match (self.require_sandbox, self.no_sandbox) {
            (true, _) => Mode::Required,
            (false, true) => Mode::Off,
            (false, false) => Mode::Offered,
        }
    }
}
