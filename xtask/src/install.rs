//! `cargo xtask install [--prefix DIR]`: the programs, their manual pages and what shells complete by.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cargo;

/// The programs, and the names that others know them by.
const PROGRAMS: [(&str, Option<&str>); 4] = [
    ("cnet", None),
    ("cnet-slirp", Some("slirp4netns")),
    ("cnet-cni", None),
    ("cnet-netavark", None),
];

/// Where shells look for completions, and what they call ours.
const COMPLETIONS: [(&str, &str, &str); 3] = [
    ("bash", "share/bash-completion/completions", "cnet"),
    ("zsh", "share/zsh/site-functions", "_cnet"),
    ("fish", "share/fish/vendor_completions.d", "cnet.fish"),
];

/// Builds and installs below `--prefix`, by default `~/.local`, or `/usr/local` for root. With
/// `--links` programs of others that are replaced, such as slirp4netns, are links to ours there.
pub fn run(words: &[&str]) -> anyhow::Result<bool> {
    let (mut prefix, mut links) = (None, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--prefix" => prefix = Some(words.next().context("--prefix needs a directory")?.into()),
            "--links" => links = true,
            other => bail!("unknown option {other}: there are --prefix DIR and --links"),
        }
    }
    let prefix = match prefix {
        Some(prefix) => prefix,
        None => default_prefix()?,
    };
    build()?;
    let built = Path::new(cargo::ROOT)
        .join(target_directory())
        .join("release");
    for (program, other) in PROGRAMS {
        let installed = copy(&built.join(program), &prefix.join("bin"), program)?;
        println!("{}", installed.display());
        if let Some(other) = other.filter(|_| links) {
            link(program, &prefix.join("bin").join(other))?;
        }
    }
    let cnet = built.join("cnet");
    let man = prefix.join("share/man/man1");
    run_program(Command::new(&cnet).arg("man").arg(&man))?;
    println!("{}", man.join("cnet.1").display());
    completions(&cnet, |directory| prefix.join(directory))?;
    Ok(true)
}

/// Builds and puts pages and completions where `cargo deb` takes them from.
pub fn documentation() -> anyhow::Result<bool> {
    build()?;
    let built = Path::new(cargo::ROOT)
        .join(target_directory())
        .join("release");
    let made = Path::new(cargo::ROOT).join("target/documentation");
    run_program(
        Command::new(built.join("cnet"))
            .arg("man")
            .arg(made.join("man")),
    )?;
    let directory = made.join("completions");
    fs::create_dir_all(&directory)?;
    for (shell, name) in [
        ("bash", "cnet.bash"),
        ("zsh", "_cnet"),
        ("fish", "cnet.fish"),
    ] {
        complete(&built.join("cnet"), shell, &directory.join(name))?;
    }
    Ok(true)
}

fn build() -> anyhow::Result<()> {
    run_program(&mut cargo::command(
        "build --release --bins --package cnet-cli",
    ))
}

fn completions(cnet: &Path, place: impl Fn(&str) -> PathBuf) -> anyhow::Result<()> {
    for (shell, directory, name) in COMPLETIONS {
        let directory = place(directory);
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        complete(cnet, shell, &directory.join(name))?;
        println!("{}", directory.join(name).display());
    }
    Ok(())
}

fn complete(cnet: &Path, shell: &str, path: &Path) -> anyhow::Result<()> {
    let made = Command::new(cnet).args(["completion", shell]).output()?;
    if !made.status.success() {
        bail!(
            "cnet completion {shell}: {}",
            String::from_utf8_lossy(&made.stderr)
        );
    }
    fs::write(path, made.stdout).with_context(|| path.display().to_string())
}

/// Copies beside its place first: a program that runs cannot be written to.
fn copy(from: &Path, directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let (beside, to) = (directory.join(format!(".{name}.new")), directory.join(name));
    fs::copy(from, &beside).with_context(|| beside.display().to_string())?;
    fs::rename(&beside, &to).with_context(|| to.display().to_string())?;
    Ok(to)
}

fn link(program: &str, path: &Path) -> anyhow::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_symlink()) {
        bail!("{} is there already, and is no link", path.display());
    }
    let _ = fs::remove_file(path);
    std::os::unix::fs::symlink(program, path).with_context(|| path.display().to_string())?;
    println!("{} -> {program}", path.display());
    Ok(())
}

fn run_program(command: &mut Command) -> anyhow::Result<()> {
    match command
        .status()
        .with_context(|| format!("{command:?}"))?
        .success()
    {
        true => Ok(()),
        false => bail!("{command:?} failed"),
    }
}

fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from)
}

fn default_prefix() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/usr/local".into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set; say --prefix DIR")?;
    Ok(PathBuf::from(home).join(".local"))
}
