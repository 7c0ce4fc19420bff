//! Waits for a machine to be ready.

use std::process::Child;
use std::time::{Duration, Instant};

use super::{LOOK, TAIL, UpError};
use crate::agent::Agent;
use crate::control;
use crate::engine::EngineKind;
use crate::plan::NodePlan;
use crate::process::tail;
use crate::progress::Step;

/// How often the console is searched for a panic.
const CONSOLE_LOOK: Duration = Duration::from_millis(250);
/// What Linux says when it gives up.
const PANIC: &str = "Kernel panic - not syncing";

/// Returns when the machine is ready: its monitor answers, and then its agent if it has one.
pub(super) async fn ready(
    node: NodePlan,
    engine: EngineKind,
    mut child: Child,
    deadline: Instant,
    limit: Duration,
    step: Step,
) -> Result<(), UpError> {
    let answering = async {
        while !control::answers(engine, &node.dir).await {
            tokio::time::sleep(LOOK).await;
        }
        if node.agent {
            let channels = node.dir.channels();
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if let Ok(mut agent) = Agent::connect(&channels, left).await
                    && agent.ping(left).await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    };
    let log = || tail(&node.dir.serial_log(), TAIL);
    tokio::select! {
        () = answering => {}
        failed = failure(&node, &mut child) => return Err(failed),
        () = tokio::time::sleep_until(deadline.into()) => {
            return Err(UpError::Late { node: node.name.clone(), seconds: limit.as_secs(), log: log() });
        }
    }
    let pid = child.id();
    step.done(&if node.agent {
        format!("ready (pid {pid})")
    } else {
        format!("running (pid {pid})")
    });
    Ok(())
}

/// Returns when the machine cannot become ready any more.
async fn failure(node: &NodePlan, child: &mut Child) -> UpError {
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                let mut log = tail(&node.dir.serial_log(), TAIL);
                log.extend(tail(&node.dir.log(), TAIL));
                return UpError::Stopped {
                    node: node.name.clone(),
                    status: status.to_string(),
                    log,
                };
            }
            Err(error) => return UpError::Wait(error),
        }
        let console = std::fs::read(node.dir.serial_log()).unwrap_or_default();
        if String::from_utf8_lossy(&console).contains(PANIC) {
            return UpError::Panicked {
                node: node.name.clone(),
                log: tail(&node.dir.serial_log(), TAIL),
            };
        }
        tokio::time::sleep(CONSOLE_LOOK).await;
    }
}
