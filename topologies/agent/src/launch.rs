//! The short-lived process between the agent and a command: it starts a session of its own, takes the terminal, enters the
//! root directory and becomes the command. A process of its own does this so that nothing has to run between `fork` and
//! `exec` of a program with threads.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// The first argument that makes the agent's program a launcher.
pub const ARGUMENT: &str = "--launch";

/// Exit code when the command cannot be run, as in a shell.
const CANNOT_RUN: i32 = 126;
/// Exit code when there is no such command, as in a shell.
const NOT_FOUND: i32 = 127;

/// What the launcher does before it becomes the command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// Make this the root directory.
    pub root: Option<PathBuf>,
    /// Go there; the first that exists of this, `/root` and `/`.
    pub cwd: Option<PathBuf>,
    /// Standard input is a terminal: make it the controlling one.
    pub tty: bool,
    /// The program and its arguments.
    pub argv: Vec<OsString>,
}

impl Launch {
    /// The arguments that [`Launch::from_arguments`] understands.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![OsString::from(ARGUMENT)];
        if let Some(root) = &self.root {
            arguments.extend(["--root".into(), root.into()]);
        }
        if let Some(cwd) = &self.cwd {
            arguments.extend(["--cwd".into(), cwd.into()]);
        }
        if self.tty {
            arguments.push("--tty".into());
        }
        arguments.push("--".into());
        arguments.extend(self.argv.iter().cloned());
        arguments
    }

    /// Read the arguments after [`ARGUMENT`]; `None` if they are not of this program's making.
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut launch = Self::default();
        let mut arguments = arguments.into_iter();
        loop {
            let argument = arguments.next()?;
            match argument.to_str()? {
                "--root" => launch.root = Some(arguments.next()?.into()),
                "--cwd" => launch.cwd = Some(arguments.next()?.into()),
                "--tty" => launch.tty = true,
                "--" => break,
                _ => return None,
            }
        }
        launch.argv = arguments.collect();
        (!launch.argv.is_empty()).then_some(launch)
    }

    /// Become the command. Comes back only to tell the exit code of a failure, which it has already reported.
    pub fn run(&self) -> i32 {
        if let Err(error) = self.prepare() {
            eprintln!("netyard-agent: cannot prepare the command's session: {error}");
            return CANNOT_RUN;
        }
        let Some((program, arguments)) = self.argv.split_first() else {
            return CANNOT_RUN;
        };
        let error = Command::new(program).args(arguments).exec();
        eprintln!("netyard-agent: cannot run {}: {error}", program.display());
        if error.kind() == io::ErrorKind::NotFound {
            NOT_FOUND
        } else {
            CANNOT_RUN
        }
    }

    fn prepare(&self) -> io::Result<()> {
        rustix::process::setsid()?;
        if self.tty {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some(root) = &self.root {
            rustix::process::chroot(root)?;
            std::env::set_current_dir("/")?;
        }
        match &self.cwd {
            Some(cwd) => std::env::set_current_dir(cwd).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("working directory {}: {error}", cwd.display()),
                )
            }),
            None => std::env::set_current_dir("/root").or_else(|_| std::env::set_current_dir("/")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_read_back_as_they_were() {
        let launch = Launch {
            root: Some("/host".into()),
            cwd: Some("/tmp/a b".into()),
            tty: true,
            argv: vec!["--".into(), "--tty".into(), "-c".into()],
        };
        let arguments = launch.to_arguments();
        assert_eq!(arguments[0], ARGUMENT);
        assert_eq!(
            Launch::from_arguments(arguments.into_iter().skip(1)),
            Some(launch)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in [&["--root"][..], &["--what", "--", "sh"], &["--tty"], &["--"]] {
            assert_eq!(Launch::from_arguments(arguments.iter().map(OsString::from)), None);
        }
    }
}
