//! What is wrong with a command line of pasta.

use crate::getopt::SyntaxError;
use crate::pasta::ports::SpecError;

/// What is wrong with a command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ArgsError {
    /// getopt_long(3) refuses it, which callers look for, and the usage is shown.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// A value that makes no sense; what it is of, and what it was.
    #[error("Invalid {0}: {1}")]
    Value(&'static str, String),
    /// An address a third time, or twice of one family.
    #[error("{0} was given twice for one family: {1}")]
    Twice(&'static str, String),
    /// Two options of which one alone can be.
    #[error("{0} and {1} exclude each other")]
    Conflict(&'static str, &'static str),
    /// A path that cannot be used.
    #[error("{0} is longer than a Unix socket's path can be: {1}")]
    SocketPath(&'static str, String),
    /// Ports.
    #[error("{0} {1}: {2}")]
    Ports(&'static str, String, SpecError),
    /// Words after the PID.
    #[error("more than one PID: {0}")]
    TooMany(String),
    /// An IPv4 option without IPv4.
    #[error("{0} needs IPv4, which --ipv6-only leaves out")]
    NoIpv4(&'static str),
}
