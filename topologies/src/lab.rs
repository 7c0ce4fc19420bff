//! A lab that has been checked: what is to run, with every default filled in.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sriov::address::Bdf;
use vswitch::fdb::OnFull;
use vswitch::mac::MacAddr;

use crate::engine::EngineKind;

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
    /// What runs it; if not given, what the person who starts the lab asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,
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
    /// What it is.
    #[serde(flatten)]
    pub kind: NicKind,
    /// The NIC's address; a PCI device has its own.
    pub mac: Option<MacAddr>,
    /// The address that the guest configures, if any.
    pub ip: Option<IpNet>,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
}

/// What a NIC is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NicKind {
    /// A virtio device on a switch.
    Switch(SwitchNic),
    /// A virtual function of a NIC of the host.
    Vf(VfNic),
    /// A PCI device of the host.
    Pci {
        /// Its address.
        pci: Bdf,
    },
}

/// A NIC on a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchNic {
    /// The switch, by its name within the lab.
    pub switch: String,
    /// Queue pairs.
    pub queues: u16,
    /// Whether a process of its own stands between the machine and the switch, which then never maps the machine's
    /// memory.
    pub isolate: bool,
    /// Whether the machine may send from other addresses than the NIC's.
    #[serde(default = "may_spoof")]
    pub spoof: bool,
    /// Whether the switch serves the guest's control queue, where the machine's engine forwards it.
    #[serde(default)]
    pub control_queue: bool,
}

fn may_spoof() -> bool {
    true
}

/// A NIC that is a virtual function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfNic {
    /// The physical function, by interface or PCI address.
    #[serde(rename = "vf")]
    pub pf: String,
    /// Which of its virtual functions; any free one if not given.
    pub index: Option<u32>,
    /// The VLAN that the physical function puts it in.
    pub vlan: Option<u16>,
    /// Whether the guest may ask for frames that are not for it.
    pub promisc: bool,
    /// Whether the guest may send from other addresses than its own.
    pub spoof: bool,
}

impl Nic {
    /// What it is on a switch, if it is on one.
    pub fn on_switch(&self) -> Option<&SwitchNic> {
        match &self.kind {
            NicKind::Switch(nic) => Some(nic),
            _ => None,
        }
    }

    /// What is in the place of a switch's name for people: a switch, a virtual function, a PCI device.
    pub fn place(&self) -> String {
        match &self.kind {
            NicKind::Switch(nic) => nic.switch.clone(),
            NicKind::Vf(VfNic { pf, index: None, .. }) => format!("vf {pf}"),
            NicKind::Vf(VfNic {
                pf,
                index: Some(index),
                ..
            }) => format!("vf {pf}:{index}"),
            NicKind::Pci { pci } => format!("pci {pci}"),
        }
    }

    /// Whether this NIC and another are on one network, as far as the lab file tells.
    pub fn shares_network(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (NicKind::Switch(one), NicKind::Switch(other)) => one.switch == other.switch,
            (NicKind::Vf(one), NicKind::Vf(other)) => (&one.pf, one.vlan) == (&other.pf, other.vlan),
            _ => false,
        }
    }
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

    /// What the host's NICs will not do that the lab asks for, a line each.
    pub fn warnings(&self) -> Vec<String> {
        let nics = self.nodes.iter().flat_map(|node| {
            let nics = node.nics.iter().enumerate();
            nics.map(move |(index, nic)| (port_name(&node.name, index), nic))
        });
        let mut all = Vec::new();
        for (name, nic) in nics {
            let NicKind::Vf(vf) = &nic.kind else { continue };
            if vf.promisc {
                all.push(format!(
                    "NIC {name}: {} filters by address, so a promiscuous guest on a VF sees its own frames, broadcasts and multicasts; \
                     other hosts' unicast only where the NIC supports it for trusted VFs (an 82576 does not)",
                    vf.pf
                ));
            }
            if vf.spoof {
                all.push(format!(
                    "NIC {name}: frames from other addresses go out, but {} delivers answers to the VF's own address alone; a bridge \
                     or router of other hosts' addresses in this guest needs a switch NIC, or the whole PCI device",
                    vf.pf
                ));
            }
        }
        all
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
