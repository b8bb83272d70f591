//! Benchmarks of the hot paths of cnet. There is nothing here but the targets: `hot_paths`, `scale`.
