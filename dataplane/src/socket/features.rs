//! Which kernel features are used. They are asked of the running kernel, never told by its version.

use cnet_tap::socket as sys;

/// Which kernel features to use; all off is what old kernels have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Features {
    /// `SO_PEEK_OFF` on TCP over IPv4.
    pub(crate) peek_off_v4: bool,
    /// `SO_PEEK_OFF` on TCP over IPv6.
    pub(crate) peek_off_v6: bool,
    /// `UDP_GRO`.
    pub(crate) udp_gro: bool,
}

impl Features {
    /// Asks the running kernel. What [`allowed`] forbids is left alone: `peek_off`, `udp_gro`.
    pub(crate) fn detect() -> Features {
        Features {
            peek_off_v4: allowed("peek_off") && sys::supports_peek_off_tcp(false),
            peek_off_v6: allowed("peek_off") && sys::supports_peek_off_tcp(true),
            udp_gro: allowed("udp_gro"),
        }
    }
}

/// The environment variable that names features which may not be used.
pub(crate) const WITHOUT: &str = "CNET_WITHOUT";

/// Whether a feature may be used. The environment variable `CNET_WITHOUT` names those that may not,
/// with commas between them, so that tests walk the fallbacks.
pub(crate) fn allowed(feature: &str) -> bool {
    let without = std::env::var(WITHOUT).unwrap_or_default();
    !without.split(',').any(|name| name == feature)
}
