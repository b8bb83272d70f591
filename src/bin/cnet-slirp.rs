//! `cnet-slirp`: a drop-in for `slirp4netns`.
fn main() {}
