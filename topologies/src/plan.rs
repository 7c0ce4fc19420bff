//! What has to run for a lab: every process with its arguments, in the order of their start.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use vswitch::mac::MacAddr;
use vswitch::model::NewPort;

use crate::engine::Engine;
use crate::lab::{Disk, Lab, Nic, Node, Switch, port_name};
use crate::paths::{NodeDir, RunDir};

/// What a machine boots, with all names resolved to files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initrd: Option<PathBuf>,
}

/// A lab's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The switches, which are started first.
    pub switches: Vec<SwitchPlan>,
    /// The machines.
    pub nodes: Vec<NodePlan>,
}

/// One switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchPlan {
    /// Its name within the lab.
    pub name: String,
    /// Its name on the host.
    pub bridge: String,
    /// Arguments of `vswitch`.
    pub arguments: Vec<OsString>,
    /// Ports to add once it answers.
    pub ports: Vec<PortPlan>,
}

/// One port of a switch: the outer end of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// Its name.
    pub name: String,
    /// Queue pairs.
    pub queues: u16,
    /// Address of the NIC.
    pub mac: MacAddr,
    /// Largest IP packet.
    pub mtu: u16,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// Its name within the lab.
    pub name: String,
    /// Its name on the host.
    pub title: String,
    /// Where its sockets and logs are.
    pub dir: NodeDir,
    /// What it boots.
    pub boot: BootFiles,
    /// Its whole kernel command line.
    pub cmdline: String,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Its NICs.
    pub nics: Vec<NicPlan>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Whether its agent says when it is ready.
    pub agent: bool,
}

/// One NIC of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicPlan {
    /// The switch, by its name on the host.
    pub bridge: String,
    /// Name of its switch port.
    pub port: String,
    /// Its address.
    pub mac: MacAddr,
    /// Queue pairs.
    pub queues: u16,
    /// Largest IP packet.
    pub mtu: u16,
    /// The vhost-user socket that the machine connects to.
    pub socket: PathBuf,
    /// The process between the machine and the switch, if the NIC is to have one.
    pub isolate: Option<IsolatePlan>,
}

/// A process between a machine and a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolatePlan {
    /// The socket that it makes and the machine connects to.
    pub socket: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Arguments of `vhost-net-backend`.
    pub arguments: Vec<OsString>,
}

impl Plan {
    /// The processes of `lab`, with its files under `run`. `boot` says what each node boots.
    pub fn new(lab: &Lab, run: &RunDir, mut boot: impl FnMut(&Node) -> BootFiles) -> Self {
        let switches = lab
            .switches
            .iter()
            .map(|switch| SwitchPlan::new(lab, switch))
            .collect();
        let nodes = lab
            .nodes
            .iter()
            .map(|node| NodePlan::new(lab, node, run, boot(node)))
            .collect();
        Self { switches, nodes }
    }

    /// Every command of the plan, in order, as a person could type them.
    pub fn commands(&self, engine: &dyn Engine) -> Vec<String> {
        let mut all = Vec::new();
        for switch in &self.switches {
            all.push(command_line(Path::new("vswitch"), &switch.arguments));
            for port in &switch.ports {
                all.push(format!(
                    "vswitch port add {} {} --queues {} --mac {} --mtu {}",
                    switch.bridge, port.name, port.queues, port.mac, port.mtu
                ));
            }
        }
        for node in &self.nodes {
            for isolate in node.nics.iter().filter_map(|nic| nic.isolate.as_ref()) {
                all.push(command_line(Path::new("vhost-net-backend"), &isolate.arguments));
            }
            all.push(command_line(engine.program(), &engine.arguments(node)));
        }
        all
    }
}

impl SwitchPlan {
    fn new(lab: &Lab, switch: &Switch) -> Self {
        let bridge = lab.bridge(&switch.name);
        let options = [
            ("--ageing", switch.ageing_s.map(|seconds| seconds.to_string())),
            ("--fdb-size", switch.fdb_size.map(|entries| entries.to_string())),
            (
                "--on-full",
                switch
                    .on_full
                    .and_then(|policy| Some(policy.to_possible_value()?.get_name().to_owned())),
            ),
            ("--workers", switch.workers.map(|workers| workers.to_string())),
        ];
        let mut arguments: Vec<OsString> = vec!["up".into(), bridge.clone().into()];
        for (option, value) in options {
            if let Some(value) = value {
                arguments.extend([option.into(), value.into()]);
            }
        }
        let ports = lab
            .nodes
            .iter()
            .flat_map(|node| {
                node.nics
                    .iter()
                    .enumerate()
                    .map(move |(index, nic)| (node, index, nic))
            })
            .filter(|(_, _, nic)| nic.switch == switch.name)
            .map(|(node, index, nic)| PortPlan {
                name: port_name(&node.name, index),
                queues: nic.queues,
                mac: nic.mac,
                mtu: nic.mtu,
            })
            .collect();
        Self {
            name: switch.name.clone(),
            bridge,
            arguments,
            ports,
        }
    }
}

impl PortPlan {
    /// The request that adds the port.
    pub fn request(&self) -> NewPort {
        let mut port = NewPort::new(&self.name);
        port.queues = self.queues;
        port.mac = Some(self.mac);
        port.mtu = Some(self.mtu);
        port
    }
}

impl NodePlan {
    fn new(lab: &Lab, node: &Node, run: &RunDir, boot: BootFiles) -> Self {
        let dir = run.lab(&lab.name).node(&node.name);
        let nics = node
            .nics
            .iter()
            .enumerate()
            .map(|(index, nic)| NicPlan::new(lab, node, index, nic, run, &dir))
            .collect();
        Self {
            name: node.name.clone(),
            title: format!("{}.{}", lab.name, node.name),
            cmdline: cmdline(node),
            dir,
            boot,
            cpus: node.cpus,
            memory_mib: node.memory_mib,
            nics,
            disks: node.disks.clone(),
            agent: node.agent,
        }
    }
}

impl NicPlan {
    fn new(lab: &Lab, node: &Node, index: usize, nic: &Nic, run: &RunDir, dir: &NodeDir) -> Self {
        let port = port_name(&node.name, index);
        let bridge = lab.bridge(&nic.switch);
        let switch = run.port_socket(&bridge, &port);
        let isolate = nic.isolate.then(|| {
            let socket = dir.isolate_socket(index);
            IsolatePlan {
                arguments: vec![
                    "--socket".into(),
                    socket.clone().into(),
                    "--connect".into(),
                    switch.clone().into(),
                    "--queues".into(),
                    nic.queues.to_string().into(),
                    "--mac".into(),
                    nic.mac.to_string().into(),
                    "--mtu".into(),
                    nic.mtu.to_string().into(),
                ],
                log: dir.isolate_log(index),
                socket,
            }
        });
        Self {
            bridge,
            port,
            mac: nic.mac,
            queues: nic.queues,
            mtu: nic.mtu,
            socket: isolate.as_ref().map_or(switch, |isolate| isolate.socket.clone()),
            isolate,
        }
    }
}

/// The kernel command line: where the console is, and what the image's init configures.
fn cmdline(node: &Node) -> String {
    // A guest that panicked restarts, and the log keeps what it said.
    let mut words = vec!["console=ttyS0".to_owned(), "panic=1".to_owned()];
    if node.agent {
        words.push(format!("netyard.hostname={}", node.name));
        for nic in &node.nics {
            let ip = nic.ip.map(|ip| ip.to_string()).unwrap_or_default();
            words.push(format!("netyard.nic={},{ip},{}", nic.mac, nic.mtu));
        }
    }
    if !node.cmdline.is_empty() {
        words.push(node.cmdline.clone());
    }
    words.join(" ")
}

/// A command as a person could type it.
pub fn command_line(program: &Path, arguments: &[OsString]) -> String {
    let mut line = quoted(&program.to_string_lossy());
    for argument in arguments {
        line.push(' ');
        line.push_str(&quoted(&argument.to_string_lossy()));
    }
    line
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+/.,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests;
