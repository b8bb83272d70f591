//! What a running network has counted, as the control API tells of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counters by their names. A counter that is 0 may be absent.
pub type Counters = BTreeMap<String, u64>;

/// What passed a network since its process started.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StatisticsReport {
    /// The network's name.
    pub network: String,
    /// Connections and mappings that are open now.
    pub flows: u64,
    /// Packets the router dropped, by reason.
    pub drops: Counters,
    /// TCP connections so far: `opened` by containers, `accepted` by published ports, `evicted` to
    /// make room for others, `refused` for want of room; failed connects, resets, retransmissions and
    /// timeouts.
    #[serde(default)]
    pub tcp: Counters,
    /// What the gateway's services did so far, by name: ARP, neighbour discovery, echo, DHCP and
    /// the gateway's side of DNS.
    #[serde(default)]
    pub gateway: Counters,
    /// What passed the router's port of the switch.
    #[serde(default)]
    pub router: RouterStatistics,
    /// Clients of published TCP ports so far, by the way they took to the container, and the bytes
    /// that spliced connections carried.
    #[serde(default)]
    pub forwards: Counters,
    /// What workers told each other so far, frames `handed_over` to the primary one, and `defects` of
    /// the program that they met and contained.
    #[serde(default)]
    pub workers: Counters,
    /// DNS queries so far, by what came of them.
    #[serde(default)]
    pub dns: Counters,
    /// How long answers to DNS queries took.
    #[serde(default, skip_serializing_if = "AnswerTimes::is_empty")]
    pub dns_times: AnswerTimes,
    /// The network's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessStatistics>,
    /// Why containers cannot ping the world, and the way out, if the host has refused a ping socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ping_unavailable: Option<String>,
    /// By container, ordered by name.
    pub containers: Vec<ContainerStatistics>,
}

impl StatisticsReport {
    /// Of a network that nothing has passed yet.
    pub fn new(network: impl Into<String>) -> StatisticsReport {
        StatisticsReport {
            network: network.into(),
            ..StatisticsReport::default()
        }
    }
}

/// What passed the router's port of the switch. *Sent* is what the router sent to containers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouterStatistics {
    /// Bytes the router sent, in Ethernet frames.
    pub bytes_sent: u64,
    /// Frames the router sent; a super-frame counts as one.
    pub frames_sent: u64,
    /// Bytes of frames that were given to it.
    pub bytes_received: u64,
    /// Frames that were given to it: for its addresses, for the world, or for all.
    pub frames_received: u64,
    /// What came from the host, or waited in the router, and was dropped, by reason. What came from a
    /// container is with that container's.
    pub drops: Counters,
}

/// What passed one container's interface. *Sent* is what the container sent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContainerStatistics {
    /// The container's name.
    pub name: String,
    /// The interface inside; empty for a virtual machine.
    #[serde(default)]
    pub interface: String,
    /// Bytes the container sent.
    pub bytes_sent: u64,
    /// Frames the container sent; a super-frame counts as one.
    pub frames_sent: u64,
    /// Bytes that were given to it.
    pub bytes_received: u64,
    /// Frames that were given to it.
    pub frames_received: u64,
    /// Frames of it and to it that were dropped, by reason.
    pub drops: Counters,
    /// What it has open now: `tcp` connections, `udp` and `ping` mappings.
    #[serde(default)]
    pub flows: Counters,
    /// What came of its DNS queries, as in [`StatisticsReport::dns`].
    #[serde(default)]
    pub dns: Counters,
    /// What is wrong with what it sends, and the way out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl ContainerStatistics {
    /// Of a container that nothing has passed yet.
    pub fn new(name: impl Into<String>) -> ContainerStatistics {
        ContainerStatistics {
            name: name.into(),
            ..ContainerStatistics::default()
        }
    }
}

/// How long answers to DNS queries took so far: a histogram.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AnswerTimes {
    /// All of them together, in microseconds.
    pub micros: u64,
    /// How many took how long. Those that took longer than the last one says are in `more`.
    pub buckets: Vec<TimeBucket>,
    /// How many took longer than any bucket says.
    pub more: u64,
}

impl AnswerTimes {
    /// Whether no query was answered yet.
    pub fn is_empty(&self) -> bool {
        self.more == 0 && self.buckets.iter().all(|bucket| bucket.count == 0)
    }
}

/// Answers that took about as long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TimeBucket {
    /// The longest of them, in microseconds; longer than the bucket before it says.
    pub up_to: u64,
    /// How many they are.
    pub count: u64,
}

/// What the network's process has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProcessStatistics {
    /// Time on processors, of all its threads, in milliseconds.
    pub cpu_millis: u64,
    /// Seconds from the Unix epoch to its start.
    pub started: u64,
}
