//! What becomes of results that cannot be written: a reader that has ended is no mistake, a full disk
//! is one.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn cnet(words: &str, empty: &Path, out: Stdio) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cnet"))
        .args(words.split_whitespace())
        .env_clear()
        .env("HOME", empty)
        .env("XDG_CONFIG_HOME", empty)
        .env("XDG_RUNTIME_DIR", empty)
        .stdout(out)
        .output()
        .expect("the program")
}

const COMMANDS: [&str; 5] = [
    "network ls",
    "network inspect cnet",
    "ps",
    "--help",
    "run --help",
];

#[test]
fn a_reader_that_has_ended_is_no_mistake() {
    let empty = tempfile::tempdir().expect("a directory");
    for words in COMMANDS {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let done = cnet(words, empty.path(), writer.into());
        assert!(done.status.success(), "{words}: {done:?}");
        assert!(done.stderr.is_empty(), "{words}: {done:?}");
    }
}

#[test]
fn a_full_disk_is_told() {
    let empty = tempfile::tempdir().expect("a directory");
    for words in COMMANDS {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("a device");
        let done = cnet(words, empty.path(), full.into());
        assert_eq!(done.status.code(), Some(1), "{words}: {done:?}");
        let told = "cnet: cannot write to standard output: No space left on device\n";
        assert_eq!(String::from_utf8_lossy(&done.stderr), told, "{words}");
    }
}
