//! The commands that a page of the book shows.

use std::path::{Path, PathBuf};

/// The pages about devices of the host, whose commands need a host that has them.
pub const ABOUT_DEVICES: [&str; 2] = ["docs/src/howto/sriov.md", "docs/src/howto/passthrough.md"];

/// One `$ command` of a `console` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The command, its continuation lines joined.
    pub command: String,
    /// The line of the page that it starts on, from 1.
    pub line: usize,
    /// Whether it is shown to fail: the next line is its program's error.
    pub fails: bool,
}

/// The repository's root folder.
///
/// # Panics
/// When the crate is not inside the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are a folder of the repository")
        .to_owned()
}

/// The commands in the `console` blocks of `text`, in order.
pub fn commands(text: &str) -> Vec<Shown> {
    let mut shown: Vec<Shown> = Vec::new();
    let mut in_console = false;
    let mut continues = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(fence) = line.strip_prefix("```") {
            in_console = !in_console && fence == "console";
            continues = false;
            continue;
        }
        if !in_console {
            continue;
        }
        if continues && let Some(last) = shown.last_mut() {
            last.command.push('\n');
            last.command.push_str(line);
        } else if let Some(command) = line.strip_prefix("$ ") {
            shown.push(Shown {
                command: command.to_owned(),
                line: index + 1,
                fails: false,
            });
        } else {
            if let Some(last) = shown.last_mut()
                && let Some(program) = last.command.split_whitespace().next()
                && line.starts_with(&format!("{program}: "))
            {
                last.fails = true;
            }
            continue;
        }
        continues = line.ends_with('\\');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_shown_to_fail_has_to() {
        let text = "```console\n$ sriov bind x\nsriov: no\n$ sriov list\nPF\n```\n";
        let fails: Vec<_> = commands(text).into_iter().map(|shown| shown.fails).collect();
        assert_eq!(fails, [true, false]);
    }

    #[test]
    fn takes_commands_and_leaves_their_output() {
        let text =
            "```console\n$ one\nprinted\n$ two \\\n  more\n```\n$ not this\n```yaml\n$ nor this\n```\n";
        let found: Vec<_> = commands(text).into_iter().map(|shown| shown.command).collect();
        assert_eq!(found, ["one", "two \\\n  more"]);
    }
}
