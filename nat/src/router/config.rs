//! What a router is made of.

use crate::datagram::DatagramConfig;
use crate::gateway::GatewayConfig;
use crate::policy::Policy;
use crate::tcp::TcpConfig;

/// What a router is made of.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// IP MTU of the links, in bytes.
    pub mtu: usize,
    /// The gateway's addresses and services.
    pub gateway: GatewayConfig,
    /// Where containers may send to.
    pub policy: Policy,
    /// TCP flows.
    pub tcp: TcpConfig,
    /// UDP and ICMP mappings.
    pub datagram: DatagramConfig,
}
