//! The sources as the rules see them: each target's tree of modules, each file read once.
//!
//! Modules are found the way the compiler finds them, by their declarations, so a rule knows of
//! each piece of code which module it belongs to and whether anything but tests compiles it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, bail};
use syn::Item;

use super::test_code;
use crate::cargo;

/// Gives the content of a file of the workspace, whose path is relative to its root.
pub type Read<'a> = dyn Fn(&Path) -> Option<String> + 'a;

/// A file.
pub struct File {
    /// Its path from the root of the workspace.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
    /// Its content, parsed.
    pub syntax: syn::File,
}

/// A module of a crate: a file, or a block within one.
pub struct Module {
    /// Its path in the crate. The crate's root has none.
    pub path: Vec<String>,
    /// The file that it stands in.
    pub file: Rc<File>,
    /// Whether only tests compile it.
    pub test: bool,
    /// Its items without its child modules, and, unless only tests compile all of it, without what
    /// only they compile.
    pub items: Vec<Item>,
}

/// What a crate is made for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// A library or a program.
    Product,
    /// A test, a benchmark or an example.
    Proof,
}

/// What one target of a package is compiled from.
pub struct Crate {
    /// The package that it belongs to.
    pub package: String,
    /// What it is made for.
    pub role: Role,
    /// Its modules, parents before their children.
    pub modules: Vec<Module>,
}

/// The sources of a workspace.
pub struct Sources {
    /// Its crates.
    pub crates: Vec<Crate>,
}

impl Sources {
    /// Reads the targets of all packages.
    ///
    /// # Errors
    /// A file is missing or cannot be parsed.
    pub fn load(metadata: &cargo::Metadata, read: &Read<'_>) -> anyhow::Result<Self> {
        let mut loader = Loader::new(read);
        let mut crates = Vec::new();
        for package in &metadata.packages {
            for target in &package.targets {
                let root = target.src_path.strip_prefix(&metadata.workspace_root)?;
                let proof = ["test", "bench", "example"];
                let is_proof = target
                    .kind
                    .iter()
                    .any(|kind| proof.contains(&kind.as_str()));
                crates.push(Crate {
                    package: package.name.clone(),
                    role: if is_proof { Role::Proof } else { Role::Product },
                    modules: loader.load(root)?,
                });
            }
        }
        Ok(Self { crates })
    }

    /// Every file that a crate is compiled from, once, with the package that it belongs to.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Rc<File>)> {
        let mut seen = BTreeSet::new();
        let modules = self.crates.iter().flat_map(|one| {
            let package = one.package.as_str();
            one.modules
                .iter()
                .map(move |module| (package, &module.file))
        });
        modules.filter(move |(_, file)| seen.insert(&file.path))
    }

    /// The modules that are part of a library or a program, with the package of each.
    pub fn production(&self) -> impl Iterator<Item = (&str, &Module)> {
        let products = self.crates.iter().filter(|one| one.role == Role::Product);
        products.flat_map(|one| {
            let package = one.package.as_str();
            let modules = one.modules.iter().filter(|module| !module.test);
            modules.map(move |module| (package, module))
        })
    }

    /// A workspace of one package, a crate that starts with the first of `files`.
    #[cfg(test)]
    pub fn of(package: &str, files: &[(&str, &str)]) -> Self {
        let read = |path: &Path| {
            let mut files = files.iter();
            let file = files.find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        };
        let modules = Loader::new(&read).load(Path::new(files[0].0)).unwrap();
        let one = Crate {
            package: package.to_owned(),
            role: Role::Product,
            modules,
        };
        Self { crates: vec![one] }
    }
}

struct Loader<'a> {
    read: &'a Read<'a>,
    files: BTreeMap<PathBuf, Rc<File>>,
    modules: Vec<Module>,
}

/// Where items stand.
struct Place {
    path: Vec<String>,
    file: Rc<File>,
    /// Where the files of child modules are.
    directory: PathBuf,
    test: bool,
}

impl<'a> Loader<'a> {
    fn new(read: &'a Read<'a>) -> Self {
        Self {
            read,
            files: BTreeMap::new(),
            modules: Vec::new(),
        }
    }

    /// The modules of the crate that starts with the file `root`.
    fn load(&mut self, root: &Path) -> anyhow::Result<Vec<Module>> {
        let file = self.file(root)?;
        self.add(Place {
            path: Vec::new(),
            directory: parent(root),
            test: test_code::is_test_only(&file.syntax.attrs),
            file,
        })?;
        Ok(std::mem::take(&mut self.modules))
    }

    fn file(&mut self, path: &Path) -> anyhow::Result<Rc<File>> {
        if let Some(file) = self.files.get(path) {
            return Ok(Rc::clone(file));
        }
        let text = (self.read)(path).with_context(|| format!("cannot read {}", path.display()))?;
        let syntax = syn::parse_file(&text).map_err(|error| {
            let line = error.span().start().line;
            anyhow::anyhow!("{}:{line}: cannot be parsed: {error}", path.display())
        })?;
        let file = Rc::new(File {
            path: path.to_owned(),
            text,
            syntax,
        });
        self.files.insert(path.to_owned(), Rc::clone(&file));
        Ok(file)
    }

    /// Adds the module whose file is that of `place`, and its children.
    fn add(&mut self, place: Place) -> anyhow::Result<()> {
        let file = Rc::clone(&place.file);
        self.add_items(place, &file.syntax.items)
    }

    fn add_items(&mut self, place: Place, items: &[Item]) -> anyhow::Result<()> {
        let index = self.modules.len();
        self.modules.push(Module {
            path: place.path.clone(),
            file: Rc::clone(&place.file),
            test: place.test,
            items: Vec::new(),
        });
        let mut own = Vec::new();
        for item in items {
            if let Item::Mod(child) = item {
                self.add_child(&place, child)?;
            } else if place.test {
                own.push(item.clone());
            } else if !test_code::is_test_only(test_code::attributes(item)) {
                let mut item = item.clone();
                test_code::remove(&mut item);
                own.push(item);
            }
        }
        if let Some(module) = self.modules.get_mut(index) {
            module.items = own;
        }
        Ok(())
    }

    fn add_child(&mut self, place: &Place, child: &syn::ItemMod) -> anyhow::Result<()> {
        let name = child.ident.to_string();
        let mut path = place.path.clone();
        path.push(name.trim_start_matches("r#").to_owned());
        let test = place.test || test_code::is_test_only(&child.attrs);
        let here = place.directory.join(&name);
        if let Some((_, items)) = &child.content {
            let place = Place {
                path,
                file: Rc::clone(&place.file),
                directory: here,
                test,
            };
            return self.add_items(place, items);
        }
        let (found, directory) = self.locate(place, child, &here)?;
        let file = self.file(&found)?;
        self.add(Place {
            path,
            test: test || test_code::is_test_only(&file.syntax.attrs),
            file,
            directory,
        })
    }

    /// The file of a child module, and where those of its own children are. `here` is the module's
    /// path without an ending.
    fn locate(
        &self,
        place: &Place,
        child: &syn::ItemMod,
        here: &Path,
    ) -> anyhow::Result<(PathBuf, PathBuf)> {
        if let Some(given) = path_attribute(child) {
            let file = normal(&parent(&place.file.path).join(given));
            let directory = parent(&file);
            return Ok((file, directory));
        }
        for file in [here.with_extension("rs"), here.join("mod.rs")] {
            let known = self.files.contains_key(&file);
            if known || (self.read)(&file).is_some() {
                return Ok((file, here.to_owned()));
            }
        }
        let line = child.ident.span().start().line;
        let name = &child.ident;
        bail!(
            "{}:{line}: no file for mod {name}",
            place.file.path.display()
        )
    }
}

/// What `#[path = "…"]` says.
fn path_attribute(module: &syn::ItemMod) -> Option<String> {
    module
        .attrs
        .iter()
        .find_map(|attribute| match &attribute.meta {
            syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                syn::Expr::Lit(literal) => match &literal.lit {
                    syn::Lit::Str(text) => Some(text.value()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        })
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

/// The path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_their_declarations() {
        let sources = Sources::of(
            "one",
            &[
                (
                    "one/src/lib.rs",
                    "mod a; mod b; #[cfg(test)] mod c { mod d; }",
                ),
                ("one/src/a.rs", "mod inner;"),
                ("one/src/a/inner.rs", ""),
                ("one/src/b/mod.rs", "#[path = \"../../shared/e.rs\"] mod e;"),
                ("one/shared/e.rs", "mod f;"),
                ("one/shared/f.rs", ""),
                ("one/src/c/d.rs", ""),
            ],
        );
        let modules = sources.crates[0].modules.iter();
        let found: Vec<_> = modules
            .map(|module| {
                let file = module.file.path.to_str().unwrap();
                (module.path.join("::"), file, module.test)
            })
            .collect();
        let expected = [
            ("", "one/src/lib.rs", false),
            ("a", "one/src/a.rs", false),
            ("a::inner", "one/src/a/inner.rs", false),
            ("b", "one/src/b/mod.rs", false),
            ("b::e", "one/shared/e.rs", false),
            ("b::e::f", "one/shared/f.rs", false),
            ("c", "one/src/lib.rs", true),
            ("c::d", "one/src/c/d.rs", true),
        ];
        let expected = expected.map(|(path, file, test)| (path.to_owned(), file, test));
        assert_eq!(found, expected);
    }

    #[test]
    fn only_tests_own_code_is_left_out_of_a_module() {
        let text = "fn a() {} #[cfg(test)] fn b() {} #[cfg(test)] mod tests { fn c() {} }";
        let sources = Sources::of("one", &[("one/src/lib.rs", text)]);
        let counts = sources.crates[0].modules.iter();
        let counts: Vec<_> = counts.map(|module| module.items.len()).collect();
        assert_eq!(counts, [1, 1]);
    }
}
