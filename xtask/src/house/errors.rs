//! Rule `anyhow`: a library's errors are types that its callers can tell apart. `anyhow` is for
//! programs and tests.

use super::sources::Sources;
use super::{Finding, manifest, paths, plan};
use crate::cargo::Metadata;

const RULE: &str = "anyhow";

fn is_library(package: &str) -> bool {
    plan::find(package).is_some_and(|planned| planned.kind.is_library())
}

/// What is found in the manifests.
pub fn check_manifests(metadata: &Metadata) -> Vec<Finding> {
    let packages = metadata.packages.iter().filter(|one| is_library(&one.name));
    let found = packages.flat_map(|package| {
        let dependencies = package.dependencies.iter();
        let mut dependencies = dependencies.filter(|one| one.kind.as_deref() != Some("dev"));
        let uses = dependencies.any(|one| one.name == RULE);
        let message = || format!("{} depends on anyhow: use thiserror", package.name);
        uses.then(|| manifest::finding(RULE, metadata, package, RULE, message()))
    });
    found.collect()
}

/// What is found in the sources.
pub fn check(sources: &Sources) -> Vec<Finding> {
    let mut found = Vec::new();
    for (package, module) in sources
        .production()
        .filter(|(package, _)| is_library(package))
    {
        let imports = paths::imports(&module.items);
        let imports = imports.into_iter().map(|import| import.path);
        for path in imports.chain(paths::mentions(&module.items)) {
            if path.names.len() > 1 && path.names[0] == RULE {
                let message = format!(
                    "anyhow in the library {package}: give the error a type, with thiserror"
                );
                found.push(Finding::new(RULE, &module.file.path, path.line, &message));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::lines;
    use super::*;

    const TEXT: &str = "
        use anyhow::Context;
        fn f() -> anyhow::Result<()> { anyhow::bail!(\"anyhow::x\") }
        #[cfg(test)]
        mod tests { use anyhow::Error; }";

    #[test]
    fn it_is_found_in_libraries_outside_their_tests() {
        let sources = Sources::of("cnet-netd", &[("netd/src/lib.rs", TEXT)]);
        assert_eq!(lines(&check(&sources)), [2, 3, 3]);
    }

    #[test]
    fn programs_may_use_it() {
        let sources = Sources::of("cnet-cli", &[("cli/src/lib.rs", TEXT)]);
        assert_eq!(check(&sources), []);
    }
}
