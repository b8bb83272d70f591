//! Initial sequence numbers that peers cannot predict (RFC 6528).

use std::hash::Hasher;

use cnet_wire::time::Instant;
use siphasher::sip::SipHasher24;

use crate::flow::Ends;
use cnet_wire::tcp::Seq;

/// Makes initial sequence numbers from a secret, the flow's ends and the time.
#[derive(Clone, Debug)]
pub struct IsnGenerator {
    secret: [u8; 16],
}

impl IsnGenerator {
    /// A generator keyed with `secret`, which must be random and new for every process.
    pub fn new(secret: [u8; 16]) -> Self {
        IsnGenerator { secret }
    }

    /// `ISN = M + F(ends, secret)`, where M is a clock that ticks every 4 µs.
    pub fn isn(&self, now: Instant, ends: &Ends) -> Seq {
        let mut h = SipHasher24::new_with_key(&self.secret);
        for end in [ends.container(), ends.remote()] {
            match end.ip() {
                std::net::IpAddr::V4(a) => h.write(&a.octets()),
                std::net::IpAddr::V6(a) => h.write(&a.octets()),
            }
            h.write_u16(end.port());
        }
        let m = (now.as_nanos() / 4_000) as u32;
        Seq((h.finish() as u32).wrapping_add(m))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differs_by_flow_and_secret_and_grows_with_time() {
        let ends = |port| {
            Ends::new(
                (std::net::Ipv4Addr::new(10, 0, 2, 100), port).into(),
                (std::net::Ipv4Addr::new(192, 0, 2, 1), 80).into(),
            )
        };
        let g = IsnGenerator::new([7; 16]);
        let t = Instant::from_millis(1);
        assert_ne!(g.isn(t, &ends(1)), g.isn(t, &ends(2)));
        assert_ne!(
            g.isn(t, &ends(1)),
            IsnGenerator::new([8; 16]).isn(t, &ends(1))
        );
        let later = g.isn(Instant::from_millis(5), &ends(1));
        assert_eq!(later.since(g.isn(t, &ends(1))), 1000);
    }
}
