//! The plug-ins of engines, called as engines call them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::lab::Lab;
use crate::lab::place::Place;
use crate::lab::process::{Finished, Launch};

mod cni;
mod netavark;

/// For one step of one container.
const STEP: Duration = Duration::from_secs(20);

/// A network namespace that is known by a path, as engines make it.
struct Netns<'a> {
    lab: &'a Lab,
    path: PathBuf,
}

impl<'a> Netns<'a> {
    fn create(lab: &'a Lab, name: &str) -> Self {
        let path = lab.directory().join(name);
        fs::write(&path, "").expect("a file of our own");
        let option = format!("--net={}", path.display());
        let unshare = lab.command("unshare").arg(option);
        let made = unshare.args(["ip", "link", "set", "lo", "up"]).run(STEP);
        assert!(made.success(), "{made}");
        Self { lab, path }
    }

    /// A program inside, with the program's search for names at `gateway`.
    fn run(&self, command: &str) -> Finished {
        let option = format!("--net={}", self.path.display());
        let inside = self.lab.command("nsenter").arg(option);
        inside.args(["sh", "-c", command]).run(STEP)
    }

    fn assert_reaches(&self, address: &str) {
        let done = self.run(&format!("ping -n -c 1 -i 0.2 -w 2 {address}"));
        assert!(done.success(), "{}: {done}", self.path.display());
    }
}

impl Drop for Netns<'_> {
    fn drop(&mut self) {
        self.lab
            .command("umount")
            .arg("-l")
            .arg(&self.path)
            .run(STEP);
    }
}

fn json(done: &Finished) -> Value {
    let read = serde_json::from_str(&done.stdout);
    read.unwrap_or_else(|error| panic!("{error}: {done}"))
}

/// A plug-in of this project's, started by an engine of root's.
fn plugin(place: &Place<'_>, name: &str) -> Launch {
    place.program(name)
}
