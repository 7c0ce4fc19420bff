//! What a serial port can be connected to.

use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::output::Output;
use super::{SerialConfig, SerialError};
use crate::listener::Listener;

/// The other ends of a serial port, opened.
#[derive(Debug)]
pub struct Ends {
    kind: Kind,
    log: Option<File>,
}

#[derive(Debug)]
enum Kind {
    Stdio,
    Pty {
        controller: OwnedFd,
        user: OwnedFd,
        name: PathBuf,
    },
    File(File),
    Socket(Listener),
}

/// Where input comes from.
#[derive(Debug)]
pub(super) enum Source {
    Stdin(Option<RawMode>),
    /// The user side is kept open, so that the pseudo-terminal outlives those who open and close it.
    Pty {
        controller: OwnedFd,
        user: OwnedFd,
    },
    Socket(Listener),
}

fn append(path: &Path) -> Result<File, SerialError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|e| SerialError::End(path.display().to_string(), e))
}

impl Ends {
    /// Opens what `config` names; `log` gets a copy of all output. `None` without a serial port.
    pub fn open(config: &SerialConfig, log: Option<&Path>) -> Result<Option<Self>, SerialError> {
        let kind = match config {
            SerialConfig::Off => return Ok(None),
            SerialConfig::Stdio => Kind::Stdio,
            SerialConfig::Pty => open_pty().map_err(|e| SerialError::End("pty".to_owned(), e.into()))?,
            SerialConfig::File(path) => Kind::File(append(path)?),
            SerialConfig::Socket(path) => Kind::Socket(Listener::bind(path)?),
        };
        Ok(Some(Self {
            kind,
            log: log.map(append).transpose()?,
        }))
    }

    /// The name of the pseudo-terminal, if it is one.
    pub fn pty_name(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Pty { name, .. } => Some(name),
            _ => None,
        }
    }

    pub(super) fn split(self, panic_seen: Arc<AtomicBool>) -> Result<(Output, Option<Source>), SerialError> {
        let output = |fd: Option<OwnedFd>| Output::new(fd, self.log, panic_seen);
        Ok(match self.kind {
            Kind::Stdio => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
                (output(Some(stdout)), Some(Source::Stdin(RawMode::enter())))
            }
            Kind::Pty { controller, user, .. } => {
                let writer = controller.try_clone()?;
                (output(Some(writer)), Some(Source::Pty { controller, user }))
            }
            Kind::File(file) => (output(Some(file.into())), None),
            Kind::Socket(listener) => (output(None), Some(Source::Socket(listener))),
        })
    }
}

fn open_pty() -> rustix::io::Result<Kind> {
    let controller = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&controller)?;
    rustix::pty::unlockpt(&controller)?;
    let name = rustix::pty::ptsname(&controller, Vec::new())?;
    let path = PathBuf::from(name.to_string_lossy().into_owned());
    let user = rustix::fs::open(
        &path,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let mut settings = tcgetattr(&user)?;
    settings.make_raw();
    tcsetattr(&user, OptionalActions::Now, &settings)?;
    rustix::fs::fcntl_setfl(&controller, OFlags::RDWR | OFlags::NONBLOCK)?;
    Ok(Kind::Pty {
        controller,
        user,
        name: path,
    })
}

/// The terminal of standard input in raw mode, until dropped.
#[derive(Debug)]
pub(super) struct RawMode(Termios);

impl RawMode {
    /// `None` if standard input is no terminal.
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output goes on as it was: log lines of ours share the terminal.
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
