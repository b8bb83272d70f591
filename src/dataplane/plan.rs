//! From the description of a network to the configuration of its router.

use std::net::IpAddr;

use cnet_nat::datagram::DatagramConfig;
use cnet_nat::gateway::{GatewayConfig, Ipv4Gateway, Ipv6Gateway, Lease};
use cnet_nat::router::RouterConfig;
use cnet_nat::tcp::TcpConfig;
use cnet_vswitch::MacAddr;

use super::NetworkConfig;
