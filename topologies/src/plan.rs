//! What has to run for a lab: every process with its arguments, in the order of their start.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use vswitch::mac::MacAddr;
use vswitch::model::NewPort;

use crate::engine::{Engine, EngineKind, Engines};
use crate::lab::{Disk, Lab, Nic, Node, Switch, SwitchNic, port_name};
use crate::passthrough::Device;
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
    /// Whether frames may come from other addresses.
    pub spoof: bool,
    /// Whether the switch is to serve the guest's control queue.
    pub control_queue: bool,
    /// What runs the machine, if not the usual engine.
    pub engine: Option<EngineKind>,
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
    /// What runs it, if not the usual engine.
    pub engine: Option<EngineKind>,
    /// Its whole kernel command line.
    pub cmdline: String,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Its NICs on switches.
    pub nics: Vec<NicPlan>,
    /// Its devices of the host by address; what the lab file calls them where that is not known yet.
    pub devices: Vec<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Whether its agent says when it is ready.
    pub agent: bool,
}

/// One NIC of a machine on a switch.
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
    /// The processes of `lab`, with its files under `run`. `devices` have been prepared for it, and `boot` says what each node boots.
    pub fn new(
        lab: &Lab,
        run: &RunDir,
        devices: &[Device],
        mut boot: impl FnMut(&Node) -> BootFiles,
    ) -> Self {
        let switches = lab
            .switches
            .iter()
            .map(|switch| SwitchPlan::new(lab, switch))
            .collect();
        let nodes = lab
            .nodes
            .iter()
            .map(|node| NodePlan::new(lab, node, run, devices, boot(node)))
            .collect();
        Self { switches, nodes }
    }

    /// Every command of the plan, in order, as a person could type them.
    pub fn commands(&self, engines: &Engines) -> Vec<String> {
        let mut all = Vec::new();
        for switch in &self.switches {
            all.push(command_line(Path::new("vswitch"), &switch.arguments));
            for port in &switch.ports {
                let held = if port.spoof { "" } else { " --anti-spoof" };
                let served = port.control_queue && engines.of(port.engine).forwards_control_queue();
                let served = if served { " --control-queue" } else { "" };
                all.push(format!(
                    "vswitch port add {} {} --queues {} --mac {} --mtu {}{held}{served}",
                    switch.bridge, port.name, port.queues, port.mac, port.mtu
                ));
            }
        }
        for node in &self.nodes {
            for isolate in node.nics.iter().filter_map(|nic| nic.isolate.as_ref()) {
                all.push(command_line(Path::new("vhost-net-backend"), &isolate.arguments));
            }
            let engine = engines.of(node.engine);
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
            .filter_map(|(node, index, nic)| {
                let on = nic.on_switch().filter(|on| on.switch == switch.name)?;
                Some(PortPlan {
                    name: port_name(&node.name, index),
                    queues: on.queues,
                    mac: nic.mac?,
                    mtu: nic.mtu,
                    spoof: on.spoof,
                    control_queue: on.control_queue,
                    engine: node.engine,
                })
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
    /// The request that adds the port for a machine of this engine.
    pub fn request(&self, engine: &dyn Engine) -> NewPort {
        let mut port = NewPort::new(&self.name);
        port.queues = self.queues;
        port.mac = Some(self.mac);
        port.mtu = Some(self.mtu);
        port.anti_spoof = !self.spoof;
        port.control_queue = self.control_queue && engine.forwards_control_queue();
        port
    }
}

impl NodePlan {
    fn new(lab: &Lab, node: &Node, run: &RunDir, devices: &[Device], boot: BootFiles) -> Self {
        let dir = run.lab(&lab.name).node(&node.name);
        let mut nics = Vec::new();
        let mut given = Vec::new();
        for (index, nic) in node.nics.iter().enumerate() {
            match (nic.on_switch(), nic.mac) {
                (Some(on), Some(mac)) => {
                    let place = Place {
                        lab,
                        node,
                        index,
                        run,
                        dir: &dir,
                    };
                    nics.push(NicPlan::new(&place, nic, on, mac));
                }
                _ => given.push(
                    devices
                        .iter()
                        .find(|device| device.is_nic(&node.name, index))
                        .map_or_else(|| nic.place(), |device| device.bdf.to_string()),
                ),
            }
        }
        Self {
            name: node.name.clone(),
            title: format!("{}.{}", lab.name, node.name),
            cmdline: cmdline(node, devices),
            dir,
            boot,
            engine: node.engine,
            cpus: node.cpus,
            memory_mib: node.memory_mib,
            nics,
            devices: given,
            disks: node.disks.clone(),
            agent: node.agent,
        }
    }
}

/// Which NIC of a lab.
struct Place<'a> {
    lab: &'a Lab,
    node: &'a Node,
    index: usize,
    run: &'a RunDir,
    dir: &'a NodeDir,
}

impl NicPlan {
    fn new(place: &Place<'_>, nic: &Nic, on: &SwitchNic, mac: MacAddr) -> Self {
        let Place {
            lab,
            node,
            index,
            run,
            dir,
        } = *place;
        let port = port_name(&node.name, index);
        let bridge = lab.bridge(&on.switch);
        let switch = run.port_socket(&bridge, &port);
        let isolate = on.isolate.then(|| {
            let socket = dir.isolate_socket(index);
            IsolatePlan {
                arguments: vec![
                    "--socket".into(),
                    socket.clone().into(),
                    "--connect".into(),
                    switch.clone().into(),
                    "--queues".into(),
                    on.queues.to_string().into(),
                    "--mac".into(),
                    mac.to_string().into(),
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
            mac,
            queues: on.queues,
            mtu: nic.mtu,
            socket: isolate.as_ref().map_or(switch, |isolate| isolate.socket.clone()),
            isolate,
        }
    }
}

/// The kernel command line: where the console is, and what the image's init configures.
fn cmdline(node: &Node, devices: &[Device]) -> String {
    // A guest that panicked restarts, and the log keeps what it said.
    let mut words = vec!["console=ttyS0".to_owned(), "panic=1".to_owned()];
    if node.agent {
        words.push(format!("netyard.hostname={}", node.name));
        for (index, nic) in node.nics.iter().enumerate() {
            let own = || {
                devices
                    .iter()
                    .find(|device| device.is_nic(&node.name, index))?
                    .mac
            };
            // What has no address that is known here is left to the guest.
            if let Some(mac) = nic.mac.or_else(own) {
                let ip = nic.ip.map(|ip| ip.to_string()).unwrap_or_default();
                words.push(format!("netyard.nic={mac},{ip},{}", nic.mtu));
            }
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
