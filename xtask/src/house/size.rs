//! Rule `size`: a file has at most [`FILE`] lines beside its tests, a file of tests at most
//! [`TEST_FILE`], a function at most [`FUNCTION`]; what is longer says why it reads better whole.
//!
//! A file gives its reason in a line of its header, `Longer than 600 lines: …` (the number is the
//! limit that it exceeds); a function in the comment above it or in its first lines. The lines of a
//! function are those from `fn` to its closing brace.

use std::collections::BTreeSet;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item};

use super::sources::{File, Sources};
use super::{Finding, test_code};

const RULE: &str = "size";

/// The most lines of a file.
const FILE: usize = 600;

/// The most lines of a file of tests.
const TEST_FILE: usize = 1200;

/// The most lines of a function.
const FUNCTION: usize = 60;

/// How many lines of a function's body may hold its reason.
const FIRST_LINES: usize = 5;

/// What is found.
pub fn check(sources: &Sources) -> Vec<Finding> {
    let production: BTreeSet<&Path> = sources
        .production()
        .map(|(_, module)| module.file.path.as_path())
        .collect();
    let files = sources.files().map(|(_, file)| file);
    let found = files.flat_map(|file| {
        let is_test = is_named_test(&file.path) || !production.contains(file.path.as_path());
        let limit = if is_test { TEST_FILE } else { FILE };
        let whole = of_file(file, limit);
        whole.into_iter().chain(of_functions(file))
    });
    found.collect()
}

fn is_named_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests")
}

fn of_file(file: &File, limit: usize) -> Option<Finding> {
    let lines = file.text.lines().count() - trailing_tests(&file.syntax.items);
    if lines <= limit {
        return None;
    }
    let header = file.text.lines().filter(|line| line.starts_with("//!"));
    if gives_reason(header, limit) {
        return None;
    }
    let message = format!(
        "{lines} lines: split what is not one thing, or say in the header `Longer than {limit} \
         lines:` and why it reads better whole"
    );
    Some(Finding::new(RULE, &file.path, 1, &message))
}

/// The lines of the module of tests that a file ends with.
fn trailing_tests(items: &[Item]) -> usize {
    let Some(Item::Mod(module)) = items.last() else {
        return 0;
    };
    let Some((braces, _)) = &module.content else {
        return 0;
    };
    if !test_code::is_test_only(&module.attrs) {
        return 0;
    }
    let first = first_line(&module.attrs, module.mod_token.span.start().line);
    braces.span.close().end().line - first + 1
}

/// The line of the first attribute, or `line` where it comes first.
fn first_line(attributes: &[Attribute], line: usize) -> usize {
    let lines = attributes
        .iter()
        .map(|one| one.pound_token.spans[0].start().line);
    lines.fold(line, usize::min)
}

fn gives_reason<'a>(mut lines: impl Iterator<Item = &'a str>, limit: usize) -> bool {
    let words = format!("Longer than {limit} lines:");
    lines.any(|line| {
        let reason = line.split_once(&words).map(|(_, reason)| reason.trim());
        reason.is_some_and(|reason| !reason.is_empty())
    })
}

fn of_functions(file: &File) -> Vec<Finding> {
    let mut finder = Finder(Vec::new());
    finder.visit_file(&file.syntax);
    let lines: Vec<&str> = file.text.lines().collect();
    let long = finder.0.into_iter().filter(|function| {
        function.length() > FUNCTION && !gives_reason(function.head(&lines), FUNCTION)
    });
    let found = long.map(|function| {
        let message = format!(
            "fn {} has {} lines: name its parts, or say above it `Longer than {FUNCTION} lines:` \
             and why it reads better whole",
            function.name,
            function.length()
        );
        Finding::new(RULE, &file.path, function.signature, &message)
    });
    found.collect()
}

/// Where a function stands, in numbers of lines.
struct Function {
    name: String,
    /// The first of its attributes and documentation.
    first: usize,
    /// `fn` and its name.
    signature: usize,
    /// The brace that opens its body.
    body: usize,
    /// The brace that closes it.
    last: usize,
}

impl Function {
    fn length(&self) -> usize {
        self.last - self.signature + 1
    }

    /// The comment above the function, and the lines that its body begins with.
    fn head<'a>(&self, lines: &[&'a str]) -> impl Iterator<Item = &'a str> {
        let above = lines.iter().take(self.first - 1).rev();
        let comments = above
            .take_while(|line| line.trim_start().starts_with("//"))
            .count();
        let first = self.first - 1 - comments;
        let last = (self.body + FIRST_LINES).min(lines.len());
        let head: Vec<&str> = lines.get(first..last).unwrap_or_default().to_vec();
        head.into_iter()
    }
}

struct Finder(Vec<Function>);

impl Finder {
    fn add(&mut self, attributes: &[Attribute], signature: &syn::Signature, block: &syn::Block) {
        let line = signature.fn_token.span.start().line;
        let braces = block.brace_token.span;
        self.0.push(Function {
            name: signature.ident.to_string(),
            first: first_line(attributes, line),
            signature: line,
            body: braces.open().start().line,
            last: braces.close().end().line,
        });
    }

    /// Functions among the arguments of a macro, such as those of a property test.
    fn add_from_macro(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match (token, tokens.get(at + 1)) {
                (TokenTree::Ident(word), Some(TokenTree::Ident(name))) if *word == "fn" => {
                    let braces = tokens.iter().skip(at).find_map(|token| match token {
                        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                            Some((group.span_open(), group.span_close()))
                        }
                        _ => None,
                    });
                    let Some((open, close)) = braces else {
                        continue;
                    };
                    let line = word.span().start().line;
                    self.0.push(Function {
                        name: name.to_string(),
                        first: line,
                        signature: line,
                        body: open.start().line,
                        last: close.end().line,
                    });
                }
                (TokenTree::Group(group), _) => self.add_from_macro(group.stream()),
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        self.add(&node.attrs, &node.sig, &node.block);
        visit::visit_item_fn(self, node);
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.add(&node.attrs, &node.sig, &node.block);
        visit::visit_impl_item_fn(self, node);
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        if let Some(block) = &node.default {
            self.add(&node.attrs, &node.sig, block);
        }
        visit::visit_trait_item_fn(self, node);
    }

    fn visit_macro(&mut self, node: &'ast syn::Macro) {
        self.add_from_macro(node.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        let found = check(&Sources::of("cnet-nat", &[(path, text)]));
        found
            .into_iter()
            .map(|finding| finding.to_string())
            .collect()
    }

    fn lines(count: usize) -> String {
        "// line\n".repeat(count)
    }

    #[test]
    fn the_tests_at_a_files_end_are_not_counted() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", lines(700));
        let text = format!("{}{tests}", lines(600));
        assert_eq!(messages("nat/src/lib.rs", &text), [""; 0]);
        let text = format!("{}{tests}", lines(601));
        let found = messages("nat/src/lib.rs", &text);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("nat/src/lib.rs:1: size: 601 lines: split"),
            "{found:?}"
        );
    }

    #[test]
    fn a_file_of_tests_may_be_twice_as_long() {
        assert_eq!(messages("nat/src/tests.rs", &lines(1200)), [""; 0]);
        assert_eq!(messages("tests/sim/main.rs", &lines(1200)), [""; 0]);
        assert_eq!(messages("nat/src/tests.rs", &lines(1201)).len(), 1);
    }

    #[test]
    fn a_reason_is_more_than_the_words_and_stands_in_the_header() {
        let with = |header: &str| messages("nat/src/lib.rs", &format!("{header}\n{}", lines(700)));
        assert_eq!(with("//! Longer than 600 lines: one table."), [""; 0]);
        assert_eq!(with("//! Longer than 600 lines:").len(), 1);
        assert_eq!(with("// Longer than 600 lines: one table.").len(), 1);
    }

    fn function(above: &str, count: usize, first: &str) -> String {
        format!(
            "struct S;\nimpl S {{\n{above}\nfn f() {{\n{first}\n{}}}\n}}",
            lines(count)
        )
    }

    #[test]
    fn a_function_is_counted_from_its_name_to_its_brace() {
        assert_eq!(messages("nat/src/lib.rs", &function("", 57, "")), [""; 0]);
        let found = messages("nat/src/lib.rs", &function("#[inline]", 58, ""));
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("nat/src/lib.rs:4: size: fn f has 61 lines"),
            "{found:?}"
        );
    }

    #[test]
    fn a_functions_reason_stands_above_it_or_in_its_first_lines() {
        let reason = "// Longer than 60 lines: one match.";
        let above = format!("{reason}\n#[inline]\n");
        assert_eq!(
            messages("nat/src/lib.rs", &function(&above, 70, "")),
            [""; 0]
        );
        let above = "/// It does.\n/// Longer than 60 lines: one match.";
        assert_eq!(
            messages("nat/src/lib.rs", &function(above, 70, "")),
            [""; 0]
        );
        assert_eq!(
            messages("nat/src/lib.rs", &function("", 70, reason)),
            [""; 0]
        );
        let far = format!("{}{reason}", lines(6));
        assert_eq!(messages("nat/src/lib.rs", &function("", 70, &far)).len(), 1);
    }

    #[test]
    fn a_function_within_a_macro_counts() {
        let text = format!("proptest! {{\nfn f(a in 0..1) {{\n{}}}\n}}", lines(70));
        assert_eq!(messages("nat/src/lib.rs", &text).len(), 1);
    }
}
