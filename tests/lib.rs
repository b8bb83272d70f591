//! What the tests of cnet as a whole share: the laboratory of namespaces ([`lab`]). The tests are the
//! targets beside it: `sim`, `alloc`, `e2e`, `faults`, `hostile`.
#![forbid(unsafe_code)]

pub mod lab;
