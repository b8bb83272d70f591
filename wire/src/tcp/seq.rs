//! Sequence numbers: 32 bits that wrap (RFC 9293, section 3.4).

use std::ops::{Add, AddAssign};

/// A sequence number. Comparison is by signed distance, so it holds for numbers less than 2^31
/// apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Seq(pub u32);

impl Seq {
    /// Signed distance from `origin` to `self`.
    pub fn since(self, origin: Seq) -> i32 {
        self.0.wrapping_sub(origin.0) as i32
    }

    /// Bytes from `origin` to `self`; zero if `self` lies before it.
    pub fn bytes_since(self, origin: Seq) -> usize {
        usize::try_from(self.since(origin)).unwrap_or(0)
    }

    /// Strictly before `other`.
    pub fn before(self, other: Seq) -> bool {
        self.since(other) < 0
    }

    /// Strictly behind `other`.
    pub fn after(self, other: Seq) -> bool {
        self.since(other) > 0
    }

    /// The later of two.
    pub fn max(self, other: Seq) -> Seq {
        if self.before(other) { other } else { self }
    }
}

impl Add<usize> for Seq {
    type Output = Seq;

    fn add(self, n: usize) -> Seq {
        Seq(self.0.wrapping_add(n as u32))
    }
}

impl AddAssign<usize> for Seq {
    fn add_assign(&mut self, n: usize) {
        *self = *self + n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_across_the_wrap() {
        let a = Seq(u32::MAX - 1);
        let b = a + 5;
        assert_eq!(b, Seq(3));
        assert!(a.before(b) && b.after(a) && !a.after(b));
        assert_eq!(b.bytes_since(a), 5);
        assert_eq!(a.bytes_since(b), 0);
        assert_eq!(a.max(b), b);
    }
}
