//! An allocator that counts, for each thread apart, so that tests that run at once do not disturb
//! each other.
//!
//! Counted are calls (a reallocation is one) and the bytes that are held, as they were asked for:
//! the allocator's own overhead is not in them.
//!
//! This is the one place outside the `tap` crate with `unsafe` code, because [`GlobalAlloc`] cannot
//! be implemented without. It is part of tests and benches only.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counted.
pub struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// Allocations and reallocations of this thread so far.
pub fn calls() -> u64 {
    CALLS.get()
}

/// Bytes this thread has allocated and not freed.
pub fn held() -> i64 {
    HELD.get()
}

fn note(calls: u64, bytes: i64) {
    CALLS.set(CALLS.get() + calls);
    HELD.set(HELD.get() + bytes);
}

// SAFETY: every call goes to `System` with the arguments it came with, and what `System` returns is
// returned. The counters are thread-local cells with constant initializers and without destructors:
// to reach them neither allocates nor fails, at any time of a thread's life.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(1, layout.size() as i64);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(1, layout.size() as i64);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(1, new_size as i64 - layout.size() as i64);
        // SAFETY: `ptr` came from this allocator and so from `System`, with this layout.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        note(0, -(layout.size() as i64));
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}
