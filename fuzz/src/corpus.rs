//! Inputs on disk: one file each, in a folder a target.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the inputs of `target` are.
pub fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// The inputs of `target` with their paths, in the order of their names.
///
/// # Errors
/// The folder or a file in it cannot be read.
pub fn load(target: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory(target))? {
        paths.push(entry?.path());
    }
    paths.sort();
    let read = |path: PathBuf| fs::read(&path).map(|bytes| (path, bytes));
    paths.into_iter().map(read).collect()
}

/// Keeps an input that made `target` panic; returns its path. The name follows from the bytes, so
/// the same input is kept once.
///
/// # Errors
/// The file cannot be written.
pub fn save_crash(target: &str, input: &[u8]) -> io::Result<PathBuf> {
    let path = directory(target).join(format!("crash-{:016x}", hash(input)));
    fs::create_dir_all(directory(target))?;
    fs::write(&path, input)?;
    Ok(path)
}

/// FNV-1a with 64 bits (draft-eastlake-fnv).
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
