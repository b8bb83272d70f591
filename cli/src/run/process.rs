//! Processes: ending those that are left, and how one has ended.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::program::OWN_FAILURE;

/// How long children may take to die of SIGKILL. Only one that hangs in the kernel takes longer
/// than a moment, and then waiting does not help.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// Kills one child and reaps it, unless that was done already.
pub(super) fn kill_child(child: Pid) {
    let started = Instant::now();
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::NOHANG) {
            Err(Errno::INTR) => continue,
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return,
        }
        if started.elapsed() > KILL_TIMEOUT {
            tracing::warn!("the command's process does not die");
            return;
        }
        // It is our child and not reaped, so the number is still its own.
        let _ = rustix::process::kill_process(child, Signal::KILL);
        thread::sleep(Duration::from_millis(1));
    }
}

/// Kills all children, and the orphans that become our children thereby, and reaps them. Those of
/// `spared` are left alone.
pub(super) fn kill_all_children(spared: &[Pid]) {
    let started = Instant::now();
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => continue,
            Err(Errno::INTR) => continue,
            // No child is left.
            Err(_) => return,
            Ok(None) => {}
        }
        let doomed: Vec<Pid> = children()
            .into_iter()
            .filter(|child| !spared.contains(child))
            .collect();
        if doomed.is_empty() {
            return;
        }
        for child in doomed {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        if started.elapsed() > KILL_TIMEOUT {
            tracing::warn!("a process of the command does not die");
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn children() -> Vec<Pid> {
    let own = rustix::process::getpid();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|&pid| parent_of(pid) == Some(own))
        .collect()
}

/// Whether `pid` is one of our children, or of theirs, and so on.
pub(super) fn is_descendant(pid: Pid) -> bool {
    let own = rustix::process::getpid();
    let mut pid = pid;
    // No chain of parents is longer than there are processes; this is the kernel's default limit.
    for _ in 0..32_768 {
        match parent_of(pid) {
            Some(parent) if parent == own => return true,
            Some(parent) => pid = parent,
            None => return false,
        }
    }
    false
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    parent_in_stat(&String::from_utf8_lossy(&stat))
}

/// The parent is the second word after the name, which stands in parentheses and may hold anything
/// (proc(5)).
fn parent_in_stat(stat: &str) -> Option<Pid> {
    let (_, rest) = stat.rsplit_once(')')?;
    Pid::from_raw(rest.split_whitespace().nth(1)?.parse().ok()?)
}

/// As a shell tells it: 128 and the signal's number for a command that a signal ended.
pub(crate) fn exit_code(status: WaitStatus) -> u8 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128_u8.wrapping_add(signal as u8),
        (None, None) => OWN_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn names_with_parentheses() {
        let parent = |stat: &str| parent_in_stat(stat).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(parent("12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (a ) S 9) R 8 1"), Some(8));
        assert_eq!(parent("1 (init) S 0 1"), None);
        assert_eq!(parent("nonsense"), None);
    }

    #[test]
    fn one_child_is_killed_and_others_are_not() {
        let cat = || Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (doomed, mut other) = (cat(), cat());
        let pid = Pid::from_child(&doomed);
        kill_child(pid);
        assert!(parent_of(pid).is_none(), "reaped");
        assert!(other.try_wait().unwrap().is_none());
        kill_child(pid);
        drop(other.stdin.take());
        assert!(other.wait().unwrap().success());
    }

    #[test]
    fn descendants_are_known() {
        let mut shell = Command::new("sh")
            // A shell gives what runs in the background no input, and `cat` would end at once.
            .args(["-c", "exec 3<&0; cat <&3 & echo $!; wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(shell.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let grandchild = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        assert!(is_descendant(grandchild));
        assert!(!is_descendant(rustix::process::getpid()));
        assert!(!is_descendant(Pid::INIT));
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }
}
