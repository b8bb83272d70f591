//! What a person is told who has written a command line that cannot be read.
//!
//! clap names the word that is wrong. Beside it stands here what people mean who write it: an option
//! of another command, or one of Docker's and podman's that is about images, files or rights, of which
//! cnet has none. The first paragraph says what is wrong and what to do, in one line.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use super::Cli;

/// How many commands are named that have an option.
const NAMED: usize = 3;

/// What cnet leaves to others, by the options of `docker run` that are about it.
const NOT_OURS: [(&[&str], &str); 5] = [
    (
        &[
            "--volume",
            "--mount",
            "--tmpfs",
            "--volumes-from",
            "--read-only",
            "--device",
        ],
        "there are no volumes: the command sees the host's files as they are (bwrap(1) mounts others)",
    ),
    (
        &[
            "--entrypoint",
            "--pull",
            "--platform",
            "--image",
            "--env-file",
            "--restart",
            "--init",
        ],
        "there are no images: the command is a program of this host (podman and docker run images on cnet, see docs/runtimes.md)",
    ),
    (
        &[
            "--memory",
            "-m",
            "--cpus",
            "--cpu-shares",
            "--pids-limit",
            "--ulimit",
            "--cgroup-parent",
        ],
        "it sets no limits; `systemd-run --user --scope -p MemoryMax=1G cnet run …` does",
    ),
    (
        &[
            "--privileged",
            "--cap-add",
            "--cap-drop",
            "--security-opt",
            "--user",
            "-u",
            "--userns",
            "--group-add",
        ],
        "the command keeps the rights of the user who starts it (see --keep-uid and --map-users)",
    ),
    (
        &["--pid", "--ipc", "--uts", "--cgroupns"],
        "it decides about the network alone; the command has a PID namespace in any case",
    ),
];

/// What people mean by commands that are Docker's, podman's or kubectl's.
const OTHER_COMMANDS: [(&[&str], &str); 5] = [
    (
        &[
            "images", "image", "pull", "push", "build", "commit", "login", "logout", "save",
            "load", "import", "tag",
        ],
        "there are no images: `cnet run -- CMD` runs a program of this host, and podman and docker run images on cnet (docs/runtimes.md)",
    ),
    (
        &["volume", "cp", "mount", "diff"],
        "there are no volumes: a command of `cnet run` sees the host's files",
    ),
    (
        &[
            "start", "restart", "create", "pause", "unpause", "wait", "update",
        ],
        "a container is there while its command runs: `cnet run` starts one, `cnet stop` ends it; for a network there is `cnet network restart`",
    ),
    (
        &["connect", "disconnect", "ls", "list", "create-network"],
        "networks are under `cnet network`, containers under `cnet ps`",
    ),
    (
        &["info", "system", "version", "check"],
        "`cnet doctor` tells what this host offers, `cnet --version` the version",
    ),
];

/// What is wrong with the command line `words`, of which clap says `error`: the text to print.
pub(super) fn explain(error: &clap::Error, words: &[OsString]) -> String {
    let mut root = Cli::command();
    root.build();
    let (command, path) = spoken_to(&root, words);
    let own = match error.kind() {
        ErrorKind::UnknownArgument => unknown_argument(error, &root, command, &path),
        ErrorKind::InvalidSubcommand => unknown_command(error, &path),
        ErrorKind::MissingRequiredArgument => missing(error, &path),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => invalid_value(error),
        ErrorKind::ArgumentConflict => conflict(error),
        _ => None,
    };
    let Some(text) = own else {
        let rendered = error.render().to_string();
        let text = rendered.strip_prefix("error: ").unwrap_or(&rendered);
        return match error.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => text.to_owned(),
            _ => format!("cnet: {text}"),
        };
    };
    format!("cnet: {text}\n\n`{path} --help` lists what there is.\n")
}

/// The subcommand that `words` speak to, and its words.
fn spoken_to<'a>(root: &'a Command, words: &[OsString]) -> (&'a Command, String) {
    let (mut command, mut path) = (root, "cnet".to_owned());
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        if word.starts_with('-') {
            break;
        }
        let Some(next) = command.find_subcommand(word) else {
            break;
        };
        command = next;
        path = format!("{path} {}", next.get_name());
    }
    (command, path)
}

fn text_of(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => Some(texts.join(", ")),
        _ => None,
    }
}

fn unknown_argument(
    error: &clap::Error,
    root: &Command,
    command: &Command,
    path: &str,
) -> Option<String> {
    let written = text_of(error, ContextKind::InvalidArg)?;
    let option = written.split('=').next().unwrap_or_default();
    if !option.starts_with('-') {
        let meant = match path {
            "cnet ps" => "; `cnet inspect NAME` shows one container",
            _ => "",
        };
        return Some(format!("`{path}` takes no `{written}`{meant}"));
    }
    let is_run = command.get_name() == "run";
    let other = NOT_OURS
        .iter()
        .find(|(options, _)| options.contains(&option));
    if let Some((_, why)) = other.filter(|_| is_run) {
        return Some(format!("`cnet run` has no {option}: {why}"));
    }
    let owners = owners(root, option, "cnet");
    if !owners.is_empty() {
        let owners = owners.join("`, `");
        return Some(format!(
            "{option} is no option of `{path}`, but of `{owners}`"
        ));
    }
    let meant = text_of(error, ContextKind::SuggestedArg).or_else(|| nearest(command, option));
    Some(match (meant, is_run) {
        (Some(meant), _) => format!("`{path}` has no option {option}; is {meant} meant?"),
        (None, true) => format!(
            "`cnet run` has no option {option}; options of the command itself stand behind it, as in `cnet run -- CMD {option}`"
        ),
        (None, false) => format!("`{path}` has no option {option}"),
    })
}

/// The option of the command whose name is the first that begins as `option` does.
fn nearest(command: &Command, option: &str) -> Option<String> {
    let begin = option.get(..6)?;
    let longs = command.get_arguments().filter_map(clap::Arg::get_long);
    let mut longs = longs.map(|long| format!("--{long}"));
    longs.find(|long| long.starts_with(begin))
}

/// The commands that have this long option.
fn owners(command: &Command, option: &str, path: &str) -> Vec<String> {
    let Some(long) = option.strip_prefix("--") else {
        return Vec::new();
    };
    let mut owners = Vec::new();
    for next in command.get_subcommands().filter(|next| !next.is_hide_set()) {
        let path = format!("{path} {}", next.get_name());
        let has = |arg: &clap::Arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(long) || aliases.contains(&long)
        };
        if next.get_arguments().any(has) {
            owners.push(path.clone());
        }
        owners.extend(self::owners(next, option, &path));
    }
    owners.truncate(NAMED);
    owners
}

fn unknown_command(error: &clap::Error, path: &str) -> Option<String> {
    let word = text_of(error, ContextKind::InvalidSubcommand)?;
    let other = OTHER_COMMANDS
        .iter()
        .find(|(words, _)| path == "cnet" && words.contains(&word.as_str()));
    if let Some((_, why)) = other {
        return Some(format!("there is no command `{path} {word}`: {why}"));
    }
    // The likeliest is the last.
    let meant = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(texts)) => texts.last().cloned(),
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    Some(match meant {
        Some(meant) => format!("there is no command `{path} {word}`; is `{path} {meant}` meant?"),
        None => format!("there is no command `{path} {word}`"),
    })
}

fn missing(error: &clap::Error, path: &str) -> Option<String> {
    let missing = text_of(error, ContextKind::InvalidArg)?;
    Some(match (path, missing.contains("<CMD>")) {
        ("cnet run", true) => {
            "`cnet run` needs a command, as in `cnet run -- curl -sI https://example.org`"
                .to_owned()
        }
        _ => format!("`{path}` needs {missing}"),
    })
}

fn invalid_value(error: &clap::Error) -> Option<String> {
    let argument = text_of(error, ContextKind::InvalidArg)?;
    let value = text_of(error, ContextKind::InvalidValue)?;
    let why = match std::error::Error::source(error) {
        Some(source) => plainly(&source.to_string()),
        None => {
            let values = text_of(error, ContextKind::ValidValue)?;
            format!("it is one of {values}")
        }
    };
    let option = match bare(&argument) {
        "" => argument.as_str(),
        option => option,
    };
    match value.as_str() {
        "" => Some(format!("{option} needs a value: {why}")),
        value => Some(format!("{option} {value}: {why}")),
    }
}

fn conflict(error: &clap::Error) -> Option<String> {
    let (one, other) = (
        text_of(error, ContextKind::InvalidArg)?,
        text_of(error, ContextKind::PriorArg)?,
    );
    let (one, other) = (bare(&one), bare(&other));
    let of_network = [one, other].contains(&"--network");
    let why = match of_network {
        true => ": a network has its own for all its containers (`cnet network create --help`)",
        false => "",
    };
    Some(format!("{one} cannot be used with {other}{why}"))
}

/// An option without the name of its value.
fn bare(argument: &str) -> &str {
    argument
        .split(" <")
        .next()
        .unwrap_or(argument)
        .trim_start_matches('<')
}

/// Without the terms of the programming language that values are read by.
fn plainly(text: &str) -> String {
    let told = [
        ("invalid digit found in string", "it is a whole number"),
        (
            "cannot parse integer from empty string",
            "it is a whole number",
        ),
        (
            "number too large to fit in target type",
            "the number is too large",
        ),
        (
            "invalid IPv4 address syntax",
            "it is an address such as 10.88.0.7",
        ),
        (
            "invalid IPv6 address syntax",
            "it is an address such as fd00::7",
        ),
        (
            "invalid IP address syntax",
            "it is an address such as 10.88.0.1 or fd00::1",
        ),
    ];
    if let Some((_, plain)) = told.iter().find(|(term, _)| text == *term) {
        return (*plain).to_owned();
    }
    let range = text.split_once(" is not in ").map(|(_, range)| range);
    match range.and_then(|range| range.split_once("..=")) {
        Some(("", last)) => format!("it is a number up to {last}"),
        Some((first, last)) => format!("it is a number from {first} to {last}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn said(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(&words).expect_err("a mistake");
        let text = explain(&error, &words);
        text.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn an_option_of_another_command_is_told_with_its_command() {
        for line in ["cnet run --internal -- true", "cnet attach --internal 1"] {
            let text = said(line);
            assert!(text.contains("but of `cnet network create`"), "{text}");
        }
        assert!(said("cnet ps --netwrok x").contains("is --network meant?"));
    }

    #[test]
    fn what_is_docker_s_alone_is_told_with_what_there_is_instead() {
        assert!(said("cnet run --volume /a:/b true").contains("no volumes"));
        assert!(said("cnet run --entrypoint=x true").contains("no images"));
        assert!(said("cnet pull alpine").contains("no images"));
        assert!(said("cnet run --memory 1g true").contains("systemd-run"));
    }

    #[test]
    fn numbers_are_explained_without_terms_of_a_language() {
        assert!(said("cnet run --workers x true").ends_with("it is a whole number"));
        let text = said("cnet run --workers 0 true");
        assert!(text.ends_with(": it is a number from 1 to 64"), "{text}");
    }
}
