//! Rule `unsafe`: the word stands in the kernel's package alone, and there each block and each
//! `impl` says why it is sound.
//!
//! The word is looked for among the tokens of a file, so it is found in macros and in tests, and not
//! in comments and text.

use proc_macro2::{Delimiter, LineColumn, TokenStream, TokenTree};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Finding;
use super::plan::{self, Kind};
use super::sources::{File, Sources};

const RULE: &str = "unsafe";

/// What is found.
pub fn check(sources: &Sources) -> Vec<Finding> {
    let files = sources.files();
    let found = files.flat_map(|(package, file)| {
        let may = plan::find(package).is_some_and(|planned| planned.kind == Kind::Kernel);
        if may {
            undocumented(file)
        } else {
            foreign(file)
        }
    });
    found.collect()
}

/// The uses of a file that may have none.
fn foreign(file: &File) -> Vec<Finding> {
    let words = words(file).into_iter().map(|word| {
        let message = "`unsafe` outside tap: move what needs it there, behind a safe function";
        Finding::new(RULE, &file.path, word.place.line, message)
    });
    words.collect()
}

/// The blocks of a file without their reason.
fn undocumented(file: &File) -> Vec<Finding> {
    let mut statements = Statements(Vec::new());
    statements.visit_file(&file.syntax);
    let lines: Vec<&str> = file.text.lines().collect();
    let words = words(file).into_iter().filter(|word| {
        let around = statements.0.iter();
        let around = around.filter(|(first, last)| (*first..=*last).contains(&word.place));
        // Of the statements around the word, the innermost is the one that begins last.
        let start = around.map(|(first, _)| first.line).max();
        let may_stand_at = [Some(word.place.line), start];
        let mut may_stand_at = may_stand_at.into_iter().flatten();
        word.needs_reason && !may_stand_at.any(|line| has_reason(&lines, line))
    });
    let found = words.map(|word| {
        let message = "`unsafe` without its reason: say in a `// SAFETY:` comment above it why it \
                       is sound";
        Finding::new(RULE, &file.path, word.place.line, message)
    });
    found.collect()
}

/// Whether line number `line`, or the comments and attributes right above it, give a reason.
fn has_reason(lines: &[&str], line: usize) -> bool {
    let gives = |line: &str| line.contains("// SAFETY:");
    let own = lines.get(line - 1).is_some_and(|line| gives(line));
    let above = lines.iter().take(line - 1).rev().map(|line| line.trim());
    let mut above = above.take_while(|line| line.starts_with("//") || line.starts_with("#["));
    own || above.any(gives)
}

/// Where the statements, and what else a reason may stand above, begin and end.
struct Statements(Vec<(LineColumn, LineColumn)>);

impl Statements {
    fn add(&mut self, node: &impl Spanned) {
        let span = node.span();
        self.0.push((span.start(), span.end()));
    }
}

impl<'ast> Visit<'ast> for Statements {
    fn visit_stmt(&mut self, node: &'ast syn::Stmt) {
        self.add(node);
        visit::visit_stmt(self, node);
    }

    fn visit_item(&mut self, node: &'ast syn::Item) {
        self.add(node);
        visit::visit_item(self, node);
    }

    fn visit_impl_item(&mut self, node: &'ast syn::ImplItem) {
        self.add(node);
        visit::visit_impl_item(self, node);
    }

    fn visit_arm(&mut self, node: &'ast syn::Arm) {
        self.add(node);
        visit::visit_arm(self, node);
    }

    fn visit_field_value(&mut self, node: &'ast syn::FieldValue) {
        self.add(node);
        visit::visit_field_value(self, node);
    }
}

/// A use of the word.
struct Word {
    place: LineColumn,
    /// Whether it opens a block or stands before an `impl`, where the author asserts soundness.
    needs_reason: bool,
}

fn words(file: &File) -> Vec<Word> {
    let mut found = Vec::new();
    scan(file.syntax.to_token_stream(), &mut found);
    found
}

fn scan(tokens: TokenStream, found: &mut Vec<Word>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(ident) if ident == "unsafe" => found.push(Word {
                place: ident.span().start(),
                needs_reason: match tokens.peek() {
                    Some(TokenTree::Group(group)) => group.delimiter() == Delimiter::Brace,
                    Some(TokenTree::Ident(next)) => next == "impl",
                    _ => false,
                },
            }),
            TokenTree::Group(group) => scan(group.stream(), found),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines;
    use super::*;

    #[test]
    fn the_word_is_found_wherever_it_is_code() {
        let text = "#![forbid(unsafe_code)]
            // unsafe
            /// unsafe
            fn a() { let _ = \"unsafe\"; m!(unsafe { b() }); }
            unsafe fn b() {}
            #[cfg(test)]
            mod tests { unsafe impl Send for S {} }";
        let sources = Sources::of("cnet-nat", &[("nat/src/lib.rs", text)]);
        assert_eq!(lines(&check(&sources)), [4, 5, 7]);
    }

    #[test]
    fn the_kernels_package_gives_its_reasons() {
        let text = "
            fn a() {
                // SAFETY: it is.
                let b = unsafe { c() };
                let d = unsafe { c() };
                // SAFETY: it is, over two
                // lines.
                let e = f(
                    1,
                    unsafe { c() },
                );
                g(unsafe { c() }); // SAFETY: it is.
                match h {
                    // SAFETY: it is.
                    1 => unsafe { c() },
                    _ => unsafe { c() },
                }
            }
            unsafe fn i() {}
            unsafe impl Send for S {}";
        let sources = Sources::of("cnet-tap", &[("tap/src/lib.rs", text)]);
        assert_eq!(lines(&check(&sources)), [5, 16, 20]);
    }
}
