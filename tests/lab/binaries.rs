//! Where the programs under test are.

use std::path::PathBuf;

/// The program `name`: in the directory that `CNET_BIN_DIR` names, or else in the build directory
/// that this test stands in, where `cargo build` with the test's own profile puts it.
pub fn binary(name: &str) -> PathBuf {
    let directory = match std::env::var_os("CNET_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let test = std::env::current_exe().expect("the path of the test");
            let build = test.parent().and_then(|deps| deps.parent());
            build.expect("a build directory").to_owned()
        }
    };
    let program = directory.join(name);
    assert!(
        program.is_file(),
        "{} is not built; cargo build --release --bins builds it, and CNET_BIN_DIR names its directory",
        program.display()
    );
    program
}
