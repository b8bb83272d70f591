//! Processes: making one, and ending those that are left.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

/// How long children may take to die of SIGKILL. Only one that hangs in the kernel takes longer
/// than a moment, and then waiting does not help.
const DEATH: Duration = Duration::from_secs(1);

/// Forks; `None` in the child.
///
/// # Errors
///
/// `EAGAIN` at a limit of processes, `ENOMEM`, and `EBUSY` if this process has more threads than
/// one: the child would lack them, and the locks they hold.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // A thread that was joined a moment ago may still be listed.
    let mut patience = 20;
    while fs::read_dir("/proc/self/task").map_or(1, Iterator::count) > 1 {
        if patience == 0 {
            return Err(Errno::BUSY.into());
        }
        patience -= 1;
        thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: this process has one thread, so the child has all there is of it: no lock is held
    // and no invariant half-way by a thread that it lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Makes orphaned descendants our children, so that we are told of them, and takes back the
/// default of SIGCHLD, without which the kernel keeps no exit status.
pub(super) fn become_subreaper() -> io::Result<()> {
    // SAFETY: SIG_DFL installs no code of ours, and no other thread is changing dispositions.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    Ok(rustix::process::set_child_subreaper(Some(
        rustix::process::getpid(),
    ))?)
}

/// Kills all children, and the orphans that become our children thereby, and reaps them. The one
/// called `spared` is left alone.
pub(super) fn kill_all_children(spared: Option<Pid>) {
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
            .filter(|&c| Some(c) != spared)
            .collect();
        if doomed.is_empty() {
            return;
        }
        for child in doomed {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        if started.elapsed() > DEATH {
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
    fn descendants_are_known() {
        let mut shell = Command::new("sh")
            // A shell gives what runs in the background no input, and `cat` would end at once.
            .args(["-c", "exec 3<&0; cat <&3 & echo $!; wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = io::BufReader::new(shell.stdout.take().unwrap());
        io::BufRead::read_line(&mut out, &mut line).unwrap();
        let grandchild = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        assert!(is_descendant(grandchild));
        assert!(!is_descendant(rustix::process::getpid()));
        assert!(!is_descendant(Pid::INIT));
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }
}
