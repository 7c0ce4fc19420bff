//! A lab that has been checked: what is to run, with every default filled in.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vswitch::fdb::OnFull;
use vswitch::mac::MacAddr;

/// A whole lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    /// Its name, unique among the labs of one user on one host.
    pub name: String,
    /// The switches, in the order of the file.
    pub switches: Vec<Switch>,
    /// The machines, in the order of the file.
    pub nodes: Vec<Node>,
}

/// One switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// Its name within the lab.
    pub name: String,
    /// Largest IP packet that its ports carry, in bytes.
    pub mtu: u16,
    /// Seconds that a learned address stays in the forwarding database; the switch's own default when absent.
    pub ageing_s: Option<u32>,
    /// Entries in the forwarding database; the switch's own default when absent.
    pub fdb_size: Option<usize>,
    /// What a full forwarding database does; the switch's own default when absent.
    pub on_full: Option<OnFull>,
    /// Threads that forward frames; the switch's own default when absent.
    pub workers: Option<u16>,
}

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name within the lab, and its host name.
    pub name: String,
    /// What it boots.
    pub boot: Boot,
    /// Words added to the kernel command line.
    pub cmdline: String,
    /// Whether the guest runs the agent, so that commands can be run in it and its readiness be asked for.
    pub agent: bool,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// NICs, in the order that the guest sees them.
    pub nics: Vec<Nic>,
    /// Disks, in the order that the guest sees them.
    pub disks: Vec<Disk>,
}

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// An image by name, made by `lab image build` when it is first needed.
    Image(String),
    /// The user's own kernel.
    Kernel {
        /// A bzImage or an ELF file with a PVH entry.
        kernel: PathBuf,
        /// The initial RAM file system, if any.
        initrd: Option<PathBuf>,
    },
}

/// One NIC of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The switch, by its name within the lab.
    pub switch: String,
    /// The NIC's address.
    pub mac: MacAddr,
    /// The address that the guest configures, if any.
    pub ip: Option<IpNet>,
    /// Queue pairs.
    pub queues: u16,
    /// Whether a process of its own stands between the machine and the switch, which then never maps the machine's
    /// memory.
    pub isolate: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
}

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// A raw file or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub readonly: bool,
}

impl Lab {
    /// The bridge name of one of the lab's switches: bridges are named for the whole host.
    pub fn bridge(&self, switch: &str) -> String {
        bridge_name(&self.name, switch)
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

/// The bridge name of switch `switch` of lab `lab`. Neither name may hold a dot, so bridges of two labs never clash.
pub fn bridge_name(lab: &str, switch: &str) -> String {
    format!("{lab}.{switch}")
}

/// The switch port name of a node's NIC.
pub fn port_name(node: &str, nic: usize) -> String {
    format!("{node}-{nic}")
}
