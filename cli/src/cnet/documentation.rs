//! `cnet completion` and `cnet man`: what a shell and man(1) read, made of the command line's definition.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// What stands at the end of each page.
const SEE_ALSO: &str = "\
The exit code is 0, 1 for what failed, and 2 for a command line that cannot be read; `cnet run` and `cnet \
exec` have the command's own, 128 and the signal's number if a signal ended it, 126 if it cannot be executed, \
127 if it is not found, and 125 if cnet itself fails.";

/// The options of `cnet completion`.
#[derive(Args, Debug)]
pub(crate) struct CompletionOptions {
    /// The shell.
    shell: Shell,
}

/// The options of `cnet man`.
#[derive(Args, Debug)]
pub(crate) struct ManOptions {
    /// Where the pages are put, a file a command.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Prints what the shell reads.
pub(super) fn completion(options: &CompletionOptions) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "cnet", &mut text);
    super::print_bytes(&text).map(drop)
}

/// Writes the pages of all commands.
pub(super) fn man(options: &ManOptions) -> anyhow::Result<()> {
    fs::create_dir_all(&options.directory)
        .with_context(|| options.directory.display().to_string())?;
    let mut root = Cli::command();
    root.build();
    page(&root, "cnet", &options.directory)
}

/// Writes the page of a command and of those below it.
fn page(command: &Command, name: &str, directory: &Path) -> anyhow::Result<()> {
    let path = directory.join(format!("{name}.1"));
    let failed = || path.display().to_string();
    let mut file = File::create(&path).with_context(failed)?;
    // What it is called lives as long as the program, which ends with the last page.
    let called: &'static str = name.to_owned().leak();
    let described = command.clone().name(called).after_long_help(SEE_ALSO);
    let described = described.disable_help_subcommand(true);
    clap_mangen::Man::new(described)
        .render(&mut file)
        .with_context(failed)?;
    let below = command.get_subcommands();
    let below = below.filter(|next| !next.is_hide_set() && next.get_name() != "help");
    for next in below {
        page(next, &format!("{name}-{}", next.get_name()), directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("man");
        let options = ManOptions {
            directory: directory.clone(),
        };
        man(&options).unwrap();
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        assert!(read("cnet.1").contains("cnet"));
        assert!(read("cnet-run.1").contains("publish"));
        assert!(read("cnet-network-create.1").contains("internal"));
        assert!(read("cnet-run.1").contains("127 if it is not found"));
        assert!(!directory.join("cnet-network-process.1").exists());
    }
}
