//! Replacing a bridge's daemon while the bridge is in use: see [`crate::handover`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::handover;
use crate::model::Restarted;
use crate::run_dir::{BridgeDir, Claim};
use crate::switch::{Switch, SwitchError};

/// How long each step of the other daemon may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A bridge was not passed on.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// The new daemon does not start; nothing was stopped for it.
    #[error("{} cannot take the bridge: {error}; nothing was changed", program.display())]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The new daemon started, and then did not go on.
    #[error("{} did not take the bridge: {error}; it goes on with the daemon it had, see its log", program.display())]
    NotTaken {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There is no daemon on the other end of the standard input.
    #[error("cannot take the bridge over: {0}; use `vswitch restart`, which starts this program")]
    NoState(#[source] io::Error),
    /// The bridge cannot be gone on with.
    #[error(transparent)]
    Switch(#[from] SwitchError),
}

/// What is passed on beside the bridge itself.
#[derive(Debug)]
pub struct Restarter {
    dir: BridgeDir,
    listener: OwnedFd,
    claim: Claim,
}

impl Restarter {
    pub(super) fn new(dir: &BridgeDir, claim: &Claim, listener: &UnixListener) -> io::Result<Self> {
        Ok(Self {
            dir: dir.clone(),
            listener: listener.as_fd().try_clone_to_owned()?,
            claim: Claim::take_over(claim.share()?),
        })
    }

    /// Has a new process of `program` go on with the bridge. When this succeeds, this process has only to end.
    pub fn restart(&self, switch: &Switch, program: &Path) -> Result<Restarted, RestartError> {
        let not_started = |error| RestartError::NotStarted {
            program: program.to_owned(),
            error,
        };
        let (socket, theirs) = UnixStream::pair().map_err(not_started)?;
        socket
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| socket.set_write_timeout(Some(PATIENCE)))
            .map_err(not_started)?;
        let mut child = Command::new(program)
            .args(["up", self.dir.name(), "--foreground", "--take-over"])
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(not_started)?;
        if let Err(error) = handover::wait_ready(&socket) {
            end(&mut child);
            return Err(not_started(error));
        }
        let start = Instant::now();
        let passed = switch.hand_over(|state, fds| {
            let passed = self
                .shared(fds)
                .and_then(|fds| handover::send(&socket, state, &fds))
                .and_then(|()| handover::wait_done(&socket));
            if passed.is_err() {
                // It must be gone before anybody else touches the rings.
                end(&mut child);
                if let Err(error) = self.claim.sign() {
                    tracing::warn!("the pid file could not be written: {error}");
                }
            }
            passed
        });
        passed.map_err(|error| RestartError::NotTaken {
            program: program.to_owned(),
            error,
        })?;
        Ok(Restarted {
            pid: child.id(),
            stopped_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// The bridge's descriptors after our own.
    fn shared(&self, fds: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
        let own = [self.listener.try_clone(), self.claim.share()].into_iter();
        own.chain(fds.iter().map(OwnedFd::try_clone)).collect()
    }
}

fn end(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::debug!("the new daemon could not be ended: {error}");
    }
}

/// A bridge that was taken over.
pub(super) struct Taken {
    pub(super) switch: Switch,
    pub(super) claim: Claim,
    pub(super) listener: UnixListener,
}

/// Takes the bridge over from the daemon on the other end of the standard input, which has yet to be told.
pub(super) fn take_over(dir: &BridgeDir) -> Result<(Taken, UnixStream), RestartError> {
    let input = io::stdin().as_fd().try_clone_to_owned();
    let socket = UnixStream::from(input.map_err(RestartError::NoState)?);
    socket
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| handover::say_ready(&socket))
        .map_err(RestartError::NoState)?;
    let (state, mut fds) = handover::receive(&socket).map_err(RestartError::NoState)?;
    if fds.len() < 2 {
        let error = io::Error::other("there is no API socket and no claim in it");
        return Err(RestartError::NoState(error));
    }
    let rest = fds.split_off(2);
    let (Some(claim), Some(listener)) = (fds.pop(), fds.pop()) else {
        return Err(RestartError::NoState(io::Error::other("descriptors are missing")));
    };
    let switch = Switch::take_over(dir.name(), state, rest, Some(dir.clone()))?;
    let claim = Claim::take_over(claim);
    claim.sign().map_err(RestartError::NoState)?;
    let taken = Taken {
        switch,
        claim,
        listener: UnixListener::from(listener),
    };
    Ok((taken, socket))
}
