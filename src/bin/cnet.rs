//! `cnet`: networks of containers for a person at a terminal.
fn main() {}
