//! Children with one thread, and containers to enter.

use std::io::{Read, Write};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use cnet_tap::namespace::{NewNamespaces, unshare};
use rustix::process::{Pid, Signal, WaitOptions};

/// The longest a child may live, in seconds.
const TEST_TIMEOUT_SECS: u32 = 30;

/// Runs `test` in a child process with one thread and fails if it does.
pub fn alone(test: impl FnOnce()) {
    let (mut ours, mut theirs) = std::io::pipe().unwrap();
    let pid = fork(|| {
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(test)) {
            let text = match panic.downcast_ref::<String>() {
                Some(text) => text.as_str(),
                None => panic
                    .downcast_ref::<&str>()
                    .copied()
                    .unwrap_or("a panic of no words"),
            };
            let _ = theirs.write_all(text.as_bytes());
            return 101;
        }
        0
    });
    drop(theirs);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    let (_, status) = rustix::process::waitpid(Some(pid), WaitOptions::empty())
        .unwrap()
        .unwrap();
    assert_eq!(
        (status.exit_status(), text.as_str()),
        (Some(0), ""),
        "{status:?}"
    );
}

/// As [`alone`], in new namespaces in which the child is root.
pub fn in_new_namespaces(test: impl FnOnce()) {
    alone(|| {
        become_container();
        test();
    });
}

/// Forks; the child ends with what `work` gives. It dies with this process, and of old age.
pub fn fork(work: impl FnOnce() -> i32) -> Pid {
    // SAFETY: the child calls nothing that waits for another thread of the parent but the
    // allocator, which glibc and musl make usable after fork(2); it leaves through `_exit`.
    match unsafe { libc::fork() } {
        0 => {
            let tied = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            // SAFETY: alarm(2) takes a number.
            unsafe { libc::alarm(TEST_TIMEOUT_SECS) };
            let code = if tied.is_ok() { work() } else { 102 };
            // SAFETY: _exit(2) takes a number and ends the process.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid).expect("fork"),
    }
}

/// Makes namespaces for this process and maps its user to root.
pub fn become_container() {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    unshare(NewNamespaces {
        pid: false,
        user: true,
        net: true,
        mount: false,
        uts: false,
    })
    .unwrap();
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw())).unwrap();
    std::fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw())).unwrap();
}

/// A process in namespaces of its own, which does nothing. Ends when dropped.
pub struct Container {
    pid: Pid,
}

impl Container {
    pub fn start() -> Container {
        let (mut ready, mut tell) = std::io::pipe().unwrap();
        let pid = fork(|| {
            become_container();
            // The new user namespace brought new credentials, which cleared the first request.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
            tell.write_all(b"1").unwrap();
            std::thread::sleep(Duration::from_secs(TEST_TIMEOUT_SECS.into()));
            0
        });
        drop(tell);
        assert_eq!(
            ready.read(&mut [0]).unwrap(),
            1,
            "the container did not start"
        );
        Container { pid }
    }

    pub fn raw_pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
    }
}

/// Asks `condition` for up to five seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("did not happen: {what}");
}
