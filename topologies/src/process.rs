//! Processes that outlive this one: started apart from the terminal, known by pid and start time, ended for sure.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// The variable by which the processes of a lab are known, even those that nobody wrote down.
const MARK: &str = "NETYARD_LAB";

/// How often a process that is to end is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How long the kernel may take to end a process that was killed.
const KILLED: Duration = Duration::from_secs(10);

/// One process. A pid alone could be another's by the time that it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since the system did.
    pub start: u64,
}

/// A process could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Its log could not be made.
    #[error("cannot write {0}: {1}")]
    Log(PathBuf, #[source] io::Error),
    /// The system refused to run it.
    #[error("cannot run {0}: {1}")]
    Spawn(PathBuf, #[source] io::Error),
    /// It is still there.
    #[error("process {0} does not end, even when killed; see `cat /proc/{0}/stack`")]
    Unkillable(u32),
}

impl ProcessId {
    /// The process that has `pid` now; `None` if there is none, or only its exit status is left.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start: start_time(&stat)?,
        })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal to this very process; false if it has ended.
    pub fn signal(self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return false;
        };
        // The descriptor holds on to one process: checked after it was opened, it cannot be another's.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        self.is_alive() && pidfd_send_signal(&descriptor, signal).is_ok()
    }

    /// Waits until it has ended; false if it has not within `limit`.
    pub async fn ended_within(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// Ends it: kindly at first if `grace` is not zero.
    pub async fn end(self, grace: Duration) -> Result<(), ProcessError> {
        if !grace.is_zero() && self.signal(Signal::TERM) && self.ended_within(grace).await {
            return Ok(());
        }
        self.signal(Signal::KILL);
        if self.ended_within(KILLED).await {
            Ok(())
        } else {
            Err(ProcessError::Unkillable(self.pid))
        }
    }
}

/// Field 22 of `/proc/PID/stat`, unless the process is a zombie. The name in field 2 may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A process to start.
#[derive(Debug)]
pub struct Start<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [OsString],
    /// Where its output goes.
    pub log: &'a Path,
    /// The lab's mark.
    pub mark: &'a str,
    /// The run folder, for programs of ours that it starts in turn.
    pub run: &'a Path,
}

impl Start<'_> {
    /// The command, not started: marked, apart from the terminal.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command
            .args(self.arguments)
            .env(MARK, self.mark)
            .env("NETYARD_RUN_DIR", self.run)
            .current_dir("/")
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Starts it; its output goes to the log.
    pub fn spawn(&self) -> Result<Child, ProcessError> {
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(self.log)
        };
        let log = |error| ProcessError::Log(self.log.to_path_buf(), error);
        self.command()
            .stdout(open().map_err(log)?)
            .stderr(open().map_err(log)?)
            .spawn()
            .map_err(|error| ProcessError::Spawn(self.program.to_path_buf(), error))
    }
}

/// Every process that carries the mark.
pub fn marked(mark: &str) -> Vec<ProcessId> {
    let wanted = format!("{MARK}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| pid != std::process::id())
        .filter_map(ProcessId::of)
        .filter(|process| {
            // Other users' processes cannot be read, and are not ours.
            let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            environment
                .split(|&byte| byte == 0)
                .any(|variable| variable == wanted.as_bytes())
        })
        .collect()
}

/// The last lines of a log, to explain a failure once the log itself is gone.
pub fn tail(log: &Path, lines: usize) -> Vec<String> {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let printable = |line: &str| {
        line.chars()
            .filter(|c| !c.is_control() || *c == '\t')
            .collect::<String>()
            .trim_end()
            .to_owned()
    };
    let mut last: Vec<String> = text
        .lines()
        .rev()
        .map(printable)
        .filter(|line| !line.is_empty())
        .take(lines)
        .collect();
    last.reverse();
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path, mark: &str) -> Child {
        Start {
            program: Path::new("/bin/sh"),
            arguments: &["-c".into(), "echo started; sleep 1000 & wait".into()],
            log: &folder.join("log"),
            mark,
            run: folder,
        }
        .spawn()
        .unwrap()
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time(&stat.replace(" S ", " Z ")), None);
        assert_eq!(start_time("7 (a"), None);
    }

    #[tokio::test]
    async fn a_marked_process_and_its_children_are_found_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mark = format!("test-{}", std::process::id());
        let mut child = sleeper(folder.path(), &mark);
        let process = ProcessId::of(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while marked(&mark).len() < 2 {
            assert!(
                Instant::now() < deadline,
                "the shell starts a child that carries the mark"
            );
            tokio::time::sleep(LOOK).await;
        }
        for process in marked(&mark) {
            process.end(Duration::ZERO).await.unwrap();
        }
        assert!(!process.is_alive());
        assert!(marked(&mark).is_empty());
        child.wait().unwrap();
        assert_eq!(tail(&folder.path().join("log"), 5), ["started"]);
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_touched() {
        let me = ProcessId::of(std::process::id()).unwrap();
        let before = ProcessId {
            start: me.start - 1,
            ..me
        };
        assert!(me.is_alive());
        assert!(!before.is_alive());
        assert!(!before.signal(Signal::KILL));
    }
}
