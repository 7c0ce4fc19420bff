//! What a VM is asked to be.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::memory::{RamConfig, RamNode};
use crate::serial::SerialConfig;
use crate::vfio::Source;

/// A VM, as the command line describes it.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Its name: for people, and for the name of its process.
    pub name: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Processors.
    pub cpus: u8,
    /// RAM.
    pub ram: RamConfig,
    /// NUMA nodes that it is divided into; without any, it is one node and the guest is not told of it.
    pub nodes: Vec<NodeConfig>,
    /// Network cards.
    pub nets: Vec<NetConfig>,
    /// Disks.
    pub disks: Vec<DiskConfig>,
    /// Devices of the host that the guest gets.
    pub devices: Vec<Source>,
    /// Channels between host and guest.
    pub channels: Vec<ChannelConfig>,
    /// The serial port's other end.
    pub serial: SerialConfig,
    /// A file that gets a copy of the serial port's output.
    pub serial_log: Option<PathBuf>,
    /// The other end of the virtio console `hvc0`.
    pub console: SerialConfig,
    /// A file that gets a copy of the virtio console's output.
    pub console_log: Option<PathBuf>,
    /// Start again when the guest resets; else that is the end.
    pub reboot: bool,
}

/// A NUMA node of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its processors.
    pub cpus: RangeInclusive<u8>,
    /// Its RAM.
    pub ram: RamNode,
}

/// Why a VM cannot be as it is described.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The nodes have more or less memory than the VM.
    #[error(
        "--numa refused: its nodes have {nodes} bytes of memory, --memory says {memory}; make the sums agree"
    )]
    NodeMemory {
        /// Of all nodes.
        nodes: u64,
        /// Of the VM.
        memory: u64,
    },
    /// A processor is in no node, in two, or in one but not in the VM.
    #[error("--numa refused: processor {0} is {1}; give each of 0 to {last} to one node", last = .2 - 1)]
    NodeCpu(u8, &'static str, u8),
    /// Two devices want standard input.
    #[error("--console stdio refused: the serial port has it; connect that elsewhere, or --serial off")]
    TwoOnStdio,
}

impl VmConfig {
    /// Looks at what the parts of the description have to do with each other.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.serial == SerialConfig::Stdio && self.console == SerialConfig::Stdio {
            return Err(ConfigError::TwoOnStdio);
        }
        if self.nodes.is_empty() {
            return Ok(());
        }
        let sizes = self.nodes.iter().map(|node| node.ram.size);
        let nodes = sizes.fold(0, u64::saturating_add);
        if nodes != self.ram.size {
            return Err(ConfigError::NodeMemory {
                nodes,
                memory: self.ram.size,
            });
        }
        for cpu in 0..=u8::MAX {
            let holders = self.nodes.iter().filter(|node| node.cpus.contains(&cpu)).count();
            let wrong = match (holders, cpu < self.cpus) {
                (0, true) => "in no node",
                (1.., false) => "in a node but not in the VM",
                (2.., true) => "in two nodes",
                _ => continue,
            };
            return Err(ConfigError::NodeCpu(cpu, wrong, self.cpus));
        }
        Ok(())
    }
}

/// Which end of a vhost-user socket connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SocketMode {
    /// We connect to the back-end.
    #[default]
    Client,
    /// The back-end connects to us.
    Server,
}

/// A network card whose rings a vhost-user back-end serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Its hardware address; the back-end's, or a random one, if none is given.
    pub mac: Option<[u8; 6]>,
    /// Queue pairs.
    pub queues: u16,
    /// Who connects.
    pub mode: SocketMode,
}

/// A disk in a raw file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file.
    pub path: PathBuf,
    /// The guest may not write.
    pub readonly: bool,
}

/// A named port of a virtio console, on a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelConfig {
    /// What the guest calls it.
    pub name: String,
    /// The socket that is listened on.
    pub socket: PathBuf,
}
