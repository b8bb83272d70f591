//! Each call is tried by a child in the filter. Such a child makes system calls and nothing else: it
//! was forked by a process with threads.

use std::collections::BTreeSet;

use super::*;

/// Beyond the last call of any kernel so far.
const NUMBERS: std::ops::Range<i64> = 0..500;

/// `uretprobe` and `uprobe` on x86-64, which the kernel lets pass without a filter: they are made by
/// code that it has put there itself, and end a process that makes them by itself.
const UNFILTERED: [i64; 2] = [335, 336];

/// What became of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// It was made, with whatever result, or waits.
    Made,
    /// ENOSYS.
    Denied,
    /// SIGSYS.
    Killed,
}

/// The child's exit status after ENOSYS, and after any other result.
const DENIED: i32 = 71;
const MADE: i32 = 72;

/// Has a child install the filters and make one call.
fn attempt(programs: &Programs, number: i64, arguments: [i64; 6]) -> Outcome {
    // SAFETY: the child makes system calls on memory that was there before the fork, and ends by
    // _exit(2).
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork failed");
    if child == 0 {
        // SAFETY: as above. The arguments are no pointers to anything of ours, so that a call that
        // is made writes nowhere.
        unsafe {
            // A call that waits is ended by this: the signal's action is the default one.
            libc::alarm(1);
            if install(programs).is_err() {
                libc::_exit(1);
            }
            let [a, b, c, d, e, f] = arguments;
            let result = libc::syscall(number, a, b, c, d, e, f);
            let denied = result == -1 && *libc::__errno_location() == libc::ENOSYS;
            libc::_exit(if denied { DENIED } else { MADE });
        }
    }
    let mut status = 0;
    // SAFETY: the pointer is to an int that lives through the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    if libc::WIFSIGNALED(status) {
        return match libc::WTERMSIG(status) {
            libc::SIGSYS => Outcome::Killed,
            _ => Outcome::Made,
        };
    }
    match libc::WEXITSTATUS(status) {
        DENIED => Outcome::Denied,
        1 => panic!("the filter could not be installed"),
        _ => Outcome::Made,
    }
}

/// Arguments that lead nowhere: as descriptors, as addresses and as lengths.
const NOWHERE: [i64; 6] = [-1; 6];

#[test]
fn every_call_does_what_the_lists_say() {
    for role in Role::LISTED {
        let programs = compile(role).unwrap();
        let allowed: BTreeSet<i64> = calls_of(role).map(|call| call.number).collect();
        let fatal: BTreeSet<i64> = FATAL.iter().map(|(number, _)| *number).collect();
        assert!(allowed.is_disjoint(&fatal));
        for number in NUMBERS.filter(|number| !UNFILTERED.contains(number)) {
            // Of those with filtered arguments other tests speak; a frame of a signal that is none
            // crashes.
            let filtered = calls_of(role)
                .find(|call| call.number == number)
                .is_some_and(|call| call.arguments.is_some());
            if filtered || number == libc::SYS_rt_sigreturn {
                continue;
            }
            let expected = match (fatal.contains(&number), allowed.contains(&number)) {
                (true, _) => Outcome::Killed,
                (_, true) => Outcome::Made,
                (_, false) => Outcome::Denied,
            };
            // The kernel says ENOSYS of an operation that there is not.
            let arguments = match number == libc::SYS_futex {
                true => [0; 6],
                false => NOWHERE,
            };
            let outcome = attempt(&programs, number, arguments);
            assert_eq!(outcome, expected, "{role:?}: call {number}");
        }
    }
}

/// Arguments that are refused, though the call is not, by all processes that read frames.
fn denied(number: libc::c_long, arguments: &[i64]) {
    let mut all = NOWHERE;
    all[..arguments.len()].copy_from_slice(arguments);
    for role in [Role::Network, Role::Private] {
        let outcome = attempt(&compile(role).unwrap(), number, all);
        assert_eq!(outcome, Outcome::Denied, "call {number}: {arguments:?}");
    }
}

#[test]
fn no_sockets_but_those_of_the_internet() {
    for family in [
        libc::AF_UNIX,
        libc::AF_NETLINK,
        libc::AF_PACKET,
        libc::AF_VSOCK,
        libc::AF_ALG,
    ] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW] {
            denied(libc::SYS_socket, &[family.into(), kind.into(), 0]);
        }
    }
    let raw = [libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP];
    denied(libc::SYS_socket, &raw.map(i64::from));
    for (level, option) in [
        (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
        (libc::SOL_SOCKET, libc::SO_MARK),
        (libc::IPPROTO_TCP, libc::TCP_REPAIR),
        (libc::IPPROTO_TCP, libc::TCP_ULP),
        // `IPT_SO_SET_REPLACE` (linux/netfilter_ipv4/ip_tables.h).
        (libc::IPPROTO_IP, 64),
    ] {
        let arguments = [0, level.into(), option.into(), 0, 0];
        denied(libc::SYS_setsockopt, &arguments);
    }
}

#[test]
fn no_processes_and_no_code() {
    denied(libc::SYS_clone, &[libc::SIGCHLD.into(), 0]);
    let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
    let in_namespace = thread | libc::CLONE_NEWUSER;
    denied(libc::SYS_clone, &[in_namespace.into(), 0]);
    denied(libc::SYS_clone3, &[0, 0]);
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let executable = libc::PROT_READ | libc::PROT_EXEC;
    let mapping = [0, 4096, executable.into(), anonymous.into(), -1, 0];
    denied(libc::SYS_mmap, &mapping);
    denied(libc::SYS_mprotect, &mapping[..3]);
}

#[test]
fn no_other_requests_to_descriptors_and_to_the_process() {
    for request in [libc::TIOCSTI, libc::TUNSETIFF as _, libc::SIOCSIFFLAGS as _] {
        denied(libc::SYS_ioctl, &[0, request as i64]);
    }
    for command in [
        libc::F_SETOWN,
        libc::F_SETLK,
        libc::F_SETLEASE,
        libc::F_ADD_SEALS,
    ] {
        denied(libc::SYS_fcntl, &[0, command.into()]);
    }
    for option in [
        libc::PR_SET_DUMPABLE,
        libc::PR_SET_SECCOMP,
        libc::PR_SET_MM,
        libc::PR_SET_PTRACER,
        libc::PR_CAP_AMBIENT,
    ] {
        denied(libc::SYS_prctl, &[option.into()]);
    }
}

#[test]
fn arguments_on_the_list_pass() {
    let programs = compile(Role::Private).unwrap();
    let made = |number: libc::c_long, arguments: [i64; 6]| {
        let outcome = attempt(&programs, number, arguments);
        assert_eq!(outcome, Outcome::Made, "call {number}: {arguments:?}");
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            made(libc::SYS_socket, [family.into(), kind.into(), 0, 0, 0, 0]);
        }
    }
    made(libc::SYS_prctl, [libc::PR_SET_NAME.into(), 0, 0, 0, 0, 0]);
    made(libc::SYS_fcntl, [-1, libc::F_GETFL.into(), 0, 0, 0, 0]);
    made(libc::SYS_ioctl, [-1, libc::FIONREAD as i64, 0, 0, 0, 0]);
    let nodelay = [
        -1,
        libc::IPPROTO_TCP.into(),
        libc::TCP_NODELAY.into(),
        0,
        0,
        0,
    ];
    made(libc::SYS_setsockopt, nodelay);
}

/// A process without an allow-list still starts no program, and enters namespaces.
#[test]
fn an_unconfined_process_is_ended_by_what_it_has_no_use_for() {
    let programs = compile(Role::Namespaces).unwrap();
    let outcome = |number: libc::c_long| attempt(&programs, number, NOWHERE);
    assert_eq!(outcome(libc::SYS_execve), Outcome::Killed);
    assert_eq!(outcome(libc::SYS_ptrace), Outcome::Killed);
    assert_eq!(outcome(libc::SYS_setns), Outcome::Made);
    assert_eq!(outcome(libc::SYS_openat), Outcome::Made);
}

#[test]
fn each_call_has_a_reason_and_stands_once() {
    for role in Role::LISTED {
        let mut seen = BTreeSet::new();
        for call in calls_of(role) {
            assert!(call.reason.len() > 3, "{}", call.name);
            assert!(seen.insert(call.number), "{role:?}: {} twice", call.name);
        }
    }
    let count = |role| calls_of(role).count();
    assert!(count(Role::Network) <= 60, "{}", count(Role::Network));
}

/// SECURITY.md publishes how many calls each role has.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_counts_are_as_published() {
    let published = include_str!("../../../../SECURITY.md");
    for role in Role::LISTED {
        let line = format!("| {role:?} | {} |", calls_of(role).count());
        assert!(published.contains(&line), "{line}");
    }
    let fatal = format!("only an intruder makes ({}, from", FATAL.len());
    assert!(published.contains(&fatal), "{fatal}");
}
