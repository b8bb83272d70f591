//! What an engine is changing, for the case that it panics meanwhile.
//!
//! # Theory of operation
//!
//! A panic leaves the flow it came from half changed, so that flow has to end, and no other. Which one
//! it was is noted by a value that is dropped only while the stack is unwound: on the way that does not
//! panic it is forgotten, and costs nothing.

/// Notes `what` in `torn` if it is dropped.
struct Note<'a, T: Copy> {
    torn: &'a mut Option<T>,
    what: T,
}

impl<T: Copy> Drop for Note<'_, T> {
    fn drop(&mut self) {
        *self.torn = Some(self.what);
    }
}

/// Calls `change`, which changes `what`. If it panics, `torn` names `what` afterwards.
#[inline]
pub(crate) fn with_in_hand<T: Copy, R>(
    torn: &mut Option<T>,
    what: T,
    change: impl FnOnce() -> R,
) -> R {
    let note = Note { torn, what };
    let result = change();
    std::mem::forget(note);
    result
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn only_a_panic_is_noted() {
        let mut torn = None;
        assert_eq!(with_in_hand(&mut torn, 7, || 8), 8);
        assert_eq!(torn, None);
        let call = AssertUnwindSafe(|| with_in_hand(&mut torn, 7, || panic!("a test")));
        let panicked: Result<(), _> = catch_unwind(call);
        assert!(panicked.is_err());
        assert_eq!(torn, Some(7));
    }
}
