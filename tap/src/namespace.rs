//! Namespaces pinned by descriptor, and work done inside them.
//!
//! # Theory of operation
//!
//! A namespace is named by a process or a path only once; from then on its descriptor stands for
//! it, so that a PID used again or a path replaced changes nothing. A process's namespace files
//! are opened through one descriptor of its `/proc` directory: if the process ends in between, the
//! second open fails instead of naming a stranger.
//!
//! setns(2) takes a process into a user namespace only while it has one thread, and a process that
//! went in cannot come back. [`run_in`] therefore forks: the child enters, does the work, hands
//! descriptors and bytes back over a socket pair, and ends. The parent never leaves its namespaces.
//! Where no user namespace is to be entered, [`open_tap_in`] uses a short-lived thread instead:
//! a network namespace belongs to a thread.
//!
//! # Invariants
//!
//! - No helper outlives its parent: the child asks for SIGKILL at its parent's death
//!   (`PR_SET_PDEATHSIG`), and asks again after entering, because a change of credentials clears
//!   the request (`commit_creds` in `kernel/cred.c`). After each asking it looks whether the parent
//!   is still there.
//! - The child is always reaped.
//!
//! Source: namespaces(7), user_namespaces(7), setns(2), unix(7), prctl(2).

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::device::{MAX_QUEUES, Tap, TapInfo};
use crate::error::TapError;
use crate::fork::{fork, pair, threads};
use crate::netif::{self, InterfaceConfig};

/// The most bytes that [`run_in`]'s closure may hand back.
pub const MAX_REPLY: usize = 64 * 1024;

/// A network namespace and, if it is not the caller's own, the user namespace to enter first.
#[derive(Debug)]
pub struct Namespaces {
    /// `None` when it is the user namespace this process is in already.
    pub user: Option<OwnedFd>,
    /// The network namespace.
    pub net: OwnedFd,
}

impl Namespaces {
    /// Pins the namespaces of a running process.
    ///
    /// To be told of the process's end as well, take [`crate::watch::pidfd`] first: if it has not
    /// fired after this call, both speak of the same process.
    ///
    /// # Errors
    ///
    /// [`TapError::NoSuchProcess`], [`TapError::ProcessDenied`].
    pub fn of_process(pid: i32) -> Result<Namespaces, TapError> {
        let failed = |errno: Errno| match errno {
            Errno::NOENT | Errno::SRCH => TapError::NoSuchProcess { pid },
            _ => TapError::ProcessDenied {
                pid,
                source: errno.into(),
            },
        };
        if pid <= 0 {
            return Err(TapError::NoSuchProcess { pid });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process =
            rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).map_err(failed)?;
        let open = |name| {
            rustix::fs::openat(
                &process,
                name,
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(failed)
        };
        let net = open("ns/net")?;
        let user = open("ns/user")?;
        Ok(Namespaces {
            user: not_our_own(user)?,
            net,
        })
    }

    /// Pins namespaces by their paths, such as `/proc/PID/ns/net` or `/run/netns/NAME`. Without
    /// `user`, the network namespace is entered with the rights this process has.
    ///
    /// # Errors
    ///
    /// [`TapError::OpenNamespace`], [`TapError::WrongNamespace`].
    pub fn from_paths(net: &Path, user: Option<&Path>) -> Result<Namespaces, TapError> {
        let net = open_namespace(net, "network", libc::CLONE_NEWNET)?;
        let user = match user {
            Some(path) => not_our_own(open_namespace(path, "user", libc::CLONE_NEWUSER)?)?,
            None => None,
        };
        Ok(Namespaces { user, net })
    }

    /// From a descriptor of a network namespace, whoever opened it. The user namespace that owns it
    /// is asked of the kernel (`NS_GET_USERNS`, ioctl_ns(2)).
    ///
    /// # Errors
    ///
    /// [`TapError::NotANetwork`] for any other file; [`TapError::EnterDenied`] if the owner is no
    /// user namespace of ours nor inside one.
    pub fn of_net(net: OwnedFd) -> Result<Namespaces, TapError> {
        if namespace_type(net.as_fd()) != Some(libc::CLONE_NEWNET) {
            return Err(TapError::NotANetwork);
        }
        let user = owner_of(net.as_fd()).map_err(|source| TapError::EnterDenied {
            kind: "network",
            source,
        })?;
        Ok(Namespaces {
            user: not_our_own(user)?,
            net,
        })
    }

    /// Device and inode of the network namespace: the same for every descriptor and path of it, and
    /// nobody else's while it lives.
    ///
    /// # Errors
    ///
    /// [`TapError::Io`] with what fstat(2) says.
    pub fn net_identity(&self) -> Result<(u64, u64), TapError> {
        let stat = rustix::fs::fstat(&self.net)
            .map_err(TapError::io("cannot look at a network namespace"))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Moves this process into the namespaces, for good. After a user namespace was entered, the
    /// process is its user and group 0, where that is mapped.
    ///
    /// # Errors
    ///
    /// [`TapError::MultiThreaded`] if a user namespace is to be entered and the process has more
    /// threads than one; [`TapError::EnterDenied`].
    pub fn enter(&self) -> Result<(), TapError> {
        if let Some(user) = &self.user {
            set_namespace(user.as_fd(), "user", LinkNameSpaceType::User)?;
            become_root();
        }
        self.enter_net()
    }

    fn enter_net(&self) -> Result<(), TapError> {
        set_namespace(self.net.as_fd(), "network", LinkNameSpaceType::Network)
    }
}

/// Drops the descriptor if it is the user namespace this process is in.
fn not_our_own(user: OwnedFd) -> Result<Option<OwnedFd>, TapError> {
    let own = rustix::fs::stat("/proc/self/ns/user").map_err(TapError::io(
        "cannot look at /proc/self/ns/user (is /proc mounted?)",
    ))?;
    let theirs =
        rustix::fs::fstat(&user).map_err(TapError::io("cannot look at a user namespace"))?;
    let same = (own.st_dev, own.st_ino) == (theirs.st_dev, theirs.st_ino);
    Ok((!same).then_some(user))
}

fn open_namespace(
    path: &Path,
    kind: &'static str,
    clone_flag: libc::c_int,
) -> Result<OwnedFd, TapError> {
    // Non-blocking, because the path may name a FIFO.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| TapError::OpenNamespace {
        path: path.to_owned(),
        source: e.into(),
    })?;
    if namespace_type(fd.as_fd()) != Some(clone_flag) {
        return Err(TapError::WrongNamespace {
            path: path.to_owned(),
            kind,
        });
    }
    Ok(fd)
}

/// `NS_GET_NSTYPE` (ioctl_ns(2)): a `CLONE_NEW*` flag, or `None` for a file that is no namespace.
fn namespace_type(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    use std::os::fd::AsRawFd;

    // Other files answer an unknown ioctl with ENOTTY, but one whose driver happens to know the
    // number must not be asked at all: only files of nsfs are.
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    let fs = rustix::fs::fstatfs(fd).ok()?;
    if fs.f_type as i64 != NSFS_MAGIC {
        return None;
    }
    // SAFETY: the descriptor is borrowed, so open, and is one of nsfs; the request takes no
    // argument.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) };
    (kind >= 0).then_some(kind)
}

/// `NS_GET_USERNS` (ioctl_ns(2)): the user namespace that owns this one.
fn owner_of(net: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};

    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: the descriptor is borrowed, so open, and the caller knows it to be one of nsfs; the
    // request takes no argument.
    match unsafe { libc::ioctl(net.as_raw_fd(), NS_GET_USERNS as _) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made this descriptor for us (close-on-exec), and nobody else
        // knows of it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

fn set_namespace(
    fd: BorrowedFd<'_>,
    kind: &'static str,
    name: LinkNameSpaceType,
) -> Result<(), TapError> {
    rustix::thread::move_into_link_name_space(fd, Some(name)).map_err(|errno| match errno {
        Errno::PERM => TapError::EnterDenied {
            kind,
            source: errno.into(),
        },
        Errno::INVAL if kind == "user" && threads() > 1 => TapError::MultiThreaded,
        _ => TapError::Enter {
            kind,
            source: errno.into(),
        },
    })
}

/// Takes user and group 0 of the user namespace just entered. Files made from here on belong to
/// somebody who is mapped. A namespace without a mapping for 0 refuses with EINVAL; the
/// capabilities are held either way, so nothing is lost.
fn become_root() {
    let _ = rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT);
    let _ = rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT);
}

/// How many threads this process has; 1 if /proc does not tell.
/// Which namespaces [`unshare`] makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NewNamespaces {
    /// A user namespace, in which this process has every capability.
    pub user: bool,
    /// A network namespace with nothing but a loopback interface that is down.
    pub net: bool,
    /// A copy of the mount namespace.
    pub mount: bool,
}

/// Moves this process into new namespaces.
///
/// # Errors
///
/// [`TapError::MultiThreaded`] if a user namespace is asked for and the process has more threads
/// than one; [`TapError::Unshare`] with EPERM where user namespaces are forbidden, ENOSPC where a
/// limit of `/proc/sys/user` is reached.
pub fn unshare(new: NewNamespaces) -> Result<(), TapError> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWUSER, new.user);
    flags.set(UnshareFlags::NEWNET, new.net);
    flags.set(UnshareFlags::NEWNS, new.mount);
    // SAFETY: unshare(2) is a danger only with CLONE_FILES, which takes descriptors from other
    // threads; it is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|errno| match errno {
        Errno::INVAL if new.user && threads() > 1 => TapError::MultiThreaded,
        _ => TapError::Unshare {
            source: errno.into(),
        },
    })
}

/// What a closure inside the namespaces hands back.
pub type Handover = (Vec<OwnedFd>, Vec<u8>);

/// Runs `f` inside the namespaces, in a child process, and gives what it gave: descriptors and up
/// to [`MAX_REPLY`] bytes. Errors cross with their full text.
///
/// # Errors
///
/// [`TapError::MultiThreaded`] if this process has more threads than one, since the child of a
/// fork(2) then may not even allocate; [`TapError::Helper`] with the child's error;
/// [`TapError::HelperDied`].
pub fn run_in(
    ns: &Namespaces,
    f: impl FnOnce() -> Result<Handover, TapError>,
) -> Result<Handover, TapError> {
    let (ours, theirs) = pair()?;
    let parent = rustix::process::getpid();
    match fork("cannot fork a helper process")? {
        // It leaves through `_exit` alone, so no destructor of the parent's runs twice.
        None => {
            drop(ours);
            child(ns, f, &theirs, &[], parent)
        }
        Some(pid) => {
            drop(theirs);
            let reply = receive(&ours);
            // A child that still runs fails at its next write and ends.
            drop(ours);
            let status = reap(pid);
            match reply? {
                Some(reply) => parse_reply(reply),
                None => Err(TapError::HelperDied { status }),
            }
        }
    }
}

/// As [`run_in`], without waiting: the child sends its one message to `socket`, with `tag` in front
/// of it ([`parse_tagged`] reads it), and ends. Reaping it is the caller's part.
///
/// # Errors
///
/// [`TapError::MultiThreaded`], and what fork(2) says.
pub fn start_in(
    ns: &Namespaces,
    socket: &OwnedFd,
    tag: u64,
    f: impl FnOnce() -> Result<Handover, TapError>,
) -> Result<Pid, TapError> {
    let parent = rustix::process::getpid();
    match fork("cannot fork a helper process")? {
        None => child(ns, f, socket, &tag.to_ne_bytes(), parent),
        Some(pid) => Ok(pid),
    }
}

/// Sends what a child of [`start_in`] would send that failed with `text`.
///
/// # Errors
///
/// What sendmsg(2) says.
pub fn send_tagged_error(socket: &OwnedFd, tag: u64, text: &str) -> io::Result<()> {
    let bytes = text.as_bytes();
    let cut = bytes.len().min(MAX_REPLY);
    Ok(send(
        socket,
        &tag.to_ne_bytes(),
        REPLY_ERROR,
        &[],
        &bytes[..cut],
    )?)
}

/// Reads the tag and the outcome of a message that a child of [`start_in`] has sent; `None` if it
/// is none.
pub fn parse_tagged((fds, bytes): Handover) -> Option<(u64, Result<Handover, TapError>)> {
    let (tag, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_ne_bytes(*tag), parse_reply((fds, rest.to_vec()))))
}

/// The first byte of a reply: what follows is the closure's bytes.
const REPLY_OK: u8 = 0;
/// The first byte of a reply: what follows is an error's text.
const REPLY_ERROR: u8 = 1;

fn child(
    ns: &Namespaces,
    f: impl FnOnce() -> Result<Handover, TapError>,
    socket: &OwnedFd,
    tag: &[u8],
    parent: Pid,
) -> ! {
    let work = || {
        die_with(parent)?;
        ns.enter()?;
        die_with(parent)?;
        f()
    };
    // A panic must not unwind into the parent's frames, of which this process has a copy.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
    let sent = match &outcome {
        Ok(Ok((fds, bytes))) if bytes.len() <= MAX_REPLY => send(socket, tag, REPLY_OK, fds, bytes),
        Ok(Ok(_)) => send(
            socket,
            tag,
            REPLY_ERROR,
            &[],
            b"the helper's reply is too long",
        ),
        Ok(Err(error)) => {
            let text = error.to_string();
            send(
                socket,
                tag,
                REPLY_ERROR,
                &[],
                &text.as_bytes()[..text.len().min(MAX_REPLY)],
            )
        }
        Err(_) => send(
            socket,
            tag,
            REPLY_ERROR,
            &[],
            b"the helper process panicked",
        ),
    };
    // SAFETY: _exit(2) ends the process at once and takes no pointer.
    unsafe { libc::_exit(i32::from(sent.is_err())) }
}

/// Asks the kernel to kill this process when `parent` ends, and ends it now if that has happened.
pub(crate) fn die_with(parent: Pid) -> Result<(), TapError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(TapError::io("cannot tie the helper process to its parent"))?;
    if rustix::process::getppid() == Some(parent) {
        return Ok(());
    }
    Err(TapError::Io {
        what: "the parent process has ended",
        source: io::Error::from_raw_os_error(libc::ESRCH),
    })
}

fn send(
    socket: &OwnedFd,
    tag: &[u8],
    first: u8,
    fds: &[OwnedFd],
    bytes: &[u8],
) -> rustix::io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    send_message(socket, &[tag, &[first], bytes], &borrowed)
}

/// Sends one message, the pieces in a row, with descriptors.
///
/// # Errors
///
/// What sendmsg(2) says; `E2BIG` for more than [`MAX_QUEUES`] descriptors.
pub fn send_message(
    socket: &OwnedFd,
    pieces: &[&[u8]],
    fds: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); control_space()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let pieces: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    rustix::net::sendmsg(socket, &pieces, &mut control, SendFlags::NOSIGNAL).map(drop)
}

fn control_space() -> usize {
    rustix::cmsg_space!(ScmRights(MAX_QUEUES as usize))
}

/// The next message with its descriptors, or `None` once the other end is closed. Waits if the
/// socket does.
///
/// # Errors
///
/// [`TapError::Io`]; with EAGAIN when a non-blocking socket has no message.
pub fn receive(socket: &OwnedFd) -> Result<Option<Handover>, TapError> {
    let mut bytes = vec![0; MAX_REPLY + 1 + size_of::<u64>()];
    let mut space = vec![MaybeUninit::uninit(); control_space()];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message.bytes,
            Err(Errno::INTR) => {}
            Err(e) => return Err(TapError::io("cannot hear from the helper process")(e)),
        }
    };
    bytes.truncate(length);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((length > 0).then_some((fds, bytes)))
}

fn parse_reply((fds, mut bytes): Handover) -> Result<Handover, TapError> {
    if bytes.first() == Some(&REPLY_OK) {
        bytes.remove(0);
        return Ok((fds, bytes));
    }
    let text = String::from_utf8_lossy(bytes.get(1..).unwrap_or_default()).into_owned();
    Err(TapError::Helper(text))
}

/// Waits for the child's end and describes it.
fn reap(pid: Pid) -> String {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            Err(e) => return format!("waitpid: {e}"),
            Ok(None) => return "unknown".to_owned(),
            Ok(Some((_, status))) => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit status {code}"),
                    (_, Some(signal)) => format!("signal {signal}"),
                    _ => "unknown".to_owned(),
                };
            }
        }
    }
}

/// Opens the TAP `name` inside the namespaces and, with `cfg`, configures it and brings the
/// loopback interface up. Without `cfg` the TAP is opened and nothing else is touched.
///
/// Where a user namespace is to be entered this forks, and the process must have one thread;
/// otherwise it works from any process.
///
/// # Errors
///
/// As [`run_in`] and [`Tap::create`].
pub fn open_tap_in(
    ns: &Namespaces,
    name: &str,
    queues: u16,
    cfg: Option<&InterfaceConfig>,
) -> Result<Tap, TapError> {
    if ns.user.is_none() {
        return on_a_thread(ns, || set_up_tap(name, queues, cfg));
    }
    let (fds, bytes) = run_in(ns, || {
        let (fds, info) = set_up_tap(name, queues, cfg)?.into_fds();
        Ok((fds, info.to_bytes()))
    })?;
    match TapInfo::from_bytes(&bytes) {
        Some(info) if fds.len() == usize::from(queues) => Ok(Tap::from_fds(fds, info)),
        _ => Err(TapError::Helper(
            "the helper process sent no TAP".to_owned(),
        )),
    }
}

fn set_up_tap(name: &str, queues: u16, cfg: Option<&InterfaceConfig>) -> Result<Tap, TapError> {
    let mut tap = Tap::create(name, queues)?;
    if let Some(cfg) = cfg {
        netif::loopback_up()?;
        netif::configure(tap.ifindex, &tap.name, cfg)?;
        tap.mac = cfg.mac.unwrap_or(tap.mac);
    }
    Ok(tap)
}

/// Runs `f` in the network namespace on a thread of its own, which ends with it.
fn on_a_thread<T: Send>(
    ns: &Namespaces,
    f: impl FnOnce() -> Result<T, TapError> + Send,
) -> Result<T, TapError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                ns.enter_net()?;
                f()
            })
            .map_err(TapError::io("cannot start a thread"))?;
        thread
            .join()
            .unwrap_or_else(|_| Err(TapError::Helper("the helper thread panicked".to_owned())))
    })
}

/// Pins the network namespace this thread is in.
///
/// # Errors
///
/// [`TapError::OpenNamespace`] where /proc is not mounted.
pub fn current_net() -> Result<OwnedFd, TapError> {
    let path = Path::new("/proc/thread-self/ns/net");
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|source| TapError::OpenNamespace {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_user_namespace_is_not_entered() {
        let own = Namespaces::of_process(std::process::id() as i32).unwrap();
        assert!(own.user.is_none());
        let by_path = Namespaces::from_paths(
            Path::new("/proc/self/ns/net"),
            Some(Path::new("/proc/self/ns/user")),
        )
        .unwrap();
        assert!(by_path.user.is_none());
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let wrong = |net: &str, user: Option<&str>| {
            Namespaces::from_paths(Path::new(net), user.map(Path::new)).unwrap_err()
        };
        for path in [
            "/etc/passwd",
            "/",
            "/dev/null",
            "/proc/self/ns/user",
            "/proc/self/ns/mnt",
        ] {
            let error = wrong(path, None);
            assert!(
                matches!(
                    error,
                    TapError::WrongNamespace {
                        kind: "network",
                        ..
                    }
                ),
                "{path}: {error}"
            );
        }
        let error = wrong("/proc/self/ns/net", Some("/proc/self/ns/net"));
        assert!(
            matches!(error, TapError::WrongNamespace { kind: "user", .. }),
            "{error}"
        );
        let error = wrong("/no/such/path", None);
        assert!(matches!(error, TapError::OpenNamespace { .. }), "{error}");
    }

    #[test]
    fn no_such_process() {
        for pid in [0, -1, i32::MAX] {
            let error = Namespaces::of_process(pid).unwrap_err();
            assert!(
                matches!(error, TapError::NoSuchProcess { .. }),
                "{pid}: {error}"
            );
        }
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        let own = Namespaces::of_process(std::process::id() as i32).unwrap();
        let error = run_in(&own, || Ok((vec![], vec![]))).unwrap_err();
        assert!(matches!(error, TapError::MultiThreaded), "{error}");
        drop(stop);
        let _ = thread.join();
    }

    #[test]
    fn replies_are_told_apart() {
        let ok = parse_reply((vec![], vec![REPLY_OK, 1, 2])).unwrap();
        assert_eq!(ok.1, [1, 2]);
        let error = parse_reply((vec![], [&[REPLY_ERROR], &b"why"[..]].concat())).unwrap_err();
        assert_eq!(error.to_string(), "why");
        assert_eq!(parse_reply((vec![], vec![])).unwrap_err().to_string(), "");
    }
}
