//! Bytes that were acknowledged to a container and that the host's socket has not taken yet.
//!
//! Few flows have any at a time, so what stands in every flow is one pointer, and an empty stash
//! holds no memory.

use std::ops::Deref;

use bytes::{Buf, BytesMut};

/// A flow's stash.
#[derive(Debug, Default)]
pub(super) struct Stash(Option<Box<BytesMut>>);

impl Stash {
    /// Puts `bytes` behind what is there.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.get_or_insert_default().extend_from_slice(bytes);
        }
    }

    /// Takes `n` bytes off the start, which are at most as many as there are.
    pub(super) fn consume(&mut self, n: usize) {
        if n >= self.len() {
            self.0 = None;
        } else if let Some(bytes) = &mut self.0 {
            bytes.advance(n);
        }
    }
}

impl Deref for Stash {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |bytes| &bytes[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_queue_that_frees_itself() {
        let mut stash = Stash::default();
        stash.append(&[]);
        assert!(stash.is_empty() && stash.0.is_none());
        stash.append(b"ab");
        stash.append(b"cde");
        stash.consume(3);
        assert_eq!(&*stash, b"de");
        stash.consume(2);
        assert!(stash.is_empty() && stash.0.is_none());
    }
}
