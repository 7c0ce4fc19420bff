//! Where the binaries under test are, and how a test runs one.

use std::path::{Path, PathBuf};
use std::process::Command;

pub use netyard_testkit::command::{finish, succeed};

/// The path of one of the project's binaries, built beside the running test.
///
/// # Panics
/// When the binary is missing: `make build` makes it.
pub fn path(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the running test has a path");
    let path = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file());
    path.unwrap_or_else(|| panic!("{name} is not built: run `make build` first"))
}

/// A command for one of the project's binaries that keeps its state in `run_dir`.
pub fn command(name: &str, run_dir: &Path) -> Command {
    command_of(&path(name), run_dir)
}

/// The same for a program somewhere else.
pub fn command_of(program: &Path, run_dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("NETYARD_RUN_DIR", run_dir);
    command
}

/// Whether a program of the machine is on the search path.
pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}
