//! The Internet checksum (RFC 1071), over slices and pseudo-headers.

use std::net::IpAddr;

/// Adds the 16-bit big-endian words of `data` to `sum`, an odd last byte padded with zero.
/// The result is not yet folded to 16 bits.
pub fn add(sum: u64, data: &[u8]) -> u64 {
    let mut acc = u128::from(sum);
    let mut chunks = data.chunks_exact(8);
    for c in &mut chunks {
        // Ones' complement addition does not care about the width of the words it adds.
        acc += u128::from(u64::from_be_bytes([
            c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7],
        ]));
    }
    let mut rest = [0; 8];
    rest[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    acc += u128::from(u64::from_be_bytes(rest));
    let mut acc = (acc & u128::from(u64::MAX)) + (acc >> 64);
    acc = (acc & u128::from(u64::MAX)) + (acc >> 64);
    // Below 2^64 after two folds; fold further so that sums of many slices cannot overflow.
    let acc = u64::try_from(acc).unwrap_or(u64::MAX);
    (acc & 0xffff_ffff) + (acc >> 32)
}

/// Folds a sum to 16 bits, not complemented.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo-header (RFC 793, RFC 8200 section 8.1), not folded. Both addresses must be
/// of one family; `len` is the transport header and payload in bytes.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> u64 {
    let mut sum = u64::from(protocol) + u64::from(len >> 16) + u64::from(len & 0xffff);
    for a in [src, dst] {
        sum = match a {
            IpAddr::V4(a) => add(sum, &a.octets()),
            IpAddr::V6(a) => add(sum, &a.octets()),
        };
    }
    sum
}

/// The complemented checksum of `data` on top of `sum`.
pub fn finish(sum: u64, data: &[u8]) -> u16 {
    !fold(add(sum, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(data: &[u8]) -> u16 {
        let mut s = 0u64;
        for c in data.chunks(2) {
            s += u64::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]));
        }
        fold(s)
    }

    proptest! {
        #[test]
        fn equals_the_word_by_word_sum(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (a, b) = (fold(add(0, &data)), plain(&data));
            // 0 and 0xffff are the same number in ones' complement.
            prop_assert_eq!(a % 0xffff, b % 0xffff);
            prop_assert_eq!(a == 0, b == 0);
        }
    }
}
