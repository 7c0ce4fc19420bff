//! Waits for a machine to be ready.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vswitch::client::Client;
use vswitch::model::PortState;
use vswitch::run_dir::BridgeDir;

use super::{Deadline, LOOK, TAIL, UpError};
use crate::agent::Agent;
use crate::control;
use crate::engine::EngineKind;
use crate::plan::{NicPlan, NodePlan};
use crate::process::tail;
use crate::progress::Step;

/// How often the console is searched for a panic.
const CONSOLE_LOOK: Duration = Duration::from_millis(250);
/// Lines of the console in which the panic is looked for: a stack and more.
const PANIC_TAIL: usize = 100;
/// What Linux says when it gives up.
const PANIC: &str = "Kernel panic - not syncing";

/// Returns when the machine is ready: its monitor answers, and then its agent if it has one.
pub(super) async fn ready(
    node: NodePlan,
    engine: EngineKind,
    mut child: Child,
    deadline: Deadline,
    step: Step,
) -> Result<(), UpError> {
    // Tells a guest that does not boot from one that has no network.
    let greeted = AtomicBool::new(false);
    let answering = async {
        while !control::answers(engine, &node.dir).await {
            tokio::time::sleep(LOOK).await;
        }
        if node.agent {
            agent_answers(&node, deadline.at).await;
            greeted.store(true, Ordering::Relaxed);
            links_up(&node).await;
        }
    };
    tokio::select! {
        () = answering => {}
        failed = failure(&node, &mut child) => return Err(failed),
        () = tokio::time::sleep_until(deadline.at.into()) => {
            return Err(late(&node, greeted.load(Ordering::Relaxed), deadline.limit).await);
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

/// Whether a process gave up on itself, as a failed assertion does.
pub(super) fn aborted(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::ABORT.as_raw())
}

async fn agent_answers(node: &NodePlan, deadline: Instant) {
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

/// Why the machine is not ready in time.
async fn late(node: &NodePlan, greeted: bool, limit: Duration) -> UpError {
    for nic in &node.nics {
        if greeted && !link_up(nic).await {
            return UpError::NoLink {
                nic: nic.port.clone(),
                bridge: nic.bridge.clone(),
                seconds: limit.as_secs(),
                log: switch_log(&nic.bridge),
            };
        }
    }
    UpError::Late {
        node: node.name.clone(),
        seconds: limit.as_secs(),
        log: tail(&node.dir.serial_log(), TAIL),
    }
}

fn switch_log(bridge: &str) -> Vec<String> {
    BridgeDir::new(bridge)
        .map(|dir| tail(&dir.log(), TAIL))
        .unwrap_or_default()
}

/// Our image's init sets every NIC up, so every switch port gets queues to serve.
async fn links_up(node: &NodePlan) {
    for nic in &node.nics {
        while !link_up(nic).await {
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn link_up(nic: &NicPlan) -> bool {
    let Ok(client) = Client::new(&nic.bridge) else {
        return false;
    };
    client
        .port(&nic.port)
        .await
        .is_ok_and(|port| port.state == PortState::Up)
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
                    status,
                    log,
                };
            }
            Err(error) => return UpError::Wait(error),
        }
        let console = std::fs::read(node.dir.serial_log()).unwrap_or_default();
        if String::from_utf8_lossy(&console).contains(PANIC) {
            return UpError::Panicked {
                node: node.name.clone(),
                log: around_panic(tail(&node.dir.serial_log(), PANIC_TAIL)),
            };
        }
        tokio::time::sleep(CONSOLE_LOOK).await;
    }
}

/// The panic's own line and what led to it; the stack below it says nothing to a user.
fn around_panic(mut lines: Vec<String>) -> Vec<String> {
    if let Some(at) = lines.iter().position(|line| line.contains(PANIC)) {
        lines.truncate(at + 1);
    }
    lines.split_off(lines.len().saturating_sub(TAIL))
}
