//! What the programs say to wrong inputs that need no network: command, exit code and message, as
//! `wrong_inputs.txt` has them. Of a message its first paragraph counts. Exit codes: `cnet run` 125 for its own failures, `cnet` 2 for a command line that it cannot
//! read and 1 for what failed, `cnet-slirp` 1 for everything.

use std::process::{Command, Stdio};

const GOLDEN: &str = include_str!("wrong_inputs.txt");

/// What `line` says, in the form of the golden file.
fn said(line: &str, empty: &std::path::Path) -> String {
    let mut words = line.split_whitespace();
    let program = match words.next() {
        Some("cnet-slirp") => env!("CARGO_BIN_EXE_cnet-slirp"),
        _ => env!("CARGO_BIN_EXE_cnet"),
    };
    let output = Command::new(program)
        .args(words)
        .env_clear()
        .env("HOME", empty)
        .env("XDG_CONFIG_HOME", empty)
        .env("XDG_RUNTIME_DIR", empty)
        .stdin(Stdio::null())
        .output()
        .expect("the program");
    let stderr = String::from_utf8_lossy(&output.stderr).replace(program, "cnet-slirp");
    let message: Vec<&str> = stderr.lines().take_while(|line| !line.is_empty()).collect();
    let code = output.status.code().expect("an exit code");
    format!("$ {line}\n{}\n= {code}\n", message.join("\n"))
}

#[test]
fn each_is_answered_with_a_message_that_says_what_to_do() {
    let empty = tempfile::tempdir().expect("a directory");
    let inputs = GOLDEN.lines().filter_map(|line| line.strip_prefix("$ "));
    let all: Vec<String> = inputs.map(|line| said(line, empty.path())).collect();
    let all = all.join("\n");
    if std::env::var_os("CNET_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wrong_inputs.txt");
        std::fs::write(path, &all).expect("the golden file");
        return;
    }
    assert_eq!(all, GOLDEN, "CNET_WRITE_GOLDEN=1 writes it again");
}
