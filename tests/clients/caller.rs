//! An ordinary user with subordinate ids, in whose name the callers run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::container::program;
use crate::lab::process::Launch;
use crate::lab::{Lab, ORDINARY_USER};

/// Whether the machine has all of `names`; says so where it has not.
pub fn has(names: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut directories: Vec<&str> = path.split(':').collect();
    directories.extend(["/usr/sbin", "/usr/bin"]);
    let found = |name: &&&str| {
        directories
            .iter()
            .any(|d| Path::new(d).join(name).is_file())
    };
    let missing: Vec<&&str> = names.iter().filter(|name| !found(name)).collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: not installed here: {missing:?}");
    }
    missing.is_empty()
}

/// The user's home, and what the machine's `/etc` says of the user.
pub struct Caller<'lab> {
    lab: &'lab Lab,
    etc: PathBuf,
    /// A directory of the user's own.
    pub home: PathBuf,
    /// A copy of the program under test that the user may run, named slirp4netns.
    pub slirp: PathBuf,
}

impl<'lab> Caller<'lab> {
    pub fn new(lab: &'lab Lab) -> Caller<'lab> {
        let etc = lab.directory().join("etc");
        let copied = Launch::new("cp").args(["-a", "/etc"]).arg(&etc);
        let copied = copied.run(std::time::Duration::from_secs(20));
        assert!(copied.success(), "{copied}");
        let home = lab.private_directory("home", ORDINARY_USER);
        let user = ORDINARY_USER;
        let shown = home.display();
        for (file, line) in [
            (
                "passwd",
                format!("caller:x:{user}:{user}::{shown}:/bin/sh\n"),
            ),
            ("group", format!("caller:x:{user}:\n")),
            ("subuid", "caller:300000:65536\n".to_owned()),
            ("subgid", "caller:300000:65536\n".to_owned()),
        ] {
            let path = etc.join(file);
            let before = fs::read_to_string(&path).unwrap_or_default();
            fs::write(&path, before + &line).expect("a copy of our own");
        }
        let slirp = lab.directory().join("slirp4netns");
        fs::copy(program(), &slirp).expect("a copy of the program");
        Caller {
            lab,
            etc,
            home,
            slirp,
        }
    }

    /// A script of the user's; `$SLIRP` is the program under test.
    pub fn script(&self, text: &str) -> Launch {
        let shell = Launch::new("sh").user(ORDINARY_USER, &self.home);
        self.lab
            .mark(shell)
            .etc(&self.etc)
            .tun_mode(0o666)
            .env("XDG_RUNTIME_DIR", &self.home)
            .env("USER", "caller")
            .env("SLIRP", &self.slirp)
            .args(["-c", &format!("cd && {text}")])
    }
}
