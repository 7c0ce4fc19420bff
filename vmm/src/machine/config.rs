//! What a VM is asked to be.

use std::path::PathBuf;

use crate::memory::RamConfig;
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
    /// Start again when the guest resets; else that is the end.
    pub reboot: bool,
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
