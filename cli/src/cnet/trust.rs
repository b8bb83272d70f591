//! `cnet trust`: which user namespaces beside the user's own may use the user's networks.

use std::path::PathBuf;

use clap::Args;

use super::table::table;
use cnet::definition::{Admission, Directories, Trusted};

/// The options of `cnet trust`. Without any, it lists what is trusted.
#[derive(Args, Debug)]
pub(crate) struct TrustOptions {
    /// Let programs in this network namespace use the networks of this user, if they are in the user
    /// namespace that owns it; such programs on the host's network as well.
    ///
    /// That is for the set-up of a container engine that has a user namespace: such as
    /// /proc/PID/ns/net of a process that `podman unshare --rootless-netns` runs. It counts until the
    /// path leads elsewhere.
    #[arg(long, value_name = "PATH", conflicts_with = "revoke")]
    netns: Option<PathBuf>,

    /// Trust what the path was for no longer.
    #[arg(long, value_name = "PATH")]
    revoke: Option<PathBuf>,
}

/// Admits, revokes or lists.
pub(super) fn trust(options: &TrustOptions) -> anyhow::Result<()> {
    let trusted = Trusted::at(&Directories::of_this_user()?.runtime);
    if let Some(path) = &options.netns {
        trusted.admit(path)?;
        return Ok(());
    }
    if let Some(path) = &options.revoke {
        return Ok(trusted.revoke(path)?);
    }
    super::print(&table(&lines(&trusted.list())))?;
    Ok(())
}

fn lines(admissions: &[Admission]) -> Vec<Vec<String>> {
    let heading = ["NETNS", "STATE"].map(str::to_owned).to_vec();
    let line = |one: &Admission| {
        let state = match one.holds() {
            true => "trusted",
            false => "gone",
        };
        vec![one.path.display().to_string(), state.to_owned()]
    };
    std::iter::once(heading)
        .chain(admissions.iter().map(line))
        .collect()
}
