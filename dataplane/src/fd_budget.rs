//! How many flows a process has descriptors for.

use cnet_nat::flow::Limits;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that flows leave to others: twice what spliced connections may take
/// ([`crate::forward::splice`]).
const SPARE_DESCRIPTORS: usize = 12_288;

/// Every flow is a descriptor: takes as many as the system lets us, and tells how many that is.
pub(super) fn raise_limit() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer descriptors there are fewer flows, which the quota answers.
    let _ = setrlimit(Resource::Nofile, limit);
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// What all containers of a process of that many descriptors may hold together. They leave what
/// TAPs, DNS, published ports, spliced connections and the API need: a quarter of them, or
/// [`SPARE_DESCRIPTORS`].
pub(super) fn totals(descriptors: usize) -> Limits {
    let flows = descriptors - SPARE_DESCRIPTORS.min(descriptors / 4);
    let part = |hundredths: usize| flows / 100 * hundredths;
    Limits {
        tcp_flows: part(80),
        udp_mappings: part(17),
        ping_mappings: part(3),
    }
}

#[cfg(test)]
mod tests {
    use cnet_nat::flow::FairShare;

    use super::*;

    #[test]
    fn flows_leave_descriptors_to_others() {
        for descriptors in [0, 256, 1024, 4096, 65_536, 1 << 20] {
            let totals = totals(descriptors);
            let flows = totals.tcp_flows + totals.udp_mappings + totals.ping_mappings;
            let spare = descriptors - flows;
            assert!(spare >= descriptors / 4 || spare >= SPARE_DESCRIPTORS);
            assert!(flows * 2 >= descriptors.min(65_536) / 2, "{descriptors}");
        }
    }

    #[test]
    fn a_container_alone_has_its_whole_quota_on_a_usual_system() {
        let each = Limits::default();
        for descriptors in [524_288, 1 << 20, usize::MAX] {
            let totals = totals(descriptors);
            for (each, total) in [
                (each.tcp_flows, totals.tcp_flows),
                (each.udp_mappings, totals.udp_mappings),
                (each.ping_mappings, totals.ping_mappings),
            ] {
                assert!(FairShare { each, total }.admits(each - 1, each - 1));
            }
        }
    }
}
