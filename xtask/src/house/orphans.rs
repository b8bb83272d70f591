//! Rule `orphan`: every source file is compiled into something, so that the other rules, and the
//! compiler, see it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;
use super::sources::Sources;

const RULE: &str = "orphan";

/// What is found below the workspace's `root`.
///
/// # Errors
/// A folder cannot be read.
pub fn check(root: &Path, target: &Path, sources: &Sources) -> anyhow::Result<Vec<Finding>> {
    let mut files = Vec::new();
    collect(root, target, &mut files)?;
    let files = files.iter().filter_map(|path| path.strip_prefix(root).ok());
    Ok(unreached(files, sources))
}

fn unreached<'a>(files: impl Iterator<Item = &'a Path>, sources: &Sources) -> Vec<Finding> {
    let known: BTreeSet<&Path> = sources
        .files()
        .map(|(_, file)| file.path.as_path())
        .collect();
    let unknown = files.filter(|path| !known.contains(path));
    let found = unknown.map(|path| {
        let message = "no target compiles it: declare it as a module, or delete it";
        Finding::new(RULE, path, 1, message)
    });
    found.collect()
}

/// Adds the sources below a folder, but for what cargo built and what is hidden.
fn collect(folder: &Path, target: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || path == target || path == folder.join("target") {
            continue;
        }
        if path.is_dir() {
            collect(&path, target, files)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nothing_declares_is_found() {
        let files = [("nat/src/lib.rs", "mod a;"), ("nat/src/a.rs", "")];
        let sources = Sources::of("cnet-nat", &files);
        let there = ["nat/src/lib.rs", "nat/src/a.rs", "nat/src/b.rs"].map(Path::new);
        let found = unreached(there.into_iter(), &sources);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].file, Path::new("nat/src/b.rs"));
    }
}
