//! Rule `arrow`: every package of the workspace is in the plan, in its folder, and depends only on
//! what is below it there.
//!
//! A dev-dependency follows the same arrows, but for the test kit, which any package may have.

use std::path::Path;

use super::plan::{self, PlannedPackage, TESTKIT};
use super::{Finding, manifest};
use crate::cargo::{Dependency, Metadata, Package};

const RULE: &str = "arrow";

/// What is found.
pub fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in &metadata.packages {
        let name = &package.name;
        let mut add = |word: &str, message: String| {
            found.push(manifest::finding(RULE, metadata, package, word, message));
        };
        let Some(planned) = plan::find(name) else {
            let place = "give it its line in PLAN of xtask/src/house/plan.rs";
            add("name", format!("{name} is not in the plan: {place}"));
            continue;
        };
        let folder = metadata.workspace_root.join(planned.folder);
        if package.manifest_path.parent() != Some(normal(&folder)) {
            add(
                "name",
                format!("{name} belongs in the folder {}/", planned.folder),
            );
        }
        for dependency in against(planned, package, metadata) {
            let used = &dependency.name;
            let below = plan::below(planned)
                .into_iter()
                .collect::<Vec<_>>()
                .join(", ");
            let below = if below.is_empty() { "nothing" } else { &below };
            let message = format!(
                "{name} depends on {used}, which is not below it: move what it needs to where it \
                 may find it ({below}), or take it as an argument or a trait"
            );
            add(used, message);
        }
    }
    found
}

/// The path without the slash that the empty folder leaves.
fn normal(path: &Path) -> &Path {
    path.components().as_path()
}

/// The dependencies on the workspace's own packages that the plan does not have.
fn against<'a>(
    planned: &PlannedPackage,
    package: &'a Package,
    metadata: &Metadata,
) -> impl Iterator<Item = &'a Dependency> {
    let below = plan::below(planned);
    let own: Vec<String> = metadata
        .packages
        .iter()
        .map(|one| one.name.clone())
        .collect();
    package.dependencies.iter().filter(move |dependency| {
        let name = dependency.name.as_str();
        let is_own = own.iter().any(|own| own == name) || plan::find(name).is_some();
        let is_testkit = name == TESTKIT && dependency.kind.as_deref() == Some("dev");
        is_own && !is_testkit && !below.contains(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, folder: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependencies = dependencies.iter().map(|(name, kind)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
        });
        Package {
            name: name.to_owned(),
            manifest_path: Path::new("/root").join(folder).join("Cargo.toml"),
            dependencies: dependencies.collect(),
            targets: Vec::new(),
        }
    }

    fn messages(packages: Vec<Package>) -> Vec<String> {
        let found = check(&Metadata {
            packages,
            target_directory: "/root/target".into(),
            workspace_root: "/root".into(),
        });
        found.into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn arrows_down_are_allowed_also_past_a_level() {
        let dataplane = [("cnet-core", None), ("cnet-wire", None), ("rustix", None)];
        let nat = [("cnet-wire", None), (TESTKIT, Some("dev"))];
        let packages = vec![
            package("cnet-dataplane", "dataplane", &dataplane),
            package("cnet-nat", "nat", &nat),
            package("cnet", "", &[("cnet-tap", None)]),
        ];
        assert_eq!(messages(packages), [""; 0]);
    }

    #[test]
    fn arrows_sideways_and_upwards_are_found() {
        let packages = vec![
            package(
                "cnet-nat",
                "nat",
                &[("cnet-vswitch", None), (TESTKIT, None)],
            ),
            package("cnet-tap", "tap", &[("cnet", Some("dev"))]),
        ];
        let found = messages(packages);
        assert_eq!(found.len(), 3);
        assert!(found[0].starts_with("cnet-nat depends on cnet-vswitch, which is not below it"));
        assert!(found[1].starts_with("cnet-nat depends on cnet-testkit"));
        assert!(found[2].starts_with("cnet-tap depends on cnet,"));
    }

    #[test]
    fn a_package_has_its_place_in_the_plan() {
        let packages = vec![
            package("cnet-utils", "utils", &[]),
            package("cnet-nat", "net", &[]),
        ];
        let found = messages(packages);
        assert!(found[0].starts_with("cnet-utils is not in the plan"));
        assert_eq!(found[1], "cnet-nat belongs in the folder nat/");
    }
}
