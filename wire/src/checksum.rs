//! The Internet checksum (RFC 1071), over slices and pseudo-headers.

use std::net::IpAddr;

/// Adds the 16-bit big-endian words of `data` to `sum`, an odd last byte padded with zero.
/// The result is not yet folded to 16 bits, but small enough that any number of slices may follow.
pub fn add(sum: u64, data: &[u8]) -> u64 {
    // Ones' complement addition cares neither for the width of the words it adds nor, up to a last
    // swap, for their byte order (RFC 1071 section 2). Native 32-bit words into 64-bit lanes need
    // no carries and become vector instructions.
    let word = |c: &[u8]| u64::from(u32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
    let mut lanes = [0u64; 8];
    let mut blocks = data.chunks_exact(32);
    for block in &mut blocks {
        for (lane, c) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += word(c);
        }
    }
    let mut words = blocks.remainder().chunks_exact(4);
    let mut acc: u64 = lanes.iter().sum();
    acc += words.by_ref().map(word).sum::<u64>();
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    acc += word(&last);
    (sum & 0xffff_ffff) + (sum >> 32) + u64::from(fold(acc).to_be())
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
        // Words of any width may be added (as in `add`), and these are in registers.
        sum += match a {
            IpAddr::V4(a) => u64::from(a.to_bits()),
            IpAddr::V6(a) => {
                let words = [96, 64, 32, 0].map(|shift| (a.to_bits() >> shift) & 0xffff_ffff);
                words.iter().sum::<u128>() as u64
            }
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

        #[test]
        fn the_pseudo_header_is_that_of_the_rfcs(
            (v4, v6) in any::<([[u8; 4]; 2], [[u8; 16]; 2])>(),
            (protocol, len) in any::<(u8, u32)>(),
        ) {
            let [len, next] = [len.to_be_bytes(), [0, 0, 0, protocol]].map(Vec::from);
            for (ends, of) in [
                (v4.map(IpAddr::from), v4.map(Vec::from).concat()),
                (v6.map(IpAddr::from), v6.map(Vec::from).concat()),
            ] {
                let bytes = [&of[..], &len, &next].concat();
                let n = u32::from_be_bytes([len[0], len[1], len[2], len[3]]);
                let sum = fold(pseudo_header(ends[0], ends[1], protocol, n));
                prop_assert_eq!(sum % 0xffff, plain(&bytes) % 0xffff);
            }
        }
    }
}
