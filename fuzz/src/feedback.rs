//! What an execution came by, told by the target to the fuzzer: the substitute for coverage.
//!
//! Features are bits of a small set, kept for each thread. The fuzzer empties the set before an
//! execution and reads it afterwards.

use std::cell::Cell;

/// Bits of the set; features are taken modulo this.
const BITS: u32 = 128;

thread_local! {
    static SEEN: Cell<u128> = const { Cell::new(0) };
}

/// The execution came by `feature`.
pub fn note(feature: u32) {
    SEEN.set(SEEN.get() | 1 << (feature % BITS));
}

/// The features since the last call, as a set of bits.
pub fn take() -> u128 {
    SEEN.replace(0)
}
