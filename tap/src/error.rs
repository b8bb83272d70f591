//! What can go wrong between cnet and the kernel while a network is set up.
//!
//! These errors reach a person at a terminal, so each text names the cause and, where there is
//! one, the remedy. Errors of the packet path are plain [`std::io::Error`]s instead: code
//! matches on those, and no person reads them.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// An error of the set-up path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// `/dev/net/tun` does not exist, or no driver stands behind it.
    #[error(
        "/dev/net/tun is missing ({source}): load the driver with `modprobe tun`; inside a \
         container, pass the device in (for example `--device /dev/net/tun`)"
    )]
    DeviceMissing {
        /// The error of open(2).
        source: io::Error,
    },

    /// `/dev/net/tun` may not be opened by this user.
    #[error(
        "/dev/net/tun is not readable and writable for this user ({source}): run `chmod 0666 \
         /dev/net/tun` as root, or add a udev rule such as KERNEL==\"tun\", MODE=\"0666\""
    )]
    DeviceDenied {
        /// The error of open(2).
        source: io::Error,
    },

    /// The kernel does not let this process make or attach a TAP in this network namespace.
    #[error(
        "no permission to open TAP `{name}`: CAP_NET_ADMIN is needed in the user namespace that \
         owns this network namespace; run as the user who made it, or as root"
    )]
    CreateDenied {
        /// The interface name asked for.
        name: String,
    },

    /// Another program holds the TAP, or the name belongs to another interface.
    #[error(
        "interface `{name}` is already in use in this network namespace: choose another name, or \
         end the program that holds it"
    )]
    NameTaken {
        /// The interface name asked for.
        name: String,
    },

    /// The name cannot be an interface name.
    #[error(
        "`{name}` is not a valid interface name: it takes 1 to 15 bytes without `/`, `:` or \
         white space"
    )]
    InvalidName {
        /// The interface name asked for.
        name: String,
    },

    /// An interface of that name exists, but is no TAP.
    #[error("interface `{name}` exists and is not a TAP device: choose another name, or delete it")]
    NotATap {
        /// The interface name asked for.
        name: String,
    },

    /// An existing TAP was made with the other setting of `IFF_MULTI_QUEUE`.
    #[error(
        "TAP `{name}` exists and was made {}",
        queue_remedy(*.multi_queue)
    )]
    QueueMismatch {
        /// The interface name asked for.
        name: String,
        /// Whether the existing device is a multi-queue one.
        multi_queue: bool,
    },

    /// The number of queues is not one the kernel or this crate can give.
    #[error("a TAP has 1 to {max} queues, not {queues}")]
    QueueCount {
        /// What was asked for.
        queues: u16,
        /// What is possible.
        max: u16,
    },

    /// An ioctl on the TAP failed in a way that has no better name.
    #[error("TAP `{name}`: {what} failed: {source}")]
    Device {
        /// The interface name.
        name: String,
        /// The step, as an ioctl's name.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },

    /// The interface could not be configured.
    #[error("interface `{name}`: cannot {what}: {source}")]
    Configure {
        /// The interface name.
        name: String,
        /// The step, as "set the MTU to 1500".
        what: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// The MTU cannot carry IPv6.
    #[error(
        "an MTU of {mtu} is too small for IPv6 address {address}: IPv6 needs at least 1280 bytes \
         (RFC 8200 section 5); raise the MTU or leave IPv6 off"
    )]
    MtuTooSmallForIpv6 {
        /// The MTU asked for.
        mtu: u32,
        /// The first IPv6 address asked for.
        address: IpAddr,
    },

    /// The kernel, or this interface, has IPv6 switched off.
    #[error(
        "interface `{name}` cannot take IPv6 address {address} ({source}): IPv6 is disabled here; \
         set net.ipv6.conf.all.disable_ipv6 to 0 in the network namespace, or leave IPv6 off"
    )]
    Ipv6Disabled {
        /// The interface name.
        name: String,
        /// The address asked for.
        address: IpAddr,
        /// What the kernel said.
        source: io::Error,
    },

    /// No interface of that name or index.
    #[error("no interface `{name}` in this network namespace")]
    NoSuchInterface {
        /// Name or index.
        name: String,
    },

    /// Talking to rtnetlink failed before any request was made.
    #[error("cannot talk to the kernel over rtnetlink: {source}")]
    Netlink {
        /// The error of the socket.
        source: io::Error,
    },

    /// No process of that id.
    #[error("no process with PID {pid}: it has ended, or belongs to another PID namespace")]
    NoSuchProcess {
        /// The process id.
        pid: i32,
    },

    /// The process exists, but its namespaces may not be opened.
    #[error(
        "no permission to open the namespaces of process {pid} ({source}): it must belong to the \
         same user, and must not have dropped its dumpable flag; otherwise run as root"
    )]
    ProcessDenied {
        /// The process id.
        pid: i32,
        /// The error of open(2).
        source: io::Error,
    },

    /// A namespace file cannot be opened.
    #[error("cannot open namespace {}: {source}", .path.display())]
    OpenNamespace {
        /// The path.
        path: PathBuf,
        /// The error of open(2).
        source: io::Error,
    },

    /// The file is no namespace of the kind that is needed.
    #[error(
        "{} is not a {kind} namespace: name a file such as /proc/PID/ns/{} or a bind mount of one",
        .path.display(),
        proc_name(.kind)
    )]
    WrongNamespace {
        /// The path.
        path: PathBuf,
        /// `network` or `user`.
        kind: &'static str,
    },

    /// A descriptor of something else.
    #[error(
        "the descriptor is not one of a network namespace: open /proc/PID/ns/net or a bind mount of it"
    )]
    NotANetwork,

    /// The process may not enter a namespace.
    #[error(
        "no permission to enter the {kind} namespace ({source}): {}",
        enter_remedy(.kind)
    )]
    EnterDenied {
        /// `network` or `user`.
        kind: &'static str,
        /// The error of setns(2).
        source: io::Error,
    },

    /// New namespaces could not be made.
    #[error(
        "cannot make namespaces ({source}): user namespaces are switched off or limited for this \
         user; look at user.max_user_namespaces, kernel.unprivileged_userns_clone (Debian) and \
         kernel.apparmor_restrict_unprivileged_userns (Ubuntu)"
    )]
    Unshare {
        /// The error of unshare(2).
        source: io::Error,
    },

    /// Entering a namespace failed otherwise.
    #[error("cannot enter the {kind} namespace: {source}")]
    Enter {
        /// `network` or `user`.
        kind: &'static str,
        /// The error of setns(2).
        source: io::Error,
    },

    /// A step that needs a single-threaded process was tried with several threads.
    #[error(
        "this process has more than one thread: it can fork and enter user namespaces only before \
         threads are started (fork(2), setns(2))"
    )]
    MultiThreaded,

    /// The helper process reported an error; this is its text.
    #[error("{0}")]
    Helper(String),

    /// The helper process ended without a report.
    #[error("the helper process in the namespace ended without a report ({status})")]
    HelperDied {
        /// How it ended.
        status: String,
    },

    /// A system call of the set-up failed that has no better name.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TapError {
    /// For `map_err`: gives a bare error the step it happened in.
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> TapError {
        move |source| TapError::Io {
            what,
            source: source.into(),
        }
    }
}

fn queue_remedy(multi_queue: bool) -> &'static str {
    if multi_queue {
        "with several queues (multi_queue): open it with two or more workers, or make it again \
         without `multi_queue`"
    } else {
        "with one queue: open it with one worker, or make it again with `ip tuntap add … mode tap \
         multi_queue`"
    }
}

fn proc_name(kind: &str) -> &'static str {
    if kind == "network" { "net" } else { "user" }
}

fn enter_remedy(kind: &str) -> &'static str {
    if kind == "network" {
        "CAP_SYS_ADMIN is needed in the user namespace that owns it; run as the user who made it, \
         or as root"
    } else {
        "run as the user who made it, or as root"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn texts_name_cause_and_remedy() {
        let cases: [(TapError, &[&str]); 6] = [
            (
                TapError::DeviceMissing { source: errno(2) },
                &["/dev/net/tun", "modprobe tun"],
            ),
            (
                TapError::DeviceDenied { source: errno(13) },
                &[
                    "/dev/net/tun is not readable and writable",
                    "chmod 0666 /dev/net/tun",
                    "udev",
                ],
            ),
            (
                TapError::NameTaken {
                    name: "tap0".into(),
                },
                &["tap0", "already in use"],
            ),
            (
                TapError::QueueMismatch {
                    name: "tap0".into(),
                    multi_queue: false,
                },
                &["with one queue", "one worker", "multi_queue"],
            ),
            (
                TapError::EnterDenied {
                    kind: "network",
                    source: errno(1),
                },
                &["network namespace", "the user who made it"],
            ),
            (
                TapError::WrongNamespace {
                    path: "/etc/passwd".into(),
                    kind: "network",
                },
                &["/etc/passwd", "not a network namespace", "/proc/PID/ns/net"],
            ),
        ];
        for (error, parts) in cases {
            let text = error.to_string();
            for part in parts {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        }
    }
}
