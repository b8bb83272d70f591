//! What the arguments of a call may be, where its number alone says too little.

// The types of requests and options are not the same in every C library.
#![allow(clippy::unnecessary_cast)]

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// A test of one argument.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    argument: u8,
    mask: Option<u64>,
    value: u64,
}

/// A call is allowed if all conditions of one of its alternatives hold.
pub type Alternatives = &'static [&'static [Condition]];

/// The argument at that place, counted from 0, is `value`. The upper half of the register does not
/// count: the kernel does not look at it for an `int`.
pub(super) const fn is(argument: u8, value: u64) -> Condition {
    Condition {
        argument,
        mask: None,
        value: value & 0xffff_ffff,
    }
}

/// The bits of `mask` in the argument are those of `value`.
pub(super) const fn bits(argument: u8, mask: u64, value: u64) -> Condition {
    Condition {
        argument,
        mask: Some(mask),
        value,
    }
}

pub(super) fn rules(alternatives: Alternatives) -> Result<Vec<SeccompRule>, BackendError> {
    let condition = |tested: &Condition| {
        let (length, test) = match tested.mask {
            None => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq),
            Some(mask) => (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask)),
        };
        SeccompCondition::new(tested.argument, length, test, tested.value)
    };
    let rule = |all: &&[Condition]| {
        let conditions: Result<Vec<_>, _> = all.iter().map(condition).collect();
        SeccompRule::new(conditions?)
    };
    alternatives.iter().map(rule).collect()
}

/// socket(2): the internet's two families, streams and datagrams (echo is a datagram's protocol).
/// No Unix socket, no netlink, no raw or packet socket.
pub(super) const SOCKET: Alternatives = {
    const V4: u64 = libc::AF_INET as u64;
    const V6: u64 = libc::AF_INET6 as u64;
    const STREAM: u64 = libc::SOCK_STREAM as u64;
    const DATAGRAM: u64 = libc::SOCK_DGRAM as u64;
    // The others are SOCK_NONBLOCK and SOCK_CLOEXEC.
    const KIND: u64 = 0xf;
    &[
        &[is(0, V4), bits(1, KIND, STREAM)],
        &[is(0, V4), bits(1, KIND, DATAGRAM)],
        &[is(0, V6), bits(1, KIND, STREAM)],
        &[is(0, V6), bits(1, KIND, DATAGRAM)],
    ]
};

/// ioctl(2).
pub(super) const IOCTL: Alternatives = {
    /// `SIOCOUTQNSD` (linux/sockios.h), which libc lacks.
    const UNSENT: u64 = 0x894b;
    &[
        // A socket that does not block.
        &[is(1, libc::FIONBIO as u64)],
        // How much a socket holds that was not read, not acknowledged, not sent.
        &[is(1, libc::FIONREAD as u64)],
        &[is(1, libc::TIOCOUTQ as u64)],
        &[is(1, UNSENT)],
        // The interface of a link-local name server.
        &[is(1, libc::SIOCGIFINDEX as u64)],
        // Whether a container's TAP outlives this process.
        &[is(1, libc::TUNSETPERSIST as u64)],
    ]
};

/// fcntl(2): flags, copies and pipe sizes. No locks, no owner that signals are sent to, no seals.
pub(super) const FCNTL: Alternatives = &[
    &[is(1, libc::F_GETFD as u64)],
    &[is(1, libc::F_SETFD as u64)],
    &[is(1, libc::F_GETFL as u64)],
    &[is(1, libc::F_SETFL as u64)],
    &[is(1, libc::F_DUPFD_CLOEXEC as u64)],
    &[is(1, libc::F_GETPIPE_SZ as u64)],
    &[is(1, libc::F_SETPIPE_SZ as u64)],
];

/// prctl(2): a thread's name.
pub(super) const PRCTL: Alternatives = &[&[is(0, libc::PR_SET_NAME as u64)]];

/// clone(2): threads of this process, in its namespaces; no process.
pub(super) const CLONE: Alternatives = {
    const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
    const NAMESPACES: u64 = (libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP) as u64;
    &[&[bits(0, THREAD | NAMESPACES, THREAD)]]
};

/// mmap(2) and mprotect(2): no memory that can be executed.
pub(super) const NOT_EXECUTABLE: Alternatives = &[&[bits(2, libc::PROT_EXEC as u64, 0)]];

/// setsockopt(2). Where an option is new here, its name goes into this list.
pub(super) const SETSOCKOPT: Alternatives = {
    const SOCKET: u64 = libc::SOL_SOCKET as u64;
    const V4: u64 = libc::IPPROTO_IP as u64;
    const V6: u64 = libc::IPPROTO_IPV6 as u64;
    const TCP: u64 = libc::IPPROTO_TCP as u64;
    const UDP: u64 = libc::IPPROTO_UDP as u64;
    macro_rules! options {
        ($($level:ident $option:ident,)*) => {
            &[$(&[is(1, $level), is(2, libc::$option as u64)],)*]
        };
    }
    options![
        // What a flow's socket is to do.
        SOCKET SO_PEEK_OFF,
        SOCKET SO_KEEPALIVE,
        SOCKET SO_OOBINLINE,
        SOCKET SO_LINGER,
        SOCKET SO_RCVBUF,
        SOCKET SO_SNDBUF,
        SOCKET SO_RCVLOWAT,
        SOCKET SO_REUSEADDR,
        TCP TCP_NODELAY,
        TCP TCP_KEEPIDLE,
        TCP TCP_KEEPINTVL,
        TCP TCP_KEEPCNT,
        TCP TCP_USER_TIMEOUT,
        TCP TCP_MAXSEG,
        TCP TCP_QUICKACK,
        TCP TCP_NOTSENT_LOWAT,
        TCP TCP_DEFER_ACCEPT,
        TCP TCP_SAVE_SYN,
        // What a packet's header is to say, and what is told of those that come.
        V4 IP_TTL,
        V4 IP_TOS,
        V4 IP_PKTINFO,
        V4 IP_RECVTTL,
        V4 IP_RECVTOS,
        V4 IP_RECVERR,
        V4 IP_MTU_DISCOVER,
        V4 IP_BIND_ADDRESS_NO_PORT,
        V6 IPV6_UNICAST_HOPS,
        V6 IPV6_TCLASS,
        V6 IPV6_RECVPKTINFO,
        V6 IPV6_RECVHOPLIMIT,
        V6 IPV6_RECVTCLASS,
        V6 IPV6_RECVERR,
        V6 IPV6_MTU_DISCOVER,
        V6 IPV6_V6ONLY,
        UDP UDP_SEGMENT,
        UDP UDP_GRO,
    ]
};
