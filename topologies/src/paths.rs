//! Where a lab keeps its sockets, logs and state.

use std::path::{Path, PathBuf};

use crate::agent::Channels;

/// Longest path that a Unix socket address can hold, without its final NUL.
pub const MAX_SOCKET_PATH: usize = 107;

/// The run folder that all labs of one user share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// A run folder at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder that holds one folder for each lab.
    pub fn labs(&self) -> PathBuf {
        self.0.join("labs")
    }

    /// The folder of the lab called `name`.
    pub fn lab(&self, name: &str) -> LabDir {
        LabDir(self.labs().join(name))
    }

    /// The folder of the switch `bridge`, laid out by the switch.
    pub fn bridge(&self, bridge: &str) -> PathBuf {
        self.0.join("vswitch").join(bridge)
    }

    /// The socket that the switch listens on for the port `port` of `bridge`.
    pub fn port_socket(&self, bridge: &str, port: &str) -> PathBuf {
        self.bridge(bridge).join("ports").join(format!("{port}.sock"))
    }

    /// The run folder of this user, as an absolute path.
    pub fn of_user() -> Self {
        let dir = vswitch::run_dir();
        Self(std::path::absolute(&dir).unwrap_or(dir))
    }
}

/// The folder of one lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabDir(PathBuf);

impl LabDir {
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is known of the lab.
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Held by the `lab` that is changing this lab. Beside the folder, so that it outlives the folder's removal.
    pub fn lock(&self) -> PathBuf {
        self.0.with_extension("lock")
    }

    /// The folder of a node.
    pub fn node(&self, node: &str) -> NodeDir {
        NodeDir(self.0.join("nodes").join(node))
    }
}

/// The folder of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDir(PathBuf);

impl NodeDir {
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The machine's control socket: our API, or QMP.
    pub fn api_socket(&self) -> PathBuf {
        self.0.join("api.sock")
    }

    /// The serial console.
    pub fn serial_socket(&self) -> PathBuf {
        self.0.join("serial.sock")
    }

    /// All that the serial console printed.
    pub fn serial_log(&self) -> PathBuf {
        self.0.join("serial.log")
    }

    /// Held by the `lab console` that is connected.
    pub fn serial_lock(&self) -> PathBuf {
        self.0.join("serial.lock")
    }

    /// What the virtual machine monitor itself printed.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The process id of the virtual machine monitor, for people and scripts.
    pub fn pid(&self) -> PathBuf {
        self.0.join("pid")
    }

    /// The channels to the agent in the machine.
    pub fn channels(&self) -> Channels {
        Channels::of_guest(&self.0)
    }

    /// The socket of the process that stands between NIC `nic` and its switch.
    pub fn isolate_socket(&self, nic: usize) -> PathBuf {
        self.0.join(format!("isolate.{nic}.sock"))
    }

    /// What that process printed.
    pub fn isolate_log(&self, nic: usize) -> PathBuf {
        self.0.join(format!("isolate.{nic}.log"))
    }

    /// Every socket path that a machine with `nics` NICs may need.
    pub fn sockets(&self, nics: usize) -> Vec<PathBuf> {
        let mut all = vec![self.api_socket(), self.serial_socket()];
        let channels = self.channels();
        all.extend((0..channels.count()).map(|channel| channels.socket(channel)));
        all.extend((0..nics).map(|nic| self.isolate_socket(nic)));
        all
    }
}
