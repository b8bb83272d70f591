//! Findings about a package's `Cargo.toml`.

use std::fs;

use super::Finding;
use crate::cargo::{Metadata, Package};

/// A finding about what the manifest of `package` says of `name`.
pub fn finding(
    rule: &'static str,
    metadata: &Metadata,
    package: &Package,
    name: &str,
    message: String,
) -> Finding {
    let text = fs::read_to_string(&package.manifest_path).unwrap_or_default();
    let path = package.manifest_path.strip_prefix(&metadata.workspace_root);
    let path = path.unwrap_or(&package.manifest_path);
    Finding::new(rule, path, line(&text, name), &message)
}

/// The line of a manifest that sets `name`, or its first.
fn line(text: &str, name: &str) -> usize {
    let sets = |line: &str| {
        let rest = line.trim_start().strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
    };
    text.lines().position(sets).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_found_by_its_whole_name() {
        let text = "[dependencies]\ncnet-natter = \"1\"\ncnet-nat.workspace = true\n";
        assert_eq!(line(text, "cnet-nat"), 3);
        assert_eq!(line(text, "absent"), 1);
    }
}
