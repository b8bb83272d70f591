//! Tells the code that only tests compile from the rest, and takes it out.

use syn::visit_mut::{self, VisitMut};
use syn::{Attribute, ImplItem, Item, Meta, Stmt, TraitItem};

/// Whether one of `attributes` keeps what it stands on out of everything but tests.
pub fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<Meta>()
                .is_ok_and(|predicate| implies_test(&predicate))
    })
}

/// Whether a predicate of `cfg` can only hold where `test` does.
fn implies_test(predicate: &Meta) -> bool {
    let Meta::List(list) = predicate else {
        return predicate.path().is_ident("test");
    };
    let parser = syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated;
    let Ok(parts) = list.parse_args_with(parser) else {
        return false;
    };
    if list.path.is_ident("all") {
        parts.iter().any(implies_test)
    } else {
        list.path.is_ident("any") && !parts.is_empty() && parts.iter().all(implies_test)
    }
}

/// Takes out of `item` what only tests compile.
pub fn remove(item: &mut Item) {
    Remover.visit_item_mut(item);
}

struct Remover;

impl VisitMut for Remover {
    fn visit_item_mod_mut(&mut self, module: &mut syn::ItemMod) {
        if let Some((_, items)) = &mut module.content {
            items.retain(|item| !is_test_only(attributes(item)));
        }
        visit_mut::visit_item_mod_mut(self, module);
    }

    fn visit_item_impl_mut(&mut self, block: &mut syn::ItemImpl) {
        block.items.retain(|item| {
            let attributes = match item {
                ImplItem::Const(item) => &item.attrs,
                ImplItem::Fn(item) => &item.attrs,
                ImplItem::Type(item) => &item.attrs,
                ImplItem::Macro(item) => &item.attrs,
                _ => return true,
            };
            !is_test_only(attributes)
        });
        visit_mut::visit_item_impl_mut(self, block);
    }

    fn visit_item_trait_mut(&mut self, definition: &mut syn::ItemTrait) {
        definition.items.retain(|item| {
            let attributes = match item {
                TraitItem::Const(item) => &item.attrs,
                TraitItem::Fn(item) => &item.attrs,
                TraitItem::Type(item) => &item.attrs,
                TraitItem::Macro(item) => &item.attrs,
                _ => return true,
            };
            !is_test_only(attributes)
        });
        visit_mut::visit_item_trait_mut(self, definition);
    }

    fn visit_block_mut(&mut self, block: &mut syn::Block) {
        block.stmts.retain(|statement| {
            let attributes = match statement {
                Stmt::Local(local) => local.attrs.as_slice(),
                Stmt::Item(item) => attributes(item),
                Stmt::Macro(call) => call.attrs.as_slice(),
                Stmt::Expr(syn::Expr::Block(block), _) => block.attrs.as_slice(),
                Stmt::Expr(..) => return true,
            };
            !is_test_only(attributes)
        });
        visit_mut::visit_block_mut(self, block);
    }
}

/// The attributes of an item of any kind.
pub fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use quote::ToTokens;

    use super::*;

    fn test_only(attribute: &str) -> bool {
        let item: Item = syn::parse_str(&format!("{attribute} struct S;")).unwrap();
        is_test_only(attributes(&item))
    }

    #[test]
    fn a_predicate_is_tests_own_where_it_cannot_hold_without_them() {
        assert!(test_only("#[cfg(test)]"));
        assert!(test_only("#[cfg(all(test, unix))]"));
        assert!(test_only("#[cfg(any(test, all(unix, test)))]"));
        assert!(!test_only("#[cfg(any(test, feature = \"testing\"))]"));
        assert!(!test_only("#[cfg(not(test))]"));
        assert!(!test_only("#[derive(Debug)]"));
    }

    #[test]
    fn tests_are_taken_out_of_blocks_and_bodies() {
        let source = "impl S { #[cfg(test)] fn a() {} fn b() { #[cfg(test)] let c = 1; d() } }";
        let mut item: Item = syn::parse_str(source).unwrap();
        remove(&mut item);
        let kept: Item = syn::parse_str("impl S { fn b() { d() } }").unwrap();
        assert_eq!(
            item.to_token_stream().to_string(),
            kept.to_token_stream().to_string()
        );
    }
}
