//! The files about names that a command has for itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::lab::run::{Options, SHORT};

/// An `/etc` of the host's that a test may change.
fn etc(lab: &Lab) -> PathBuf {
    let etc = lab.directory().join("etc");
    fs::create_dir_all(etc.join("ssl/certs")).expect("a directory");
    let files = [
        ("nsswitch.conf", "hosts: files dns\n"),
        ("hosts", "127.0.0.1 localhost\n"),
        (
            "resolv.conf",
            "nameserver 192.0.2.1\nsearch lan\noptions ndots:3\n",
        ),
        ("old", "old\n"),
        ("ssl/file", "in ssl\n"),
    ];
    for (name, text) in files {
        fs::write(etc.join(name), text).expect("a file");
    }
    symlink("../../ssl/file", etc.join("ssl/certs/link")).expect("a link");
    symlink("../proc/self/mounts", etc.join("mtab")).expect("a link");
    etc
}

fn users(etc: &Path) -> [Options; 2] {
    [Options::default(), Options::ordinary_user()].map(|user| Options {
        etc: Some(etc.to_owned()),
        ..user
    })
}

fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("a file");
    fs::rename(new, file).expect("the file is replaced");
}

/// The kernel takes a mount off a file that is renamed over, in all namespaces.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_command_keeps_its_resolv_conf_whatever_the_host_renames() {
    let lab = Lab::direct();
    let etc = etc(&lab);
    // It waits for what the host does to another file, which it sees.
    let script = "cat /etc/resolv.conf; until grep -q new /etc/old; do sleep 0.02; done; \
                  echo after; cat /etc/resolv.conf /etc/ssl/certs/link; \
                  grep -c . /etc/mtab >/dev/null && echo mtab";
    for options in users(&etc) {
        replace(&etc.join("old"), "old\n");
        let mut process = options.shell(&lab, script).spawn();
        process.wait_for_line(SHORT, |line| line.starts_with("options"));
        let host = etc.join("resolv.conf");
        replace(&host, "nameserver 192.0.2.2\n");
        fs::remove_file(&host).expect("there is one");
        symlink("/run/nowhere", &host).expect("a link");
        replace(&etc.join("old"), "new\n");
        process.wait_for_line(SHORT, |line| line == "mtab");
        let text = process.stdout();
        let (before, after) = text.split_once("after\n").expect("both");
        assert!(
            before.contains("nameserver 10.") && before.contains("ndots:0"),
            "{text}"
        );
        assert_eq!(after, format!("{before}in ssl\nmtab\n"));
        fs::remove_file(&host).expect("there is one");
        fs::write(&host, "nameserver 192.0.2.1\nsearch lan\n").expect("a file");
    }
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_command_has_a_resolv_conf_where_the_host_has_none() {
    let lab = Lab::direct();
    let etc = etc(&lab);
    fs::remove_file(etc.join("resolv.conf")).expect("there is one");
    for options in users(&etc) {
        let done = options.shell(&lab, "cat /etc/resolv.conf").run(SHORT);
        assert!(done.success(), "{done}");
        assert!(done.stdout.contains("nameserver 10."), "{done}");
    }
    assert!(!etc.join("resolv.conf").exists());
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn names_of_the_commands_own_stand_in_its_files_and_not_in_the_hosts() {
    let lab = Lab::direct();
    let etc = etc(&lab);
    for user in users(&etc) {
        let arguments = "--hostname box --add-host db:192.0.2.7 --add-host six:2001:db8::7 \
                         --add-host gw:host-gateway --dns-search corp.example \
                         --dns-option ndots:2 --subnet 10.77.0.0/24";
        let options = Options {
            arguments: arguments.to_owned(),
            ..user
        };
        let script = "hostname; cat /etc/hostname; cat /etc/resolv.conf; \
                      getent hosts db six gw box; echo end >>/etc/resolv.conf; \
                      tail -n 1 /etc/resolv.conf; touch /etc/lost";
        let done = options.shell(&lab, script).run(SHORT);
        let words: Vec<&str> = done.stdout.split_whitespace().collect();
        let expected = "box box # made by cnet run nameserver 10.77.0.3 search corp.example \
                        options ndots:2 192.0.2.7 db 2001:db8::7 six 10.77.0.2 gw \
                        10.77.0.100 box end";
        let expected: Vec<&str> = expected.split_whitespace().collect();
        assert_eq!(words, expected, "{done}");
        assert!(done.stderr.contains("Read-only"), "{done}");
    }
    let own = fs::read_to_string(etc.join("hosts")).expect("the host's");
    assert_eq!(own, "127.0.0.1 localhost\n");
    assert!(!etc.join("lost").exists());
    lab.assert_nothing_left(&[], SHORT);
}
