//! What is known of a lab while it runs, kept in its folder so that any later `lab` finds it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::EngineKind;
use crate::lab::{Lab, Node};
use crate::passthrough::{Device, Physical};
use crate::paths::{LabDir, RunDir};
use crate::process::ProcessId;

/// Version of the file's form.
const VERSION: u32 = 1;

/// How far a lab has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// `lab up` is at work, or was interrupted.
    Starting,
    /// `lab up` has finished.
    Running,
    /// `lab down` is at work, or was interrupted.
    Stopping,
}

/// Where a lab runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    /// This machine
    #[default]
    Native,
    /// A machine with hardware virtualization, emulated on this one
    Emulated,
}

/// What a process does for the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs a machine.
    Node {
        /// The machine's name.
        node: String,
    },
    /// Stands between a machine's NIC and its switch.
    Isolate {
        /// The switch port.
        port: String,
    },
}

/// One process of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it does.
    pub role: Role,
    /// Which process it is.
    pub id: ProcessId,
}

/// A lab's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The lab as it was started; its file may have changed since.
    pub lab: Lab,
    /// The file that it was started from.
    pub file: PathBuf,
    /// How far it has come.
    pub phase: Phase,
    /// Where it runs.
    pub host: HostKind,
    /// What runs its machines, but for those that say otherwise; `None` when another host knows.
    pub engine: Option<EngineKind>,
    /// The mark that all its processes carry.
    pub mark: String,
    /// Processes of machines and between machines and switches. Switches know themselves.
    pub processes: Vec<Process>,
    /// Devices of the host that its machines have, or are about to have.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Physical functions that were changed for it.
    #[serde(default)]
    pub physical: Vec<Physical>,
}

/// The state could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("cannot {0} {1}: {2}")]
    Io(&'static str, PathBuf, #[source] io::Error),
    /// The file is no state of this version.
    #[error("{0} is damaged or of another version ({1}); stop the lab with the `lab` that started it")]
    Damaged(PathBuf, String),
}

impl State {
    /// The state of a lab of which nothing runs yet.
    pub fn new(lab: Lab, file: &Path, host: HostKind, engine: Option<EngineKind>) -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        // Unique on this host: no two labs are started by the same process.
        let mark = format!("{}-{}-{}", lab.name, std::process::id(), now.as_nanos());
        Self {
            version: VERSION,
            lab,
            file: file.to_path_buf(),
            phase: Phase::Starting,
            host,
            engine,
            mark,
            processes: Vec::new(),
            devices: Vec::new(),
            physical: Vec::new(),
        }
    }

    /// Reads a lab's state; `None` if the lab is not up.
    pub fn load(dir: &LabDir) -> Result<Option<Self>, StateError> {
        let path = dir.state();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::Io("read", path, error)),
        };
        let state: Self = serde_json::from_str(&text)
            .map_err(|error| StateError::Damaged(path.clone(), error.to_string()))?;
        if state.version != VERSION {
            return Err(StateError::Damaged(path, format!("version {}", state.version)));
        }
        Ok(Some(state))
    }

    /// Keeps the state. A reader sees the former state or this one, whole.
    pub fn save(&self, dir: &LabDir) -> Result<(), StateError> {
        let path = dir.state();
        let refused = |error| StateError::Io("write", path.clone(), error);
        let text = serde_json::to_vec_pretty(self).map_err(|error| refused(error.into()))?;
        let next = path.with_extension("json.new");
        fs::write(&next, text).map_err(refused)?;
        fs::rename(&next, &path).map_err(refused)
    }

    /// What runs `node`; `None` when another host knows.
    pub fn engine_of(&self, node: &Node) -> Option<EngineKind> {
        self.engine.map(|usual| node.engine.unwrap_or(usual))
    }

    /// The process that runs `node`.
    pub fn node_process(&self, node: &str) -> Option<ProcessId> {
        self.processes
            .iter()
            .find(|process| matches!(&process.role, Role::Node { node: name } if name == node))
            .map(|process| process.id)
    }
}

/// The names of all labs of which something may run, in order.
pub fn names(run: &RunDir) -> Result<Vec<String>, StateError> {
    let folder = run.labs();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StateError::Io("list", folder, error)),
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("state.json").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}
