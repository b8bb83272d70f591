//! Which users there are in the command's user namespace.
//!
//! | | inside | needs |
//! |---|---|---|
//! | the default, where both are there | root is the user; 1, 2, … are the user's ranges | `/etc/subuid`, `/etc/subgid`, newuidmap(1), newgidmap(1) |
//! | the default elsewhere | root is the user, and there is no other | nothing |
//! | `--map-users` | as the first, or an error | as the first |
//! | `--keep-uid` | the user has the number that it has outside, without rights | nothing; the ranges are around it where they are there |
//!
//! With one user alone, programs that change to another one fail: `su nobody`, `tcpdump`, `apt-get`.
//!
//! Only a privileged program may map ranges (user_namespaces(7)), and only from outside the namespace:
//! newuidmap and newgidmap are, and a process that is forked before the namespace is made runs them.
//!
//! Sources: user_namespaces(7), subuid(5), newuidmap(1).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;

use anyhow::bail;
use cnet_tap::fork::spawn;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, WaitOptions, getegid, geteuid, getpid, waitpid};

use super::args::RunOptions;

/// The longest error of a program that is told.
const MAX_ERROR: usize = 4096;

/// Whether the user has ranges, and the programs to map them are there.
pub(crate) fn subordinate_ranges() -> (bool, bool) {
    let user = geteuid().as_raw();
    let name = user_name(&read("/etc/passwd"), user);
    let files = ["/etc/subuid", "/etc/subgid"];
    let has = |file: &&str| !ranges(&read(file), name.as_deref(), user).is_empty();
    (files.iter().all(has), has_programs())
}

/// Lines of a map: the first number inside, the first outside, and how many.
type Map = Vec<[u32; 3]>;

/// The maps of users and groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct IdMaps {
    users: Map,
    groups: Map,
    /// Whether there is nothing less to be content with.
    required: bool,
    /// The user and the group: inside, and outside.
    own: [(u32, u32); 2],
}

/// Why there is no map.
pub(crate) enum MapError {
    /// The kernel refuses one user.
    Kernel(io::Error),
    /// What newuidmap or newgidmap said.
    Programs(String),
}

/// The process that has the ranges mapped.
pub(crate) struct Mapper(Pid, OwnedFd);

impl IdMaps {
    /// The user as root, and no other.
    pub(crate) fn root_alone() -> IdMaps {
        IdMaps {
            users: Map::new(),
            groups: Map::new(),
            required: false,
            own: [(0, geteuid().as_raw()), (0, getegid().as_raw())],
        }
    }

    /// What the options ask for, and this host offers.
    ///
    /// # Errors
    ///
    /// `--map-users` where there are no ranges.
    pub(super) fn choose(options: &RunOptions) -> anyhow::Result<IdMaps> {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        let name = user_name(&read("/etc/passwd"), user);
        let users = ranges(&read("/etc/subuid"), name.as_deref(), user);
        let groups = ranges(&read("/etc/subgid"), name.as_deref(), user);
        let programs = has_programs();
        if options.map_users && user != 0 {
            if users.is_empty() || groups.is_empty() {
                bail!(
                    "--map-users needs ranges of this user in /etc/subuid and /etc/subgid; as root, run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}`",
                    name.as_deref().unwrap_or("USER")
                );
            }
            if !programs {
                bail!(
                    "--map-users needs newuidmap and newgidmap; install them (Debian: `apt-get install uidmap`)"
                );
            }
        }
        let inside = |number| if options.keep_uid { number } else { 0 };
        let own = [(inside(user), user), (inside(group), group)];
        let there = programs && !users.is_empty() && !groups.is_empty();
        let (users, groups) = match there {
            true => (around(own[0], &users), around(own[1], &groups)),
            false => (Map::new(), Map::new()),
        };
        Ok(IdMaps {
            users,
            groups,
            required: options.map_users,
            own,
        })
    }

    /// Forks what maps ranges, if there are any. To be called before the namespace is made.
    ///
    /// # Errors
    ///
    /// At a limit of processes.
    pub(super) fn mapper(&self) -> anyhow::Result<Option<Mapper>> {
        if self.users.is_empty() {
            return Ok(None);
        }
        let target = getpid().as_raw_nonzero().get();
        let (pid, socket) = spawn("cannot fork the process that maps users", |_, socket| {
            let mut byte = [0];
            if !matches!(
                rustix::net::recv(&socket, &mut byte, RecvFlags::empty()),
                Ok((_, 1))
            ) {
                return 1;
            }
            let done = map_by("newuidmap", target, &self.users)
                .and_then(|()| map_by("newgidmap", target, &self.groups));
            let text = done.err().unwrap_or_default();
            let text = &text.as_bytes()[..text.len().min(MAX_ERROR)];
            let text = if text.is_empty() {
                b".".as_slice()
            } else {
                text
            };
            u8::from(rustix::net::send(&socket, text, SendFlags::NOSIGNAL).is_err())
        })?;
        Ok(Some(Mapper(pid, socket)))
    }

    /// Maps the users of the namespace that this process has made: by `mapper`, or itself alone.
    pub(super) fn write(&self, mapper: Option<Mapper>) -> Result<(), MapError> {
        if let Some(mapper) = mapper {
            match mapper.map() {
                Ok(()) => return Ok(()),
                Err(text) if self.required => return Err(MapError::Programs(text)),
                Err(text) => tracing::info!("the command has no users but root: {text}"),
            }
        }
        // A group may be mapped only by a process that cannot drop groups (user_namespaces(7)). The
        // file is missing before Linux 3.19, which had no such rule.
        match fs::write("/proc/self/setgroups", "deny") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(MapError::Kernel(error));
            }
            _ => {}
        }
        let line = |(inside, outside)| format!("{inside} {outside} 1");
        fs::write("/proc/self/gid_map", line(self.own[1]))
            .and_then(|()| fs::write("/proc/self/uid_map", line(self.own[0])))
            .map_err(MapError::Kernel)
    }
}

impl Mapper {
    /// Has the namespace mapped that its parent is in now.
    fn map(self) -> Result<(), String> {
        let Mapper(pid, socket) = self;
        let mut answer = [0; MAX_ERROR];
        let heard = rustix::net::send(&socket, b"m", SendFlags::NOSIGNAL)
            .and_then(|_| rustix::net::recv(&socket, &mut answer, RecvFlags::empty()));
        // It ends at once.
        let _ = waitpid(Some(pid), WaitOptions::empty());
        match heard {
            Ok((_, 1)) => Ok(()),
            Ok((_, length @ 2..)) => Err(String::from_utf8_lossy(&answer[..length]).into_owned()),
            Ok(_) => Err("the process that maps users has ended".to_owned()),
            Err(error) => Err(io::Error::from(error).to_string()),
        }
    }
}

/// Has `program` write `map` for the process `target`.
fn map_by(program: &str, target: i32, map: &Map) -> Result<(), String> {
    let numbers = map.iter().flatten().map(u32::to_string);
    let done = Command::new(program)
        .arg(target.to_string())
        .args(numbers)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
    }
}

/// A map of all `ranges` (first and count) in which `own` (inside and outside) has its place.
fn around(own: (u32, u32), ranges: &[(u32, u32)]) -> Map {
    let (inside, outside) = own;
    let mut map = Map::new();
    let mut next = 0;
    for &(first, count) in ranges {
        let (mut first, mut count) = (first, count);
        while count > 0 {
            if next == inside {
                map.push([inside, outside, 1]);
                next += 1;
            }
            let room = if next < inside {
                inside - next
            } else {
                u32::MAX - next
            };
            let taken = count.min(room);
            if taken == 0 {
                break;
            }
            map.push([next, first, taken]);
            (next, first, count) = (next + taken, first + taken, count - taken);
        }
    }
    if next <= inside {
        map.push([inside, outside, 1]);
    }
    map
}

/// The ranges of a user, by name or number, in the text of `/etc/subuid` (subuid(5)).
fn ranges(text: &str, name: Option<&str>, number: u32) -> Vec<(u32, u32)> {
    let number = number.to_string();
    let lines = text.lines().filter_map(|line| {
        let mut words = line.trim().split(':');
        let whose = words.next()?;
        let (first, count) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        (Some(whose) == name || whose == number).then_some((first, count))
    });
    lines.collect()
}

/// The name of a user in the text of `/etc/passwd` (passwd(5)).
fn user_name(passwd: &str, number: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut words = line.split(':');
        let (name, _, uid) = (words.next()?, words.next()?, words.next()?);
        (uid.parse() == Ok(number)).then(|| name.to_owned())
    })
}

/// A file that is missing has no lines.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn has_programs() -> bool {
    ["newuidmap", "newgidmap"]
        .iter()
        .all(|name| is_program(name))
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        let name = user_name(passwd, 1000);
        assert_eq!(name.as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 7), None);
        let text = "# a comment\nann:100000:65536\nbob:165536:65536\n1000:300000:10\nann:x:1\n";
        let own = ranges(text, name.as_deref(), 1000);
        assert_eq!(own, [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ranges(text, None, 7), []);
    }

    #[test]
    fn root_or_the_user_has_its_place_among_the_ranges() {
        let ranges = [(100_000, 1500), (300_000, 10)];
        let root = around((0, 1000), &ranges);
        assert_eq!(
            root,
            [[0, 1000, 1], [1, 100_000, 1500], [1501, 300_000, 10]]
        );
        let kept = around((1000, 1000), &ranges);
        let expected = [
            [0, 100_000, 1000],
            [1000, 1000, 1],
            [1001, 101_000, 500],
            [1501, 300_000, 10],
        ];
        assert_eq!(kept, expected);
        let beyond = around((5000, 5000), &[(100_000, 10)]);
        assert_eq!(beyond, [[0, 100_000, 10], [5000, 5000, 1]]);
    }
}
