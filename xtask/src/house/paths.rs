//! The paths in a piece of code, as `a::b::c` with the line of each: those that it imports, and
//! those that stand in its text, in the arguments of macros too.

use proc_macro2::{Spacing, TokenStream, TokenTree};
use quote::ToTokens;
use syn::visit::{self, Visit};
use syn::{Item, UseTree};

/// A path and the line that it begins on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Path {
    /// Its names, without a leading `::`.
    pub names: Vec<String>,
    /// Its line in the file.
    pub line: usize,
}

/// An imported path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Import {
    /// What the code calls it; none where everything below the path is imported.
    pub name: Option<String>,
    /// What it is.
    pub path: Path,
}

/// All that the items import, also within their bodies.
pub fn imports(items: &[Item]) -> Vec<Import> {
    let mut finder = Finder(Vec::new());
    for item in items {
        finder.visit_item(item);
    }
    finder.0
}

struct Finder(Vec<Import>);

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add(&item.tree, &mut Vec::new());
        visit::visit_item_use(self, item);
    }
}

impl Finder {
    fn add(&mut self, tree: &UseTree, prefix: &mut Vec<String>) {
        let (name, line) = match tree {
            UseTree::Path(path) => {
                prefix.push(plain(&path.ident));
                self.add(&path.tree, prefix);
                prefix.pop();
                return;
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add(tree, prefix);
                }
                return;
            }
            UseTree::Glob(glob) => {
                let path = Path {
                    names: prefix.clone(),
                    line: glob.star_token.spans[0].start().line,
                };
                self.0.push(Import { name: None, path });
                return;
            }
            UseTree::Name(name) => (plain(&name.ident), line(&name.ident)),
            UseTree::Rename(name) => {
                prefix.push(plain(&name.ident));
                let path = Path {
                    names: prefix.clone(),
                    line: line(&name.ident),
                };
                prefix.pop();
                let name = Some(plain(&name.rename));
                self.0.push(Import { name, path });
                return;
            }
        };
        let mut names = prefix.clone();
        // `use a::{self}` imports `a`.
        let own = if name == "self" && !names.is_empty() {
            names.last().cloned()
        } else {
            names.push(name.clone());
            Some(name)
        };
        let path = Path { names, line };
        self.0.push(Import { name: own, path });
    }
}

fn plain(ident: &proc_macro2::Ident) -> String {
    let name = ident.to_string();
    name.trim_start_matches("r#").to_owned()
}

fn line(ident: &proc_macro2::Ident) -> usize {
    ident.span().start().line
}

/// The paths in the text of the items, single names among them, but for what they import. What
/// stands behind a dot or before a colon is a field or a method, and no path.
pub fn mentions(items: &[Item]) -> Vec<Path> {
    let mut found = Vec::new();
    for item in items {
        scan(item.to_token_stream(), &mut found);
    }
    found
}

fn scan(tokens: TokenStream, found: &mut Vec<Path>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Group(group) => scan(group.stream(), found),
            TokenTree::Ident(ident) if *ident == "use" && !is_punct(&tokens, at + 1, '<') => {
                // The import ends with the semicolon.
                while at < tokens.len() && !is_punct(&tokens, at, ';') {
                    at += 1;
                }
            }
            TokenTree::Ident(ident) => {
                let path = path(&tokens, &mut at, ident);
                let is_field = path.names.len() == 1
                    && (is_punct(&tokens, at + 1, ':') && !is_separator(&tokens, at + 1));
                if !is_field {
                    found.push(path);
                }
            }
            TokenTree::Punct(punct) if punct.as_char() == '.' && !is_range(&tokens, at) => {
                // The name of a field or a method.
                if let Some(TokenTree::Ident(_)) = tokens.get(at + 1) {
                    at += 1;
                }
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        at += 1;
    }
}

/// The path that begins with `first` at `at`, which is moved to its last name.
fn path(tokens: &[TokenTree], at: &mut usize, first: &proc_macro2::Ident) -> Path {
    let mut names = vec![plain(first)];
    while is_separator(tokens, *at + 1) {
        let Some(TokenTree::Ident(next)) = tokens.get(*at + 3) else {
            break;
        };
        names.push(plain(next));
        *at += 3;
    }
    Path {
        names,
        line: line(first),
    }
}

fn is_punct(tokens: &[TokenTree], at: usize, wanted: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether `::` stands at `at`.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let joint = matches!(tokens.get(at), Some(TokenTree::Punct(punct))
        if punct.as_char() == ':' && punct.spacing() == Spacing::Joint);
    joint && is_punct(tokens, at + 1, ':')
}

/// Whether the dot at `at` is the last of `..`, which a path may follow.
fn is_range(tokens: &[TokenTree], at: usize) -> bool {
    at > 0 && is_punct(tokens, at - 1, '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Vec<Item> {
        syn::parse_file(text).unwrap().items
    }

    #[test]
    fn imports_are_spelt_out() {
        let text = "use a::{b, c::{self, d as e}};\nfn f() { use super::*; }";
        let found = imports(&items(text));
        let found: Vec<_> = found
            .into_iter()
            .map(|import| {
                let path = import.path.names.join("::");
                (import.name, path, import.path.line)
            })
            .collect();
        let named = |name: &str| Some(name.to_owned());
        let expected = [
            (named("b"), "a::b".to_owned(), 1),
            (named("c"), "a::c".to_owned(), 1),
            (named("e"), "a::c::d".to_owned(), 1),
            (None, "super".to_owned(), 2),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn paths_are_found_in_macros_and_not_in_fields_or_text() {
        let text = "
            use skipped::this;
            // and::this
            fn f(x: ::a::B) {
                x.y.z(\"q::r\");
                m!(g::h, .., c::D { e: i::J });
                for k in 0..l::M {}
            }";
        let found = mentions(&items(text));
        let paths = found.iter().filter(|path| path.names.len() > 1);
        let paths: Vec<_> = paths
            .map(|path| (path.names.join("::"), path.line))
            .collect();
        let expected = [
            ("a::B", 4),
            ("g::h", 6),
            ("c::D", 6),
            ("i::J", 6),
            ("l::M", 7),
        ];
        let expected = expected.map(|(path, line)| (path.to_owned(), line));
        assert_eq!(paths, expected);
        let fields = ["y", "z", "e"];
        let mut single = found.iter().filter(|path| path.names.len() == 1);
        assert!(single.all(|path| !fields.contains(&path.names[0].as_str())));
    }
}
