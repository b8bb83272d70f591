//! Rule `cycle`: modules of a crate that stand beside each other do not use each other in a cycle.
//!
//! # Theory of operation
//!
//! A use is a path, imported or in the text, that leads from one module into another. Re-exports and
//! other imports on its way are followed to the module that defines what is named, as the compiler
//! does ([`Modules::resolve`]), so a cycle does not hide behind `pub use` in the parent.
//!
//! A use counts in the folder where the ways to the two modules part: `crate::a::b` that uses
//! `crate::c` is a use of `c` by `a`. A module and those below it are one, whichever uses the other:
//! a parent declares and uses its children, and they use the parent's items.
//!
//! Tests are free.
//!
//! # Limits
//!
//! What a macro writes, and methods called through a trait, leave no path to see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use syn::Item;

use super::Finding;
use super::paths::{self, Import, Path};
use super::sources::{Crate, Module, Sources};

const RULE: &str = "cycle";

/// How many imports are followed one after the other before a path is given up.
const MOST_IMPORTS: usize = 16;

/// What is found.
pub fn check(sources: &Sources) -> Vec<Finding> {
    sources.crates.iter().flat_map(of_crate).collect()
}

fn of_crate(one: &Crate) -> Vec<Finding> {
    let mut folders: BTreeMap<&[String], Graph> = BTreeMap::new();
    for usage in Modules::of(one).uses() {
        let common = usage
            .user
            .iter()
            .zip(usage.used)
            .take_while(|(a, b)| a == b)
            .count();
        let (folder, user) = usage.user.split_at(common);
        if let ([user, ..], [used, ..]) = (user, &usage.used[common..]) {
            folders
                .entry(folder)
                .or_default()
                .add(user, used, usage.place);
        }
    }
    let found = folders.iter().flat_map(|(folder, graph)| {
        let components = graph.components();
        components
            .into_iter()
            .filter_map(|component| report(folder, graph, &component))
    });
    found.collect()
}

/// A place in the sources where one module uses another.
struct Usage<'a> {
    user: &'a [String],
    used: &'a [String],
    place: String,
}

/// The modules of a crate, but for those that only tests compile.
struct Modules<'a>(BTreeMap<&'a [String], Content<'a>>);

/// What a module holds.
struct Content<'a> {
    module: &'a Module,
    imports: Vec<Import>,
    items: BTreeSet<String>,
}

impl<'a> Modules<'a> {
    fn of(one: &'a Crate) -> Self {
        let modules = one.modules.iter().filter(|module| !module.test);
        let contents = modules.map(|module| {
            let content = Content {
                module,
                imports: paths::imports(&module.items),
                items: module.items.iter().filter_map(name).collect(),
            };
            (module.path.as_slice(), content)
        });
        Self(contents.collect())
    }

    fn uses(&self) -> Vec<Usage<'a>> {
        let mut found = Vec::new();
        for (user, content) in &self.0 {
            let imports = content.imports.iter().map(|import| import.path.clone());
            for path in imports.chain(paths::mentions(&content.module.items)) {
                if let Some(used) = self.resolve(user, &path.names, MOST_IMPORTS) {
                    let place = place(content.module, &path);
                    found.push(Usage { user, used, place });
                }
            }
        }
        found
    }

    /// The module that defines what `path` names in the module `from`, if the crate has it.
    fn resolve(&self, from: &[String], path: &[String], imports: usize) -> Option<&'a [String]> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.descend(&[], rest, imports),
            "self" => self.descend(from, rest, imports),
            "super" => {
                let (_, parent) = from.split_last()?;
                if rest.first().is_some_and(|next| next == "super") {
                    return self.resolve(parent, rest, imports);
                }
                self.descend(parent, rest, imports)
            }
            _ => self.find(from, path, imports),
        }
    }

    /// The module that defines what `path` names below the module `at`.
    fn descend(&self, at: &[String], path: &[String], imports: usize) -> Option<&'a [String]> {
        let (own, _) = self.0.get_key_value(at)?;
        if path.is_empty() {
            return Some(own);
        }
        // What is not seen is what a macro defines there.
        Some(self.find(at, path, imports).unwrap_or(own))
    }

    /// The module that defines what `path` names among the names that the module `at` knows.
    fn find(&self, at: &[String], path: &[String], imports: usize) -> Option<&'a [String]> {
        let (first, rest) = path.split_first()?;
        let (own, content) = self.0.get_key_value(at)?;
        let child = [at, std::slice::from_ref(first)].concat();
        if self.0.contains_key(child.as_slice()) && !(rest.is_empty() && content.defines(first)) {
            return self.descend(&child, rest, imports);
        }
        if content.defines(first) {
            return Some(own);
        }
        let imports = imports.checked_sub(1)?;
        let mut named = content.imports.iter();
        if let Some(import) = named.find(|import| import.name.as_ref() == Some(first)) {
            // An import that names itself is of another crate.
            let is_own = import.path.names.first() == Some(first);
            let whole = [import.path.names.as_slice(), rest].concat();
            return if is_own {
                None
            } else {
                self.resolve(at, &whole, imports)
            };
        }
        let mut all = content
            .imports
            .iter()
            .filter(|import| import.name.is_none());
        all.find_map(|import| {
            let module = self.resolve(at, &import.path.names, imports)?;
            (module != at).then(|| self.find(module, path, imports))?
        })
    }
}

impl Content<'_> {
    fn defines(&self, name: &str) -> bool {
        self.items.contains(name)
    }
}

/// The name that an item defines in its module.
fn name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn place(module: &Module, path: &Path) -> String {
    format!("{}:{}", module.file.path.display(), path.line)
}

/// Which modules of a folder use which others of it, and where.
#[derive(Default)]
struct Graph(BTreeMap<String, BTreeMap<String, Vec<String>>>);

impl Graph {
    fn add(&mut self, user: &str, used: &str, place: String) {
        let uses = self.0.entry(user.to_owned()).or_default();
        uses.entry(used.to_owned()).or_default().push(place);
    }

    /// The modules that each can be reached from all others of their component.
    fn components(&self) -> Vec<BTreeSet<&str>> {
        let reached: BTreeMap<&str, BTreeSet<&str>> = self
            .0
            .keys()
            .map(|module| (module.as_str(), self.reached(module)))
            .collect();
        let mut components: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
        for (module, below) in &reached {
            let back = below.iter().filter(|other| {
                let from_there = reached.get(*other);
                from_there.is_some_and(|from_there| from_there.contains(module))
            });
            let component: BTreeSet<&str> = back.copied().collect();
            if !component.is_empty() {
                components.insert(component);
            }
        }
        components.into_iter().collect()
    }

    fn reached(&self, from: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open = vec![from];
        while let Some(module) = open.pop() {
            for used in self.0.get(module).into_iter().flat_map(BTreeMap::keys) {
                if found.insert(used.as_str()) {
                    open.push(used);
                }
            }
        }
        found
    }

    /// The shortest way from a module back to itself, which it begins and ends with.
    fn cycle<'g>(&'g self, start: &'g str) -> Option<Vec<&'g str>> {
        let mut seen = BTreeSet::new();
        let mut open = VecDeque::from([vec![start]]);
        while let Some(way) = open.pop_front() {
            let last = *way.last()?;
            for used in self.0.get(last).into_iter().flat_map(BTreeMap::keys) {
                let longer = [way.as_slice(), &[used.as_str()]].concat();
                if used == start {
                    return Some(longer);
                }
                if seen.insert(used.as_str()) {
                    open.push_back(longer);
                }
            }
        }
        None
    }

    fn places(&self, user: &str, used: &str) -> &[String] {
        let uses = self.0.get(user).and_then(|uses| uses.get(used));
        uses.map_or(&[], Vec::as_slice)
    }
}

/// The shortest cycle of a component, each use with a place, and the rest of the component.
fn report(folder: &[String], graph: &Graph, component: &BTreeSet<&str>) -> Option<Finding> {
    let cycles = component.iter().filter_map(|module| graph.cycle(module));
    let cycle = cycles.min_by_key(Vec::len)?;
    let prefix = std::iter::once("crate").chain(folder.iter().map(String::as_str));
    let prefix = prefix.collect::<Vec<_>>().join("::");
    let uses = cycle.windows(2).filter_map(|pair| {
        let [user, used] = pair else { return None };
        let places = graph.places(user, used);
        let more = match places.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!("{user} uses {used} ({}{more})", places.first()?))
    });
    let uses = uses.collect::<Vec<_>>().join(", ");
    let rest = if component.len() + 1 > cycle.len() {
        let all = component.iter().copied().collect::<Vec<_>>().join(", ");
        format!(
            "; strongly connected: {all} ({})",
            weights(graph, component)
        )
    } else {
        String::new()
    };
    let message = format!(
        "in {prefix}, {}: {uses}{rest}. Move what two of them need below both, or hand it in",
        cycle.join(" → ")
    );
    let (path, line) = graph
        .places(cycle.first()?, cycle.get(1)?)
        .first()?
        .rsplit_once(':')?;
    let line = line.parse().ok()?;
    Some(Finding::new(
        RULE,
        std::path::Path::new(path),
        line,
        &message,
    ))
}

/// How many places each use within a component has, the fewest first: where it is quickest cut.
fn weights(graph: &Graph, component: &BTreeSet<&str>) -> String {
    let mut weights = Vec::new();
    for user in component {
        for used in component {
            match graph.places(user, used).len() {
                0 => {}
                count => weights.push((count, format!("{user} → {used} {count}"))),
            }
        }
    }
    weights.sort();
    let weights: Vec<String> = weights.into_iter().map(|(_, text)| text).collect();
    weights.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<(String, &str)> = files
            .iter()
            .map(|(name, text)| (format!("one/src/{name}"), *text))
            .collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&**name, *text)).collect();
        let found = check(&Sources::of("one", &files));
        found.into_iter().map(|finding| finding.message).collect()
    }

    const LIB: (&str, &str) = ("lib.rs", "mod a; mod b; mod c; pub use c::C;");

    #[test]
    fn a_cycle_is_reported_with_its_places() {
        let found = found(&[
            LIB,
            ("a.rs", "use crate::b::B;\nfn f() { crate::b::g(); }"),
            ("b.rs", "\nfn g(c: super::c::C) {}"),
            ("c.rs", "pub struct C(super::a::A);"),
        ]);
        let expected = "in crate, a → b → c → a: a uses b (one/src/a.rs:1 and 1 more), b uses c \
                        (one/src/b.rs:2), c uses a (one/src/c.rs:1). Move";
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(expected), "{found:?}");
    }

    #[test]
    fn a_cycle_does_not_hide_behind_the_parents_imports() {
        let found = found(&[
            LIB,
            ("a.rs", "use crate::C;"),
            ("b.rs", ""),
            ("c.rs", "use super::*; pub struct C(a::A);"),
        ]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("in crate, a → c → a"), "{found:?}");
    }

    #[test]
    fn a_parent_and_its_children_are_one() {
        let found = found(&[
            LIB,
            ("a.rs", "mod x; mod y; use x::X; pub struct A;"),
            (
                "a/x.rs",
                "use super::A; use super::super::b::B; pub struct X;",
            ),
            ("a/y.rs", "use super::x::X;"),
            ("b.rs", "use crate::c::C;"),
            ("c.rs", "pub struct C;"),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn cycles_are_found_in_every_folder_and_through_grandchildren() {
        let found = found(&[
            LIB,
            ("a.rs", "mod x; mod y;"),
            ("a/x.rs", "use super::y::Y; use crate::b::B;"),
            ("a/y.rs", "pub struct Y(super::x::X);"),
            ("b.rs", "use crate::a::x;"),
            ("c.rs", ""),
        ]);
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("in crate, a → b → a"), "{found:?}");
        assert!(found[1].starts_with("in crate::a, x → y → x"), "{found:?}");
    }

    #[test]
    fn a_component_names_all_its_modules() {
        let found = found(&[
            LIB,
            ("a.rs", "use crate::b::B;"),
            ("b.rs", "use crate::a::A; use crate::c::C;"),
            ("c.rs", "use crate::b::B;\nuse crate::b::B2;"),
        ]);
        let component = "strongly connected: a, b, c (a → b 1, b → a 1, b → c 1, c → b 2)";
        assert_eq!(found.len(), 1);
        assert!(found[0].contains(component), "{found:?}");
    }

    #[test]
    fn tests_methods_and_other_crates_are_no_use() {
        let found = found(&[
            LIB,
            ("a.rs", "use crate::b::B; use c::d; fn f() { x.b(); }"),
            (
                "b.rs",
                "#[cfg(test)] mod tests { use crate::a::A; } fn f() { y.a(); }",
            ),
            ("c.rs", "use b::d;"),
        ]);
        assert_eq!(found, [""; 0]);
    }
}
