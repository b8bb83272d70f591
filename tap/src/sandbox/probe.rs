//! What of the sandbox this host offers: found out by a child that enters it.

use rustix::net::{RecvFlags, SendFlags};
use rustix::process::WaitOptions;

use super::{Mode, Policy, Report, Role, Stage, enter, spawn_isolated};
use crate::error::TapError;
use crate::unix;

/// The longest report.
const MAX_REPORT: usize = 16 * 1024;

/// Has a child enter the sandbox, and gives the stages it lacks, with the reasons.
///
/// # Errors
///
/// [`TapError::MultiThreaded`] if this process has more threads than one; [`TapError::Io`] at a
/// limit of processes or descriptors; [`TapError::HelperDied`] if the sandbox ended the child.
pub fn missing() -> Result<Vec<(Stage, String)>, TapError> {
    let (child, socket) = spawn_isolated("cannot fork", false, |isolated, socket| {
        let mut policy = Policy::new(Role::Private, Mode::Offered);
        policy.isolation = Some(isolated.isolation);
        let report = enter(&policy).unwrap_or_default();
        let text = lines(&report);
        let sent = unix::send(&socket, &[text.as_bytes()], &[], SendFlags::empty());
        u8::from(sent.is_err())
    })?;
    let mut bytes = vec![0; MAX_REPORT];
    let (length, _) = unix::receive(&socket, &mut bytes, 0, RecvFlags::empty())
        .map_err(TapError::io("cannot hear from the child in the sandbox"))?;
    let status = rustix::process::waitpid(Some(child), WaitOptions::empty());
    if length == 0 {
        let status = format!("{status:?}");
        return Err(TapError::HelperDied { status });
    }
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let stage = |name: &str| Stage::ALL.into_iter().find(|stage| stage.name() == name);
    Ok(text
        .lines()
        .filter_map(|line| {
            let (name, why) = line.split_once('\t')?;
            Some((stage(name)?, why.to_owned()))
        })
        .collect())
}

/// A line for each missing stage, and an empty one so that there is always something to send.
fn lines(report: &Report) -> String {
    let line = |missing: &super::Missing| {
        let why = missing.why.replace(['\n', '\t'], " ");
        format!("{}\t{why}\n", missing.stage)
    };
    report.missing.iter().map(line).collect::<String>() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_lines() {
        let mut report = Report::default();
        assert_eq!(lines(&report), "\n");
        report.note(Stage::Landlock, Err("no\nLandlock".to_owned()));
        assert_eq!(lines(&report), "Landlock\tno Landlock\n\n");
    }
}
