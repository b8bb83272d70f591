//! The project's scripts: `cargo xtask test` is the one test command.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("usage: cargo xtask test")
}
