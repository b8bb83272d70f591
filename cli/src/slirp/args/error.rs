//! What is wrong with a command line. The texts are slirp4netns's where it has one.

use crate::getopt::SyntaxError;
use cnet_dataplane::{MAX_BUSY_POLL_MICROS, MAX_WORKERS};
use cnet_wire::prefixes::{Subnet, SubnetError};

/// What is wrong with a command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ArgsError {
    /// getopt_long(3) refuses it.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// Neither PID nor PATH.
    #[error("a PID or a PATH is needed")]
    NoTarget,
    /// A PID or PATH alone.
    #[error("the name of the TAP is needed after the PID or PATH")]
    NoTapName,
    /// A pattern, of which the kernel would make the name.
    #[error("\"{0}\" is no name of an interface; give one without '%'")]
    TapName(String),
    /// More than a path with `--target-type=bess`.
    #[error("too many arguments")]
    TooMany,
    /// The descriptor of `--netns-type=tapfd` is none.
    #[error("TAPFD must be a file descriptor")]
    TapFd,
    /// An option that `--target-type=bess` has no use for.
    #[error("{0} conflicts with --target-type=bess")]
    BessConflict(&'static str),
    /// The PID argument is not a valid PID.
    #[error("PID must be a positive integer")]
    Pid,
    /// Not a descriptor's number; the option's name without dashes.
    #[error("{0} must be a non-negative integer")]
    Descriptor(&'static str),
    /// An MTU out of range.
    #[error("MTU must be a positive integer (< 65522)")]
    Mtu,
    /// Not a number of microseconds, or too many.
    #[error("--busy-poll must be an integer from 0 to {MAX_BUSY_POLL_MICROS}, in microseconds")]
    BusyPoll,
    /// Not a number of workers, or one out of range.
    #[error("--workers must be an integer from 1 to {MAX_WORKERS}")]
    Workers,
    /// An unusable `--cidr`.
    #[error(transparent)]
    Cidr(#[from] SubnetError),
    /// A `--cidr` in 127.0.0.0/8.
    #[error("CIDR needs to be a network outside of the loopback network, not {0}")]
    LoopbackCidr(Subnet),
    /// An unknown `--netns-type`.
    #[error("--netns-type must be \"path\", \"pid\" or \"tapfd\"")]
    NetnsType,
    /// An unknown `--target-type`.
    #[error("--target-type must be either \"netns\" or \"bess\"")]
    TargetType,
    /// `--macaddress` without `-c`.
    #[error("--macaddress cannot be specified when --configure or -c is not specified")]
    MacWithoutConfigure,
    /// Not a MAC address, or one that no interface can have.
    #[error(
        "\"{0}\" is an invalid MAC address.\nmacaddress has to be a valid MAC address (hex \
         string, 6 bytes, each byte separated by a ':', not a multicast address)."
    )]
    Mac(String),
}
