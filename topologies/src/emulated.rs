//! The emulated host: a machine with hardware virtualization, on a computer without.
//!
//! QEMU's software CPU emulates AMD SVM, so that a stock Debian kernel inside has a real `/dev/kvm` and our `vmm` runs unchanged.
//! The outer machine's root is there too, read-only, so every program installed or built outside runs inside; what is written
//! stays in the emulated host's memory. One such host serves all labs and tests of a user, until `lab host down`.

mod boot;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, AgentError, Channels, Exec, Input, Output};
use crate::initramfs::BuildError;
use crate::initramfs::cache::Cache;
use crate::lock::make_folder;
use crate::paths::MAX_SOCKET_PATH;
use crate::process::{ProcessError, ProcessId, tail};
use crate::programs::ProgramError;

/// Commands that can run in it at once.
pub const CHANNELS: u8 = 16;

/// Memory if nothing else is asked for. From 2816 MiB on some of it is above 4 GiB; then the firmware puts large PCI windows
/// there, too, where the virtual functions of QEMU's `igb` do not answer.
pub const DEFAULT_MEMORY_MIB: u32 = 2800;

/// How long it may take to boot on a busy machine.
const BOOT: Duration = Duration::from_mins(3);

/// How long one that is up may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// How long to wait for another `lab` that boots or stops it.
const TURN: Duration = Duration::from_mins(4);

/// How often something awaited is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Where the outer machine's root is inside, whatever has been mounted over it.
const OUTER: &str = "/run/outer";
/// Has the kernel inside forget which names stand for which files. The first time only takes
/// the mark of recent use from the overlay's names, the second frees them and with them their hold on the names of 9p, which
/// then take two times as well. Contents stay cached: a file that changed outside is another file to 9p.
const FORGET_NAMES: &str = "for i in 1 2 3 4; do echo 2 > /proc/sys/vm/drop_caches; done";

/// Why there is no emulated host to work with.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// QEMU is missing.
    #[error("the emulated host needs QEMU: {0}")]
    NoQemu(#[from] ProgramError),
    /// QEMU cannot tell its version.
    #[error("cannot run `qemu-system-x86_64 --version`: {0}")]
    Version(io::Error),
    /// QEMU is too old.
    #[error(
        "QEMU {found} is too old for the emulated host, which needs {needed}; on Debian 12 install qemu-system-x86 from bookworm-backports"
    )]
    OldQemu {
        /// What is there.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// This machine is too small.
    #[error(
        "the emulated host wants {wanted} MiB of memory and {available} MiB are available; end other programs or ask for less with --memory"
    )]
    Memory {
        /// Its memory.
        wanted: u32,
        /// What is left here.
        available: u64,
    },
    /// Its kernel and initial RAM file system cannot be made.
    #[error("cannot build the emulated host's image: {0}")]
    Build(#[from] BuildError),
    /// Its folder cannot be used.
    #[error("cannot use {path}: {source}; check that it is yours and writable")]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its sockets have paths that are too long.
    #[error("the run folder {0} is too long for sockets in it; set NETYARD_RUN_DIR to a shorter one")]
    LongPath(PathBuf),
    /// Somebody else is at it.
    #[error("another `lab` has been starting or stopping the emulated host for {} s; see {log}", TURN.as_secs())]
    Locked {
        /// Its console.
        log: PathBuf,
    },
    /// It cannot be started or stopped.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It stopped while booting.
    #[error("the emulated host stopped while it booted; the end of {log}:\n{last}")]
    Died {
        /// Its console.
        log: PathBuf,
        /// The end of it.
        last: String,
    },
    /// It boots and its agent does not answer.
    #[error("the emulated host does not come up: {source}; the end of {log}:\n{last}")]
    Silent {
        /// Why.
        source: AgentError,
        /// Its console.
        log: PathBuf,
        /// The end of it.
        last: String,
    },
    /// It has no `/dev/kvm`.
    #[error("the emulated host has no /dev/kvm: {0}")]
    NoKvm(String),
    /// It is not up.
    #[error("the emulated host is not up; start it with `lab host up`")]
    Down,
    /// Its agent failed.
    #[error("emulated host: {0}")]
    Agent(#[from] AgentError),
}

/// What is written down about a running one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// QEMU.
    pub process: ProcessId,
    /// Its memory.
    pub memory_mib: u32,
    /// The image it was booted from.
    pub image: String,
    /// The release of its kernel.
    pub kernel: String,
}

/// How a [`Host`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It does not run.
    Down,
    /// It runs and its agent answers.
    Up(Record),
    /// It runs and its agent does not answer.
    Silent(Record),
}

/// The emulated host of one run folder, running or not.
#[derive(Debug, Clone)]
pub struct Host {
    folder: PathBuf,
    channels: Channels,
    kernel_words: String,
}

impl Host {
    /// This user's.
    pub fn of_user() -> Self {
        let run = vswitch::run_dir();
        Self::in_folder(std::path::absolute(&run).unwrap_or(run).join("emulated-host"))
    }

    /// One with its files in `folder`.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self {
            channels: Channels::new(&folder, CHANNELS),
            folder,
            kernel_words: String::new(),
        }
    }

    /// The same, booted with `words` added to its kernel command line if it is not up yet.
    #[must_use]
    pub fn with_kernel_words(mut self, words: &str) -> Self {
        words.clone_into(&mut self.kernel_words);
        self
    }

    /// What it prints on its console.
    pub fn log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    fn record_file(&self) -> PathBuf {
        self.folder.join("host.json")
    }

    fn qemu_log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// The socket of QEMU's monitor, for tests that break its hardware or look into its memory.
    pub fn monitor(&self) -> PathBuf {
        self.folder.join("monitor.sock")
    }

    /// What is on its `NVMe` drive.
    fn drive(&self) -> PathBuf {
        self.folder.join("nvme.img")
    }

    /// The record of a running one.
    fn record(&self) -> Option<Record> {
        let text = fs::read(self.record_file()).ok()?;
        serde_json::from_slice::<Record>(&text)
            .ok()
            .filter(|record| record.process.is_alive())
    }

    /// How it is.
    pub async fn status(&self) -> Status {
        match self.record() {
            None => Status::Down,
            Some(record) if self.answers(ANSWER).await.is_ok() => Status::Up(record),
            Some(record) => Status::Silent(record),
        }
    }

    async fn answers(&self, limit: Duration) -> Result<(), AgentError> {
        match Agent::connect(&self.channels, limit).await {
            // All channels being in use, somebody is served.
            Ok(_) | Err(AgentError::Busy { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Boot it unless it is up. `progress` hears each step.
    pub async fn up(
        &self,
        memory_mib: u32,
        cache: &Cache,
        progress: &dyn Fn(&str),
    ) -> Result<Record, HostError> {
        make_folder(&self.folder).map_err(|source| HostError::Folder {
            path: self.folder.clone(),
            source,
        })?;
        let _turn = self.turn(progress).await?;
        if let Some(record) = self.record() {
            if self.answers(ANSWER).await.is_ok() {
                return Ok(record);
            }
            progress("the emulated host does not answer: starting it again");
            self.end(record.process).await?;
        }
        let longest = self.channels.socket(CHANNELS - 1);
        if longest.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(HostError::LongPath(self.folder.clone()));
        }
        let boot = boot::Boot::prepare(memory_mib, cache, progress)?;
        progress("booting the emulated host");
        let started = Instant::now();
        let mut qemu = boot.start(self)?;
        let Some(process) = ProcessId::of(qemu.id()) else {
            return Err(self.died());
        };
        let record = boot.record(process);
        if let Err(error) = self.become_ready(&record, &mut qemu).await {
            self.end(process).await?;
            return Err(error);
        }
        progress(&format!(
            "the emulated host is up after {:.1} s",
            started.elapsed().as_secs_f64()
        ));
        Ok(record)
    }

    async fn become_ready(&self, record: &Record, qemu: &mut std::process::Child) -> Result<(), HostError> {
        self.write_record(record)?;
        let answers = self.answers(BOOT);
        let died = async {
            while matches!(qemu.try_wait(), Ok(None)) {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            result = answers => result.map_err(|source| HostError::Silent { source, log: self.log(), last: self.last_words() })?,
            () = died => return Err(self.died()),
        }
        let check = "test -c /dev/kvm || { dmesg | grep -i -e kvm -e svm; exit 1; }";
        let output = self.output(&["sh", "-c", check]).await?;
        if output.code == 0 {
            return Ok(());
        }
        Err(HostError::NoKvm(
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ))
    }

    fn died(&self) -> HostError {
        HostError::Died {
            log: self.log(),
            last: self.last_words(),
        }
    }

    fn last_words(&self) -> String {
        let mut lines = tail(&self.log(), 10);
        lines.extend(tail(&self.qemu_log(), 5));
        lines.join("\n")
    }

    fn write_record(&self, record: &Record) -> Result<(), HostError> {
        let path = self.record_file();
        let partial = path.with_extension("partial");
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &path))
            .map_err(|source| HostError::Folder { path, source })
    }

    /// Stop it; false if it was not running. What runs inside ends with it.
    pub async fn down(&self, progress: &dyn Fn(&str)) -> Result<bool, HostError> {
        if !self.folder.exists() {
            return Ok(false);
        }
        let _turn = self.turn(progress).await?;
        let record = self.record();
        if let Some(record) = &record {
            progress("stopping the emulated host");
            self.end(record.process).await?;
        }
        self.clean();
        // After an orderly end nobody has to be told what happened.
        for log in [self.log(), self.qemu_log()] {
            let _ = fs::remove_file(log);
        }
        Ok(record.is_some())
    }

    async fn end(&self, process: ProcessId) -> Result<(), HostError> {
        // Nothing inside outlives it, so there is nothing to save: QEMU stops at once when asked.
        process.end(Duration::from_secs(5)).await?;
        self.clean();
        Ok(())
    }

    /// Remove everything but the lock, which others may be waiting for, and the logs, which tell what happened.
    fn clean(&self) {
        let _ = fs::remove_file(self.record_file());
        let _ = fs::remove_file(self.drive());
        let _ = fs::remove_file(self.monitor());
        for index in 0..CHANNELS {
            let _ = fs::remove_file(self.channels.socket(index));
        }
    }

    /// Wait to be the only one that starts or stops it, for as long as the value lives.
    async fn turn(&self, progress: &dyn Fn(&str)) -> Result<fs::File, HostError> {
        let path = self.folder.join("lock");
        let refused = |source| HostError::Folder {
            path: path.clone(),
            source,
        };
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(refused)?;
        let deadline = Instant::now() + TURN;
        let mut told = false;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(HostError::Locked { log: self.log() }),
                Err(error) => return Err(refused(error.into())),
            }
            if !std::mem::replace(&mut told, true) {
                progress("waiting for another `lab` that starts or stops the emulated host");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A session with it, for a command of any length. [`Host::up`] has to come first.
    pub async fn connect(&self) -> Result<Agent, HostError> {
        if self.record().is_none() {
            return Err(HostError::Down);
        }
        let mut agent = Agent::connect(&self.channels, ANSWER).await?;
        self.refresh(&mut agent).await?;
        Ok(agent)
    }

    /// Run a short command and return its output and exit code.
    pub async fn output(&self, argv: &[&str]) -> Result<Output, HostError> {
        let mut agent = self.connect().await?;
        let exec = Exec {
            argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
            ..Exec::default()
        };
        Ok(agent.output(&exec, Input::Empty).await?)
    }

    /// See the outer machine's files as they are now, not as they were when they were last looked at.
    async fn refresh(&self, agent: &mut Agent) -> Result<(), HostError> {
        let exec = Exec {
            argv: ["sh", "-c", FORGET_NAMES].map(Into::into).into(),
            ..Exec::default()
        };
        agent.output(&exec, Input::Empty).await?;
        Ok(())
    }
}

/// Every absolute path of a list like `PATH`, as it is inside; whatever else a variable holds stays.
fn paths_inside(value: &str) -> String {
    let each = value.split(':').map(|part| {
        let path = Path::new(part);
        let moved = if path.is_absolute() { inside(path) } else { None };
        moved.map_or_else(|| part.to_owned(), |path| path.display().to_string())
    });
    each.collect::<Vec<_>>().join(":")
}

/// A command for the emulated host as it would run here: this process's working directory and the variables that matter to
/// programs of ours.
pub fn command_like_here(argv: Vec<String>) -> Exec {
    let kept = |name: &str| {
        matches!(
            name,
            "PATH" | "HOME" | "LANG" | "TERM" | "RUST_LOG" | "RUST_BACKTRACE"
        ) || (name.starts_with("NETYARD_") && name != "NETYARD_RUN_DIR")
    };
    Exec {
        argv,
        env: std::env::vars()
            .filter(|(name, _)| kept(name))
            .map(|(name, value)| (name, paths_inside(&value)))
            .collect(),
        cwd: std::env::current_dir()
            .ok()
            .and_then(|cwd| inside(&cwd))
            .map(|cwd| cwd.display().to_string()),
        tty: None,
    }
}

/// Where a path of the outer machine is inside: folders for passing data have a file system of their own there, and the outer
/// ones are beside it. `None` for devices and the kernel's own file systems.
pub fn inside(path: &Path) -> Option<PathBuf> {
    let below = |folders: &[&str]| folders.iter().any(|folder| path.starts_with(folder));
    if below(&["/dev", "/proc", "/sys"]) {
        None
    } else if below(&[OUTER]) {
        Some(path.to_path_buf())
    } else if below(&["/tmp", "/var/tmp", "/run"]) {
        let relative = path.strip_prefix("/").unwrap_or(path);
        Some(Path::new(OUTER).join(relative))
    } else {
        Some(path.to_path_buf())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_outer_paths_inside() {
        let moved = |path: &str| inside(Path::new(path)).map(|path| path.display().to_string());
        assert_eq!(moved("/usr/bin/lab"), Some("/usr/bin/lab".to_owned()));
        assert_eq!(moved("/tmp/x/lab"), Some("/run/outer/tmp/x/lab".to_owned()));
        assert_eq!(moved("/run/outer/tmp/lab"), Some("/run/outer/tmp/lab".to_owned()));
        assert_eq!(moved("/tmpfiles/lab"), Some("/tmpfiles/lab".to_owned()));
        assert_eq!(moved("/dev/shm/lab"), None);
        assert_eq!(paths_inside("/tmp/bin:/bin:x"), "/run/outer/tmp/bin:/bin:x");
    }
}
