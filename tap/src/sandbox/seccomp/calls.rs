//! The system calls that each role keeps, each with its reason, and those that end a process.

use seccompiler::{BackendError, SeccompRule};

use super::Role;
use super::arguments::{self, Alternatives};

/// An allowed call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number on this architecture.
    pub number: i64,
    /// Its name.
    pub name: &'static str,
    /// What it is needed for.
    pub reason: &'static str,
    /// What its arguments may be; `None` for anything.
    pub arguments: Option<Alternatives>,
    roles: &'static [Role],
}

impl Call {
    pub(super) fn rules(&self) -> Result<Vec<SeccompRule>, BackendError> {
        self.arguments.map_or(Ok(Vec::new()), arguments::rules)
    }
}

/// The calls of a role.
pub fn calls_of(role: Role) -> impl Iterator<Item = &'static Call> {
    CALLS.iter().filter(move |call| call.roles.contains(&role))
}

const NETWORK: &[Role] = &[Role::Network];
const PACKETS: &[Role] = &[Role::Network, Role::Private];
const SOCKET_HELPER: &[Role] = &[Role::SocketHelper];
const INIT: &[Role] = &[Role::Init];
const FILES: &[Role] = &[Role::Files];
const READS_FILES: &[Role] = &[Role::Network, Role::Files];
const ALL: &[Role] = &Role::LISTED;

macro_rules! calls {
    ($($(#[$if:meta])? $roles:ident $number:ident $(($arguments:ident))? $reason:literal,)*) => {
        &[$($(#[$if])? Call {
            number: libc::$number as i64,
            // Without `SYS_`.
            name: stringify!($number).split_at(4).1,
            reason: $reason,
            arguments: calls!(@arguments $($arguments)?),
            roles: $roles,
        },)*]
    };
    (@arguments $arguments:ident) => { Some(arguments::$arguments) };
    (@arguments) => { None };
}

const CALLS: &[Call] = calls![
    // Frames and connections.
    PACKETS SYS_read "frames from TAPs; eventfds, pipes, files",
    PACKETS SYS_write "frames to TAPs; eventfds, the log, files",
    PACKETS SYS_writev "frames and answers of several pieces",
    ALL SYS_close "what has ended",
    ALL SYS_recvmsg "datagrams with their ancillary data; descriptors from helpers and clients",
    ALL SYS_sendmsg "datagrams with their ancillary data; requests to helpers",
    PACKETS SYS_recvmmsg "datagrams, many at once",
    PACKETS SYS_sendmmsg "datagrams, many at once",
    ALL SYS_recvfrom "bytes of connections; requests to helpers",
    ALL SYS_sendto "bytes of connections; answers of helpers",
    PACKETS SYS_splice "bytes between two connections, without a copy",
    PACKETS SYS_pipe2 "where spliced bytes are in between",
    PACKETS SYS_socket(SOCKET) "flows, published ports, DNS queries",
    SOCKET_HELPER SYS_socket(SOCKET) "its one task",
    PACKETS SYS_connect "flows to the world",
    PACKETS SYS_bind "published ports, sources of flows",
    PACKETS SYS_listen "published TCP ports",
    PACKETS SYS_accept4 "clients of published ports and of the API",
    PACKETS SYS_getsockname "which port the kernel has chosen",
    PACKETS SYS_getsockopt "errors of sockets, TCP_INFO, who the peer is",
    PACKETS SYS_setsockopt(SETSOCKOPT) "options of sockets",
    PACKETS SYS_shutdown "the end of one direction",
    PACKETS SYS_ioctl(IOCTL) "what a socket holds; whether a TAP stays",
    PACKETS SYS_fcntl(FCNTL) "copies of descriptors, sizes of pipes",
    // Waiting.
    PACKETS SYS_epoll_create1 "the event loop of each worker",
    PACKETS SYS_epoll_ctl "what an event loop waits for",
    #[cfg(target_arch = "x86_64")]
    PACKETS SYS_epoll_wait "waiting",
    PACKETS SYS_epoll_pwait "waiting",
    ALL SYS_ppoll "waiting for one descriptor",
    PACKETS SYS_eventfd2 "waking a worker",
    PACKETS SYS_clock_gettime "the time, where the vDSO has to ask the kernel",
    // Threads and memory.
    PACKETS SYS_futex "locks between threads",
    PACKETS SYS_clone(CLONE) "workers, and threads that write files",
    PACKETS SYS_set_robust_list "the C library, in a new thread",
    PACKETS SYS_rseq "the C library, in a new thread",
    PACKETS SYS_sigaltstack "the stack guard of a new thread",
    PACKETS SYS_prctl(PRCTL) "names of threads",
    ALL SYS_rt_sigprocmask "signals while a thread starts or ends",
    ALL SYS_rt_sigreturn "the end of a signal handler",
    ALL SYS_mmap(NOT_EXECUTABLE) "memory, stacks",
    ALL SYS_munmap "memory",
    ALL SYS_mremap "memory that grows",
    ALL SYS_mprotect(NOT_EXECUTABLE) "the guard page of a stack",
    ALL SYS_madvise "memory given back",
    ALL SYS_brk "memory",
    PACKETS SYS_getrandom "keys of hash tables, DNS query identifiers, initial sequence numbers",
    PACKETS SYS_prlimit64 "as many descriptors as the limit lets us",
    PACKETS SYS_geteuid "whose a client of the control socket is",
    ALL SYS_exit "the end of a thread",
    ALL SYS_exit_group "the end",
    ALL SYS_restart_syscall "waiting again after a stop",
    // The files of a named network.
    READS_FILES SYS_openat "state, leases and definitions, below the directories of its root",
    READS_FILES SYS_statx "whether a file has changed",
    FILES SYS_lseek "files that are read again",
    NETWORK SYS_newfstatat "the C library, when a directory is listed",
    NETWORK SYS_getdents64 "which other networks there are",
    #[cfg(target_arch = "x86_64")]
    NETWORK SYS_rename "files are replaced whole",
    #[cfg(not(target_arch = "x86_64"))]
    NETWORK SYS_renameat "files are replaced whole",
    #[cfg(target_arch = "x86_64")]
    READS_FILES SYS_unlink "the control socket, at the end",
    #[cfg(not(target_arch = "x86_64"))]
    READS_FILES SYS_unlinkat "the control socket, at the end",
    NETWORK SYS_fsync "what was written down outlives a power cut",
    NETWORK SYS_flock "the lock of its directory, at the end",
    NETWORK SYS_ftruncate "the log stays bounded",
    NETWORK SYS_pread64 "the newer half of the log",
    // The helper outside.
    FILES SYS_read "resolv.conf",
    FILES SYS_futex "locks of the standard library",
    // An init.
    INIT SYS_read "signals, from a signalfd",
    INIT SYS_wait4 "children that have ended",
    INIT SYS_waitid "children that have ended",
    INIT SYS_kill "signals passed on to the command",
];

macro_rules! fatal {
    ($($number:ident,)*) => {
        &[$((libc::$number as i64, stringify!($number).split_at(4).1),)*]
    };
}

/// Calls that end the process: none of our programs makes them once it is in its sandbox, so what
/// makes them is not our program any more.
pub const FATAL: &[(i64, &str)] = fatal![
    // Starting programs.
    SYS_execve,
    SYS_execveat,
    // Other processes' memory and descriptors.
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_process_madvise,
    SYS_pidfd_getfd,
    SYS_kcmp,
    // Mounts and roots.
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_open_tree,
    SYS_move_mount,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    SYS_mount_setattr,
    // Namespaces.
    SYS_setns,
    SYS_unshare,
    // Files by handles, past directories.
    SYS_open_by_handle_at,
    // The kernel's own code, and large surfaces of it.
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_kexec_file_load,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_acct,
    SYS_quotactl,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_adjtimex,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_personality,
];
