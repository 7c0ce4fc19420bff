//! Where running bridges keep their sockets, pid files and settings.
//!
//! ```text
//! <run>/vswitch/<bridge>/pid            number of the daemon's process; locked while it lives
//!                       /api.sock       the HTTP API
//!                       /log            output of a detached daemon
//!                       /config.json    what the bridge is made of
//!                       /ports/<port>.sock
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The longest path a Unix socket may have, without its terminating zero.
const SOCKET_PATH_MAX: usize = 107;
/// The longest name of a bridge or port.
pub const NAME_MAX: usize = 64;

/// The folder of the running bridges cannot be used as asked.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Names appear in paths and tables.
    #[error(
        "`{0}` cannot name a {1}: use 1 to {NAME_MAX} letters, digits, `_`, `.` or `-`, not starting with `.` or `-`"
    )]
    Name(String, &'static str),
    /// The kernel refuses longer socket paths.
    #[error(
        "the socket path {0} is {1} bytes long, and a Unix socket's may have {SOCKET_PATH_MAX}: use a shorter name or set NETYARD_RUN_DIR to a shorter folder"
    )]
    SocketPath(PathBuf, usize),
    /// Another daemon holds the bridge.
    #[error(
        "bridge {name} is already up (pid {pid}): use `vswitch show {name}`, or `vswitch down {name}` first"
    )]
    Live {
        /// The bridge.
        name: String,
        /// Its daemon.
        pid: String,
    },
    /// The file system refused.
    #[error("cannot {0} {1}: {2}")]
    Io(&'static str, PathBuf, #[source] io::Error),
}

/// The folder under which everything that runs keeps its files: `NETYARD_RUN_DIR` if set, else
/// `$XDG_RUNTIME_DIR/netyard`, else `/run/netyard` for root and `/tmp/netyard-$UID` for others.
pub fn run_dir() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = set("NETYARD_RUN_DIR") {
        return dir;
    }
    if let Some(dir) = set("XDG_RUNTIME_DIR") {
        return dir.join("netyard");
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        "/run/netyard".into()
    } else {
        format!("/tmp/netyard-{}", uid.as_raw()).into()
    }
}

/// Checks a bridge's or port's name (`what` says which).
pub fn check_name(name: &str, what: &'static str) -> Result<(), RunDirError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(allowed) || name.starts_with(['.', '-'])
    {
        return Err(RunDirError::Name(name.to_owned(), what));
    }
    Ok(())
}

/// Checks that a socket can have this path.
pub fn check_socket_path(path: &Path) -> Result<(), RunDirError> {
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        Err(RunDirError::SocketPath(path.to_owned(), len))
    } else {
        Ok(())
    }
}

/// The files of one bridge.
#[derive(Debug, Clone)]
pub struct BridgeDir {
    name: String,
    path: PathBuf,
}

/// Held by a daemon for its life: nobody else can have the bridge up.
#[derive(Debug)]
pub struct Claim {
    pid_file: File,
}

impl BridgeDir {
    /// The files of bridge `name`; the name is checked.
    pub fn new(name: &str) -> Result<Self, RunDirError> {
        check_name(name, "bridge")?;
        let dir = Self {
            name: name.to_owned(),
            path: run_dir().join("vswitch").join(name),
        };
        check_socket_path(&dir.api_socket())?;
        Ok(dir)
    }

    /// Every bridge that has a folder, up or not, in order of name.
    pub fn all() -> Result<Vec<Self>, RunDirError> {
        let parent = run_dir().join("vswitch");
        let entries = match fs::read_dir(&parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RunDirError::Io("list", parent, error)),
        };
        let mut dirs: Vec<Self> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| Self::new(&name).ok())
            .collect();
        dirs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(dirs)
    }

    /// The bridge's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the HTTP API.
    pub fn api_socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    /// Where a detached daemon's output goes.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// What the bridge is made of.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The socket a port gets when none is given.
    pub fn port_socket(&self, port: &str) -> PathBuf {
        self.path.join("ports").join(format!("{port}.sock"))
    }

    fn pid_path(&self) -> PathBuf {
        self.path.join("pid")
    }

    /// Whether the folder exists: the bridge is up, or was and left its settings.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes the folder and everything above it, for this user only.
    pub fn create(&self) -> Result<(), RunDirError> {
        let ports = self.path.join("ports");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&ports)
            .map_err(|error| RunDirError::Io("create the folder", ports, error))
    }

    /// The daemon's pid, if one lives. The lock on the pid file decides: a pid alone may be another's.
    pub fn live_pid(&self) -> Option<String> {
        let mut file = File::open(self.pid_path()).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).ok()?;
                Some(pid.trim().to_owned())
            }
            _ => None,
        }
    }

    /// Takes the bridge for this process, replacing what a killed daemon left behind.
    pub fn claim(&self) -> Result<Claim, RunDirError> {
        self.create()?;
        let path = self.pid_path();
        let refuse = |what, error| RunDirError::Io(what, self.pid_path(), error);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| refuse("open", error))?;
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            return Err(if error == Errno::WOULDBLOCK {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid);
                let pid = if read.is_ok() {
                    pid.trim().to_owned()
                } else {
                    "unknown".to_owned()
                };
                RunDirError::Live {
                    name: self.name.clone(),
                    pid,
                }
            } else {
                refuse("lock", error.into())
            });
        }
        let claim = Claim { pid_file: file };
        claim.sign().map_err(|error| refuse("write", error))?;
        Ok(claim)
    }

    /// Removes the folder with everything in it.
    pub fn remove(&self) -> Result<(), RunDirError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RunDirError::Io("remove", self.path.clone(), error))
            }
            _ => Ok(()),
        }
    }
}

impl Claim {
    /// The claim that another process made and hands over.
    pub fn take_over(pid_file: OwnedFd) -> Self {
        Self {
            pid_file: pid_file.into(),
        }
    }

    /// The same claim, to be handed over: it holds as long as anybody has it.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.pid_file.try_clone()?.into())
    }

    /// Writes the number of this process where others look for it.
    pub fn sign(&self) -> io::Result<()> {
        let mut file = &self.pid_file;
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    }

    /// Gives the bridge up; the file stays, empty, for the next claim.
    pub fn release(self) {
        let emptied = self.pid_file.set_len(0);
        if let Err(error) = emptied {
            tracing::debug!("the pid file could not be emptied: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in ["", ".", "..", "a/b", "-x", ".hidden", "ä", &"x".repeat(65)] {
            assert!(check_name(name, "bridge").is_err(), "{name}");
        }
        for name in ["br0", "lab.lan", "a_b-c.1"] {
            check_name(name, "bridge").unwrap();
        }
    }

    #[test]
    fn long_socket_paths_are_refused_with_a_cure() {
        let error = check_socket_path(Path::new(&format!("/{}", "x".repeat(107))))
            .unwrap_err()
            .to_string();
        assert!(error.contains("NETYARD_RUN_DIR"), "{error}");
        check_socket_path(Path::new(&format!("/{}", "x".repeat(106)))).unwrap();
    }
}
