//! The plan of the house: each package, its folder, its kind, and what it may depend on.
//!
//! This is the one place where arrows are allowed. A new package gets a line here, and where it
//! stands below another, its name in the other's `uses`.

use std::collections::BTreeSet;

/// What a package is, which decides the rules that its code keeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A library that holds no descriptor, clock, thread, socket or random source.
    Pure,
    /// The library that talks to the kernel, and the only place of `unsafe`.
    Kernel,
    /// Any other library: its errors are types.
    Library,
    /// A program.
    Program,
    /// A library or program of the tests and of the development.
    Development,
}

impl Kind {
    /// Whether its errors are types that callers can tell apart.
    pub fn is_library(self) -> bool {
        matches!(self, Self::Pure | Self::Kernel | Self::Library)
    }
}

/// A package of the plan.
#[derive(Debug)]
pub struct PlannedPackage {
    /// The package's name.
    pub package: &'static str,
    /// Its folder, seen from the root of the workspace; empty for the root's own package.
    pub folder: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The packages directly below it. What those use, it may use too.
    pub uses: &'static [&'static str],
}

/// The package that any other may have among its dev-dependencies.
pub const TESTKIT: &str = "cnet-testkit";

const fn planned(
    package: &'static str,
    folder: &'static str,
    kind: Kind,
    uses: &'static [&'static str],
) -> PlannedPackage {
    PlannedPackage {
        package,
        folder,
        kind,
        uses,
    }
}

/// All packages, from below to above: each stands after those that it uses.
pub const PLAN: &[PlannedPackage] = &[
    planned("cnet-wire", "wire", Kind::Pure, &[]),
    planned("cnet-vswitch", "vswitch", Kind::Pure, &["cnet-wire"]),
    planned("cnet-nat", "nat", Kind::Pure, &["cnet-wire"]),
    planned(
        "cnet-core",
        "core",
        Kind::Pure,
        &["cnet-vswitch", "cnet-nat"],
    ),
    planned("cnet-tap", "tap", Kind::Kernel, &["cnet-wire"]),
    planned(
        "cnet-dataplane",
        "dataplane",
        Kind::Library,
        &["cnet-core", "cnet-tap"],
    ),
    planned("cnet", "", Kind::Library, &["cnet-tap", "cnet-wire"]),
    planned(
        "cnet-netd",
        "netd",
        Kind::Library,
        &["cnet-dataplane", "cnet"],
    ),
    planned("cnet-cli", "cli", Kind::Program, &["cnet-netd"]),
    planned(TESTKIT, "testkit", Kind::Development, &["cnet-wire"]),
    planned(
        "cnet-fuzz",
        "fuzz",
        Kind::Development,
        &["cnet-cli", TESTKIT],
    ),
    planned(
        "cnet-benches",
        "benches",
        Kind::Development,
        &["cnet-cli", TESTKIT],
    ),
    planned(
        "cnet-tests",
        "tests",
        Kind::Development,
        &["cnet-benches", "cnet-fuzz"],
    ),
    planned(
        "xtask",
        "xtask",
        Kind::Development,
        &["cnet-cli", "cnet-fuzz", TESTKIT],
    ),
];

/// The package of the plan with a name.
pub fn find(package: &str) -> Option<&'static PlannedPackage> {
    PLAN.iter().find(|planned| planned.package == package)
}

/// All that `planned` may depend on: the packages below it, and those below them.
pub fn below(planned: &PlannedPackage) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&'static str> = planned.uses.to_vec();
    while let Some(package) = open.pop() {
        if found.insert(package) {
            open.extend(find(package).into_iter().flat_map(|planned| planned.uses));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arrow_points_down() {
        for (place, planned) in PLAN.iter().enumerate() {
            for used in planned.uses {
                let below = PLAN.iter().position(|other| other.package == *used);
                assert!(below.is_some_and(|below| below < place), "{planned:?}");
            }
        }
    }

    #[test]
    fn what_is_used_by_the_used_may_be_used_and_no_sibling() {
        let nat = below(find("cnet-nat").unwrap());
        assert_eq!(nat, ["cnet-wire"].into());
        let dataplane = below(find("cnet-dataplane").unwrap());
        let all = [
            "cnet-core",
            "cnet-nat",
            "cnet-tap",
            "cnet-vswitch",
            "cnet-wire",
        ];
        assert_eq!(dataplane, all.into());
        let face = below(find("cnet").unwrap());
        assert_eq!(face, ["cnet-tap", "cnet-wire"].into());
    }
}
