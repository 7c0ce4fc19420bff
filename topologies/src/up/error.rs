//! Why a lab could not be started.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::engine::EngineError;
use crate::image::ImageError;
use crate::lock::LockError;
use crate::passthrough::PrepareError;
use crate::process::ProcessError;
use crate::programs::ProgramError;
use crate::remove::RemoveError;
use crate::state::StateError;

/// A lab could not be started; nothing of it was left, unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// It runs already.
    #[error("lab {0} is up already; use `lab status --lab {0}`, or `lab down --lab {0}` first")]
    AlreadyUp(String),
    /// Another `lab` is at it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its state cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// No engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A program is missing.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// An image is missing.
    #[error(transparent)]
    Image(Box<ImageError>),
    /// A device of the host could not be prepared.
    #[error(transparent)]
    Device(#[from] PrepareError),
    /// A process could not be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A folder could not be made.
    #[error("cannot write {0}: {1}")]
    Folder(PathBuf, #[source] io::Error),
    /// Signals cannot be watched.
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] io::Error),
    /// A process cannot be waited for.
    #[error("cannot wait for a process: {0}")]
    Wait(#[source] io::Error),
    /// A switch did not start.
    #[error("switch {switch} did not start: {text}")]
    Switch {
        /// The switch.
        switch: String,
        /// Why.
        text: String,
    },
    /// A process between a NIC and a switch ended.
    #[error("the process between NIC {port} and its switch ended ({status}){}", Log(.log))]
    Isolate {
        /// The NIC's switch port.
        port: String,
        /// How it ended.
        status: String,
        /// What it said last.
        log: Vec<String>,
    },
    /// A machine's process ended.
    #[error("node {node} stopped before it was ready ({status}){}", Log(.log))]
    Stopped {
        /// The node.
        node: String,
        /// How it ended.
        status: ExitStatus,
        /// What the monitor and the console said last.
        log: Vec<String>,
    },
    /// The guest's kernel gave up.
    #[error("the kernel of node {node} panicked{}", Log(.log))]
    Panicked {
        /// The node.
        node: String,
        /// What the console said last.
        log: Vec<String>,
    },
    /// A guest takes too long.
    #[error("node {node} was not ready within {seconds} s; give it more with --timeout{}", Log(.log))]
    Late {
        /// The node.
        node: String,
        /// The limit.
        seconds: u64,
        /// What the console said last.
        log: Vec<String>,
    },
    /// The switch has no queues of a NIC.
    #[error("NIC {nic} had no link within {seconds} s on switch {bridge}{}", Log(.log))]
    NoLink {
        /// The NIC's switch port.
        nic: String,
        /// Its switch.
        bridge: String,
        /// The limit.
        seconds: u64,
        /// What the console and the switch said last.
        log: Vec<String>,
    },
    /// The user or the system wants an end.
    #[error("interrupted; everything that was started has been stopped")]
    Interrupted,
    /// An earlier, interrupted start or stop left something that cannot be removed.
    #[error("what an interrupted `lab` left cannot be removed: {0}")]
    Remains(#[source] Box<RemoveError>),
    /// It failed, and not everything could be removed.
    #[error("{0}; and something stays behind: {1}; try `lab down` later")]
    Left(Box<UpError>, #[source] Box<RemoveError>),
}

impl From<ImageError> for UpError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

/// The end of a log below a message.
struct Log<'a>(&'a [String]);

impl fmt::Display for Log<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.0 {
            write!(f, "\n  | {line}")?;
        }
        Ok(())
    }
}
