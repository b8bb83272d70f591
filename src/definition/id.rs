//! Ids of networks and containers: 64 hexadecimal digits, as container runtimes have them.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Digits of an id that stand for it, as with Docker.
pub const SHORT_ID: usize = 12;

/// Bytes of an id.
const ID_BYTES: usize = 32;

/// A random id.
///
/// # Errors
///
/// When the kernel has no random bytes (getrandom(2)).
pub fn random_id() -> io::Result<String> {
    let mut bytes = [0; ID_BYTES];
    // Up to 256 bytes come whole, or not at all (getrandom(2)).
    let length = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if length != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether `text` is an id.
pub fn is_id(text: &str) -> bool {
    text.len() == 2 * ID_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_digits_and_differ() {
        let (one, other) = (random_id().unwrap(), random_id().unwrap());
        assert!(is_id(&one) && is_id(&other) && one != other);
        assert!(!is_id(&one[..SHORT_ID]) && !is_id(&"g".repeat(64)));
    }
}
