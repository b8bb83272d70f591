//! How many flows a process has descriptors for.

use cnet_nat::flow::FlowBudget;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::StartError;

/// The fewest descriptors that a network runs with. Two dozen are open before the first flow, and
/// each container takes four.
const LEAST_DESCRIPTORS: usize = 64;

/// The fewest that a program starts with, until it has raised its limit to the most it may have.
const LEAST_AT_FIRST: usize = 32;

/// Descriptors that flows leave to others: twice what spliced connections may take
/// ([`crate::forward::splice`]).
const SPARE_DESCRIPTORS: usize = 12_288;

/// The same where there are few: what is open before the first flow, and a reserve for containers,
/// DNS and the API.
const LEAST_SPARE: usize = 48;

/// Every flow is a descriptor: takes as many as the system lets us, and tells how many that is.
///
/// # Errors
///
/// [`StartError::Descriptors`] if a network cannot run with them.
pub(super) fn raise_limit() -> Result<usize, StartError> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer descriptors there are fewer flows, which the quota answers.
    let _ = setrlimit(Resource::Nofile, limit);
    let current = getrlimit(Resource::Nofile).current;
    let current = current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    enough(current, LEAST_DESCRIPTORS)?;
    Ok(current)
}

/// Checks that a network can run with the descriptors that this process may have. A program asks
/// before it opens anything; nothing is changed, since what it starts before the network inherits
/// the limit.
///
/// # Errors
///
/// [`StartError::Descriptors`] if they are too few.
pub fn check_descriptors() -> Result<(), StartError> {
    let limit = getrlimit(Resource::Nofile);
    let number =
        |limit: Option<u64>| limit.map_or(usize::MAX, |n| n.try_into().unwrap_or(usize::MAX));
    enough(number(limit.maximum), LEAST_DESCRIPTORS)?;
    enough(number(limit.current), LEAST_AT_FIRST)
}

/// Whether `limit` descriptors are as many as `least`.
///
/// # Errors
///
/// [`StartError::Descriptors`] if not.
fn enough(limit: usize, least: usize) -> Result<(), StartError> {
    match limit < least {
        true => Err(StartError::Descriptors { limit, least }),
        false => Ok(()),
    }
}

/// What all containers of a process of that many descriptors may hold together, of every protocol and in
/// all workers, `most` at most. They leave what TAPs, DNS, published ports, spliced connections and the
/// API need: a quarter of them, but at least [`LEAST_SPARE`] and at most [`SPARE_DESCRIPTORS`].
pub(super) fn flows(descriptors: usize, most: usize) -> FlowBudget {
    FlowBudget::new(left_to_flows(descriptors).min(most))
}

fn left_to_flows(descriptors: usize) -> usize {
    let spare = (descriptors / 4).clamp(LEAST_SPARE, SPARE_DESCRIPTORS);
    descriptors.saturating_sub(spare)
}

/// What tokens of published ports can number.
const MOST_FORWARDS: usize = 1 << 23;

/// The most ports that can be published by a process with this one's limit of descriptors: five
/// eighths of them. Flows, which are found wanting when there are none left, have the rest.
pub fn most_forwards() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    let descriptors = descriptors.map_or(usize::MAX, |n| n.try_into().unwrap_or(usize::MAX));
    (descriptors / 8 * 5).min(MOST_FORWARDS)
}

#[cfg(test)]
mod tests {
    use cnet_nat::flow::{FairShare, Limits};

    use super::*;

    #[test]
    fn flows_leave_descriptors_to_others() {
        for descriptors in [0, LEAST_DESCRIPTORS, 128, 256, 1024, 4096, 65_536, 1 << 20] {
            let flows = left_to_flows(descriptors);
            let spare = descriptors - flows;
            assert!(spare >= descriptors / 4 || spare >= SPARE_DESCRIPTORS);
            let least = descriptors.saturating_sub(2 * LEAST_SPARE).min(65_536) / 4;
            assert!(flows >= least, "{descriptors}");
        }
    }

    #[test]
    fn few_descriptors_are_enough_for_some_flows_or_refused() {
        assert!(enough(LEAST_DESCRIPTORS, LEAST_DESCRIPTORS).is_ok());
        let refused = enough(LEAST_DESCRIPTORS - 1, LEAST_DESCRIPTORS).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("is 63") && text.contains("at least 64") && text.contains("ulimit"));
        let least = flows(LEAST_DESCRIPTORS, usize::MAX).total();
        assert!(least >= 16, "{least}");
        assert_eq!(flows(LEAST_DESCRIPTORS, 3).total(), 3);
    }

    #[test]
    fn a_container_alone_has_its_whole_quota_on_a_usual_system() {
        let limits = Limits::default();
        for descriptors in [524_288, 1 << 20, usize::MAX] {
            let total = left_to_flows(descriptors);
            for each in [limits.tcp_flows, limits.udp_mappings, limits.ping_mappings] {
                assert!(FairShare { each, total }.admits(each - 1, each - 1));
            }
        }
    }
}
