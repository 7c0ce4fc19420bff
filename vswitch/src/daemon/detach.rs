//! Starting a daemon that outlives the command, and ending one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::DaemonError;
use crate::client::{Client, ClientError};
use crate::model::BridgeView;
use crate::run_dir::{BridgeDir, RunDirError};

/// How long a daemon may take to answer its API.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a daemon may take to end after it was told to.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// The part of the log that may explain a failed start.
const LOG_TAIL: u64 = 4096;

/// Starts the daemon as a process of its own and returns when its API answers. `args` are the arguments
/// after `up BRIDGE`.
pub async fn start_detached(dir: &BridgeDir, args: &[String]) -> Result<BridgeView, DaemonError> {
    wait_for_the_dying(dir).await?;
    dir.create()?;
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(dir.log())
        .map_err(|error| RunDirError::Io("open", dir.log(), error))?;
    let log_start = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let mut child = spawn(dir, args, &log).map_err(|error| DaemonError::Io("start the daemon", error))?;
    let client = Client::new(dir.name())?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match client.bridge().await {
            Ok(view) if view.pid == child.id() => return Ok(view),
            _ => {}
        }
        let ended = child
            .try_wait()
            .map_err(|error| DaemonError::Io("watch the daemon", error))?;
        if ended.is_some() {
            let reason = last_line(&mut log, log_start).unwrap_or_else(|| "it gave no reason".to_owned());
            return Err(DaemonError::NotStarted(dir.name().to_owned(), reason));
        }
        if Instant::now() >= deadline {
            stop(&mut child);
            let reason = format!(
                "its API did not answer within {} s; see {}",
                START_LIMIT.as_secs(),
                dir.log().display()
            );
            return Err(DaemonError::NotStarted(dir.name().to_owned(), reason));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A daemon that was just killed keeps its claim until its last thread is gone: that is waited for. One that
/// lives is not.
async fn wait_for_the_dying(dir: &BridgeDir) -> Result<(), DaemonError> {
    let deadline = Instant::now() + END_LIMIT;
    while let Some(pid) = dir.live_pid() {
        if !is_dying(&pid) || Instant::now() >= deadline {
            let name = dir.name().to_owned();
            return Err(RunDirError::Live { name, pid }.into());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Whether a process is gone but for its remains.
fn is_dying(pid: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // The state follows the name, which is in brackets and may hold anything.
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    state.starts_with(['Z', 'X'])
}

fn spawn(dir: &BridgeDir, args: &[String], log: &File) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["up", dir.name(), "--foreground", "--new-session"])
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
}

fn stop(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::debug!("the daemon could not be stopped: {error}");
    }
}

/// The last line the daemon wrote, without the command's own prefix.
fn last_line(log: &mut File, start: u64) -> Option<String> {
    let end = log.seek(SeekFrom::End(0)).ok()?;
    log.seek(SeekFrom::Start(start.max(end.saturating_sub(LOG_TAIL))))
        .ok()?;
    let mut text = Vec::new();
    log.take(LOG_TAIL).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().trim_start_matches("vswitch: ").to_owned())
}

/// Ends a bridge's daemon and removes its files; also cleans up after one that was killed.
pub async fn down(dir: &BridgeDir) -> Result<(), DaemonError> {
    let Some(pid) = dir.live_pid() else {
        if dir.exists() {
            return remove_stale(dir);
        }
        return Err(DaemonError::NotUp(dir.name().to_owned()));
    };
    let asked = Client::new(dir.name())?.shut_down(false).await;
    if let Err(ClientError::NotUp(_) | ClientError::Transport(..)) = asked {
        // It lives but does not answer: it is starting or stuck.
        terminate(&pid);
    }
    let deadline = Instant::now() + END_LIMIT;
    while dir.live_pid().is_some() {
        if Instant::now() >= deadline {
            return Err(DaemonError::NotEnded(dir.name().to_owned(), pid));
        }
        tokio::time::sleep(LOOK).await;
    }
    if dir.exists() { remove_stale(dir) } else { Ok(()) }
}

/// Removes what a killed daemon left, unless a new one took the bridge meanwhile.
fn remove_stale(dir: &BridgeDir) -> Result<(), DaemonError> {
    let claim = dir.claim()?;
    dir.remove()?;
    claim.release();
    Ok(())
}

fn terminate(pid: &str) {
    let target = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
    if let Some(target) = target
        && let Err(error) = rustix::process::kill_process(target, rustix::process::Signal::TERM)
    {
        tracing::debug!("pid {pid} could not be signalled: {error}");
    }
}
