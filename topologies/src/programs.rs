//! Finds the programs that `lab` starts.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A folder in which Netyard's own programs may be.
const LIBEXEC: &str = "NETYARD_LIBEXEC";

/// A program is not installed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// One of ours.
    #[error(
        "`{0}` is neither beside `lab`, nor in {LIBEXEC}, nor in PATH; build it with `make build` or install it"
    )]
    Ours(String),
    /// One of the system's.
    #[error("`{0}` is not in PATH; install the package {1}")]
    Theirs(String, &'static str),
}

/// Finds one of Netyard's own programs: beside this one, in `NETYARD_LIBEXEC`, else in `PATH`.
pub fn own(name: &str) -> Result<PathBuf, ProgramError> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.to_path_buf()));
    let libexec = std::env::var_os(LIBEXEC)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    beside
        .into_iter()
        .chain(libexec)
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
        .or_else(|| in_path(name))
        .ok_or_else(|| ProgramError::Ours(name.to_owned()))
}

/// Finds a program of the system's package `package`.
pub fn system(name: &str, package: &'static str) -> Result<PathBuf, ProgramError> {
    in_path(name).ok_or_else(|| ProgramError::Theirs(name.to_owned(), package))
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
