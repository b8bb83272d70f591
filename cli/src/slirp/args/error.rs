//! What is wrong with a command line. The texts are slirp4netns's where it has one.

use cnet_dataplane::{MAX_BUSY_POLL_MICROS, MAX_WORKERS};
use cnet_wire::prefixes::SubnetError;

/// What is wrong with a command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ArgsError {
    /// getopt_long(3) refuses it.
    #[error("cnet-slirp: {0}")]
    Syntax(String),
    /// Neither PID nor PATH.
    #[error("cnet-slirp: a PID or a PATH is needed")]
    NoTarget,
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
    /// An unknown `--netns-type`.
    #[error("--netns-type must be either \"path\" or \"pid\"")]
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
    /// Not an address of the family.
    #[error(
        "{option}: \"{value}\" is not a valid {family} address; interface names are not \
         supported yet, give the interface's address"
    )]
    Outbound {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// `--outbound-addr6` without `--enable-ipv6`.
    #[error("--outbound-addr6 needs --enable-ipv6")]
    OutboundWithoutIpv6,
    /// An option whose function is missing in this version.
    #[error("{option} is not supported by this version of cnet-slirp: {missing}")]
    Missing {
        /// As it was written.
        option: &'static str,
        /// What is missing, and what to do.
        missing: &'static str,
    },
}
