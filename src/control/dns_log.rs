//! What containers ask for by DNS, as the control API tells of it.

use serde::{Deserialize, Serialize};

/// The DNS queries of a container that are asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsLog {
    /// Its name, its id or the start of it, or the number of its process.
    pub container: String,
    /// The number of the last query that is known: only later ones are told.
    #[serde(default)]
    pub after: u64,
    /// Whether the next one is waited for, some seconds, where there is none yet.
    #[serde(default)]
    pub wait: bool,
}

/// The DNS queries of a container.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DnsLogReport {
    /// The queries, the oldest first. Only the last few hundred are kept.
    pub queries: Vec<LoggedQuery>,
}

impl DnsLogReport {
    /// With these.
    pub fn new(queries: Vec<LoggedQuery>) -> DnsLogReport {
        DnsLogReport { queries }
    }
}

/// A DNS query of a container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LoggedQuery {
    /// Counted from 1, from the container's joining on.
    pub number: u64,
    /// When it was answered (RFC 3339, UTC).
    pub time: String,
    /// `udp` or `tcp`.
    pub transport: String,
    /// The name in lower case; `?` if it could not be read.
    pub name: String,
    /// The type, such as `A`.
    pub kind: String,
    /// What came of it: one of the counters `dns` of [`super::StatisticsReport`].
    pub outcome: String,
    /// The code of the answer, such as `NOERROR`.
    pub code: String,
    /// How long it took, in milliseconds.
    pub millis: u64,
}
