//! `cnet-uplink`: the one program with a privilege. It opens a packet socket on an interface of the host and
//! hands it to the user who has started it, if the administrator's rules let that user.
//!
//! # Theory of operation
//!
//! The administrator gives the program CAP_NET_RAW (`setcap cap_net_raw+ep`) and writes the rules into
//! [`RULES`]. A network's process starts it with the interface's name as its argument and a Unix socket as
//! its standard input. It reads the rules, opens the socket, sends it back and ends; it reads nothing from
//! its caller but the name, and nothing from its environment.
//!
//! # Limits
//!
//! The kernel checks the privilege when a packet socket is made. Who holds one may send on other interfaces
//! of the host too, so a rule is a matter of trust in the user, for the host's LANs as a whole.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use cnet::definition::file::read_trusted_text_of_root;
use cnet_tap::device::raw::open_uplink;
use rustix::net::SendFlags;
use serde::Deserialize;

/// Who may use which interface.
pub const RULES: &str = "/etc/cnet/uplinks.toml";
/// Bytes that the rules may have.
const MAX_RULES: u64 = 1 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    #[serde(default)]
    allow: Vec<Allow>,
}

/// One user's interfaces. Of `uid` and `user` there is one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    uid: Option<u32>,
    user: Option<String>,
    parents: Vec<String>,
}

impl Rules {
    fn allow(&self, uid: u32, user: Option<&str>, parent: &str) -> bool {
        let is_theirs = |allow: &Allow| match (allow.uid, allow.user.as_deref()) {
            (Some(theirs), None) => theirs == uid,
            (None, Some(theirs)) => user == Some(theirs),
            _ => false,
        };
        self.allow
            .iter()
            .any(|allow| is_theirs(allow) && allow.parents.iter().any(|p| p == parent))
    }
}

/// The program. Its one argument is the name of an interface.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parent = arguments.into_iter().nth(1);
    match hand_over(parent.as_deref().and_then(|parent| parent.to_str())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cnet-uplink: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hand_over(parent: Option<&str>) -> anyhow::Result<()> {
    let Some(parent) = parent else {
        bail!("it is started by a network's process, with the name of an interface");
    };
    let uid = rustix::process::getuid().as_raw();
    if uid != 0 {
        let rules = match read_trusted_text_of_root(Path::new(RULES), MAX_RULES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Rules::default(),
            text => toml::from_str(&text.context(RULES)?).context(RULES)?,
        };
        let user = name_of(uid);
        if !rules.allow(uid, user.as_deref(), parent) {
            bail!(
                "{RULES} does not let user {uid} use {parent}. As root, add to it:\n[[allow]]\nuid = {uid}\nparents = [\"{parent}\"]"
            );
        }
    }
    let socket = open_uplink(parent).with_context(|| format!("cannot open {parent}"))?;
    let sent = cnet_tap::unix::send(io::stdin(), &[b"0"], &[socket.as_fd()], SendFlags::empty());
    sent.context("cannot hand the socket over")?;
    Ok(())
}

/// The user's name, by the host's own list.
fn name_of(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_for_one_user_and_its_interfaces() {
        let text = "[[allow]]\nuid = 1000\nparents = [\"eth0\", \"eth1\"]\n[[allow]]\nuser = \"ann\"\nparents = [\"eth2\"]\n[[allow]]\nparents = [\"eth3\"]\n";
        let rules: Rules = toml::from_str(text).unwrap();
        assert!(rules.allow(1000, None, "eth0") && rules.allow(1000, None, "eth1"));
        assert!(!rules.allow(1000, None, "eth2") && !rules.allow(1001, None, "eth0"));
        assert!(rules.allow(7, Some("ann"), "eth2") && !rules.allow(7, Some("bob"), "eth2"));
        // A rule for nobody is for nobody.
        assert!(!rules.allow(1000, Some("ann"), "eth3"));
        assert!(toml::from_str::<Rules>("[[allow]]\nuid = 1\n").is_err());
        assert!(toml::from_str::<Rules>("[[deny]]\nuid = 1\n").is_err());
    }

    #[test]
    fn root_has_a_name() {
        assert_eq!(name_of(0).as_deref(), Some("root"));
    }
}
