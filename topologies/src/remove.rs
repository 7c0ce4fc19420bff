//! Takes a lab away: all its processes, sockets and files, whatever state it is in.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinSet;
use vswitch::daemon::{self, DaemonError};
use vswitch::run_dir::BridgeDir;

use crate::control;
use crate::passthrough::{self, PrepareError};
use crate::paths::LabDir;
use crate::process::{self, ProcessError};
use crate::progress::Progress;
use crate::state::{Role, State};

/// How long a process between a machine and a switch may take to end.
const ISOLATE_GRACE: Duration = Duration::from_secs(2);

/// A part of the lab is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A switch.
    #[error("switch {0}: {1}")]
    Switch(String, #[source] DaemonError),
    /// A device of the host is not as it was.
    #[error(transparent)]
    Device(#[from] PrepareError),
    /// The lab's folder.
    #[error("cannot remove {0}: {1}")]
    Folder(PathBuf, #[source] io::Error),
}

/// Removes the lab. Its machines are asked to power off and given `grace` for that; with no grace they are just ended.
pub async fn remove(
    state: &State,
    dir: &LabDir,
    grace: Duration,
    progress: &Progress,
) -> Result<(), RemoveError> {
    power_off(state, dir, grace, progress).await?;
    for process in &state.processes {
        if let Role::Isolate { .. } = process.role {
            process.id.end(ISOLATE_GRACE).await?;
        }
    }
    for switch in &state.lab.switches {
        let bridge = state.lab.bridge(&switch.name);
        let step = progress.step(format!("switch {}", switch.name), "stopping");
        // One that does not end by itself is ended below.
        if let Err(error) = bridge_down(&bridge).await {
            tracing::debug!("{bridge}: {error}");
        }
        step.done("down");
    }
    // Processes that nobody had time to write down, and whatever did not end by itself. One may be starting another.
    loop {
        let left = process::marked(&state.mark);
        if left.is_empty() {
            break;
        }
        for process in left {
            process.end(Duration::ZERO).await?;
        }
    }
    for switch in &state.lab.switches {
        let bridge = state.lab.bridge(&switch.name);
        bridge_down(&bridge)
            .await
            .map_err(|error| RemoveError::Switch(switch.name.clone(), error))?;
    }
    passthrough::give_back(state, progress).await?;
    match std::fs::remove_dir_all(dir.path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RemoveError::Folder(dir.path().to_path_buf(), error))
        }
        _ => Ok(()),
    }
}

/// Ends a switch and removes its files; fine if there is none.
async fn bridge_down(bridge: &str) -> Result<(), DaemonError> {
    let dir = BridgeDir::new(bridge)?;
    if !dir.exists() {
        return Ok(());
    }
    match daemon::down(&dir).await {
        Ok(()) | Err(DaemonError::NotUp(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Powers all machines off at once.
async fn power_off(
    state: &State,
    dir: &LabDir,
    grace: Duration,
    progress: &Progress,
) -> Result<(), ProcessError> {
    let mut machines = JoinSet::new();
    for node in &state.lab.nodes {
        let Some(process) = state
            .node_process(&node.name)
            .filter(|process| process.is_alive())
        else {
            continue;
        };
        let step = progress.step(format!("node {}", node.name), "powering off");
        let dir = dir.node(&node.name);
        let engine = state.engine_of(node);
        machines.spawn(async move {
            let asked = match engine {
                Some(engine) if !grace.is_zero() => {
                    control::press_power_button(engine, &dir, process).await
                        && process.ended_within(grace).await
                }
                _ => false,
            };
            if !asked {
                process.end(Duration::ZERO).await?;
            }
            step.done(if asked { "powered off" } else { "ended" });
            Ok::<(), ProcessError>(())
        });
    }
    let mut result = Ok(());
    while let Some(ended) = machines.join_next().await {
        if let Ok(Err(error)) = ended {
            result = Err(error);
        }
    }
    result
}
