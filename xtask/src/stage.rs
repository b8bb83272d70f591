//! One stage of a script: a command line under a heading, a time limit, and an outcome.
//!
//! A stage that runs out of time is ended with everything it started: its descendants are found
//! through `/proc` and killed by process id. They share the terminal's process group, so Ctrl-C
//! still reaches them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

/// What became of a stage.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Every command of it succeeded.
    Passed,
    /// What could be checked is in order. What could not be, and why, is given.
    Partly(String),
    /// It failed or could not run, for the reason given.
    Failed(String),
}

/// Runs `command` to its end, or to the end of `limit`, with nothing on its standard input.
pub fn run(command: &mut Command, limit: Duration) -> anyhow::Result<Outcome> {
    println!("$ {}", display(command));
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match status.success() {
                true => Outcome::Passed,
                false => Outcome::Failed(status.to_string()),
            });
        }
        if Instant::now() >= deadline {
            kill_tree(child.id());
            child.wait()?;
            return Ok(Outcome::Failed(format!(
                "not finished after {} s",
                limit.as_secs()
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The command as a person would type it, the variables set for it first.
fn display(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy();
        Some(format!("{}='{value}'", name.to_string_lossy()))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| word.to_string_lossy().into_owned());
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

/// Kills a process and its descendants. Each is stopped before its children are listed, so that
/// none can be born meanwhile.
fn kill_tree(pid: u32) {
    signal(pid, "STOP");
    for child in children(pid) {
        kill_tree(child);
    }
    signal(pid, "KILL");
}

/// Sends a signal with the shell's own `kill`, which is there on every machine.
fn signal(pid: u32, name: &str) {
    let script = format!("kill -{name} {pid}");
    // A process that has ended meanwhile is no failure.
    let _ = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .status();
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let Ok(tasks) = fs::read_dir(tasks) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_fails_its_stage() {
        let limit = Duration::from_secs(20);
        let outcome = run(Command::new("sh").args(["-c", "exit 3"]), limit).unwrap();
        assert_eq!(outcome, Outcome::Failed("exit status: 3".to_owned()));
        let outcome = run(Command::new("sh").args(["-c", "exit 0"]), limit).unwrap();
        assert_eq!(outcome, Outcome::Passed);
    }

    #[test]
    fn a_command_out_of_time_is_ended_with_its_children() {
        let file = std::env::temp_dir().join(format!("cnet-xtask-{}", std::process::id()));
        let script = format!("sleep 60 & echo $! >{}; wait", file.display());
        let started = Instant::now();
        let limit = Duration::from_millis(500);
        let outcome = run(Command::new("sh").args(["-c", &script]), limit).unwrap();
        assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        assert!(started.elapsed() < Duration::from_secs(20));
        let child = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let command = fs::read_to_string(format!("/proc/{}/cmdline", child.trim()));
        assert!(!command.unwrap_or_default().starts_with("sleep"));
    }
}
