//! Tests of cnet as a whole. There is nothing here but the targets: `sim`, `alloc`, `e2e`.
#![forbid(unsafe_code)]
