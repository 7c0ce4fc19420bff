//! Why a command failed, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use crate::agent::AgentError;
use crate::console::ConsoleError;
use crate::down::DownError;
use crate::emulated::HostError;
use crate::engine::EngineError;
use crate::image::ImageError;
use crate::initramfs::BuildError;
use crate::measure::MeasureError;
use crate::passthrough::PrepareError;
use crate::problem::Refused;
use crate::state::StateError;
use crate::up::UpError;

/// The command failed.
pub(super) const FAILED: u8 = 1;
/// The host does not permit what was asked.
const REFUSED_BY_HOST: u8 = 3;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    File(#[from] Refused),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Up(Box<UpError>),
    #[error(transparent)]
    Down(Box<DownError>),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(
        "{0} cannot be seen in the emulated host, which has its own /dev, /proc and /sys; move it elsewhere"
    )]
    Hidden(PathBuf),
    #[error("lab {0} ran in an emulated host that has ended; `lab down --lab {0}` forgets it")]
    Gone(String),
    #[error("no lab is up; start one with `lab up FILE`")]
    NoneUp,
    #[error("lab {0} is not up; start it with `lab up FILE`, see `lab list`")]
    NotUp(String),
    #[error("several labs are up: {0}; say which with --lab NAME or --file FILE")]
    Several(String),
    #[error("lab {lab} has no node {node}{near} (nodes: {known})")]
    NoNode {
        lab: String,
        node: String,
        near: String,
        known: String,
    },
    #[error("node {0} has no agent; its image is not one of ours, so use `lab console {0}`")]
    NoAgent(String),
    #[error("nodes {0} and {1} have no addresses on a common switch; give both an `ip`")]
    NoCommonSwitch(String, String),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    #[error("cannot write the output: {0}")]
    Json(#[from] serde_json::Error),
}

impl CliError {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Engine(error) if error.is_the_hosts() => REFUSED_BY_HOST,
            Self::Up(error) => match &**error {
                UpError::Engine(error) if error.is_the_hosts() => REFUSED_BY_HOST,
                UpError::Device(PrepareError::Host(_)) => REFUSED_BY_HOST,
                _ => FAILED,
            },
            _ => FAILED,
        }
    }
}

impl From<DownError> for CliError {
    fn from(error: DownError) -> Self {
        Self::Down(Box::new(error))
    }
}

impl From<UpError> for CliError {
    fn from(error: UpError) -> Self {
        Self::Up(Box::new(error))
    }
}
