//! Programs that a test runs to their end.

use std::process::{Command, Output};

/// Runs `command` and gives back its standard output.
///
/// # Panics
/// When it cannot be started or ends with anything but 0; the text holds both output streams.
pub fn succeed(command: &mut Command) -> String {
    let output = finish(command);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `command` to its end, whatever that is.
///
/// # Panics
/// When it cannot be started.
pub fn finish(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} did not start: {error}"))
}
