//! How counters are declared: a struct of numbers, each with its name in reports.

/// Declares a `#[non_exhaustive]` struct of counters. `add` adds what another worker counted, `iter`
/// gives every counter under its name in reports.
macro_rules! counters {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$field_doc:meta])* $field:ident = $label:literal,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct $name { $($(#[$field_doc])* pub $field: u64,)* }

        impl $name {
            /// Adds what another worker counted.
            pub fn add(&mut self, other: &$name) {
                $(self.$field += other.$field;)*
            }

            /// Every counter under its name in reports.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$(($label, self.$field)),*].into_iter()
            }
        }
    };
}
