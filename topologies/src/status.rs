//! What a lab does now: its machines, their NICs' links, its switches and their ports.

use serde::{Deserialize, Serialize};
use vswitch::client::Client;
use vswitch::model::{BridgeView, PortState, PortView};

use crate::engine::EngineKind;
use crate::lab::port_name;
use crate::lock::Lock;
use crate::passthrough::Device;
use crate::paths::LabDir;
use crate::state::{HostKind, Phase, State};

/// How a lab is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabState {
    /// `lab up` is at work.
    Starting,
    /// Everything runs.
    Running,
    /// Some machine or switch does not.
    Degraded,
    /// `lab down` is at work.
    Stopping,
    /// A `lab` was killed at work; `lab up` or `lab down` removes what it left.
    Incomplete,
    /// It ran in an emulated host that has ended.
    Gone,
}

/// How a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Its monitor runs.
    Running,
    /// It does not: the machine was powered off, or ended.
    Stopped,
}

/// How a link or a switch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpDown {
    /// It works.
    Up,
    /// It does not.
    Down,
}

/// A whole lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabStatus {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: LabState,
    /// Where it runs.
    pub host: HostKind,
    /// What runs its machines, but for those of which the lab file says otherwise.
    pub engine: Option<EngineKind>,
    /// The file that it was started from.
    pub file: std::path::PathBuf,
    /// Its machines.
    pub nodes: Vec<NodeStatus>,
    /// Its switches.
    pub switches: Vec<SwitchStatus>,
}

/// One machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: NodeState,
    /// What runs it.
    pub engine: Option<EngineKind>,
    /// The process that runs it.
    pub pid: Option<u32>,
    /// Its NICs.
    pub nics: Vec<NicStatus>,
}

/// One NIC.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NicStatus {
    /// Its switch port.
    pub port: String,
    /// Its switch, by the name within the lab, if it is on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<String>,
    /// What it is if it is not on a switch: `vf eth0:1`, `pci 0000:02:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The PCI address of what the machine was given, if it is not on a switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    /// Its address; a PCI device's own may not be known.
    pub mac: Option<String>,
    /// The address that the guest configures.
    pub ip: Option<String>,
    /// Whether the switch has its queues, or the machine holds its device and that has a link.
    pub link: UpDown,
}

/// One switch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// Its name within the lab.
    pub name: String,
    /// Its name on the host.
    pub bridge: String,
    /// Whether it answers.
    pub state: UpDown,
    /// Its process.
    pub pid: Option<u32>,
    /// Its ports as it sees them.
    pub ports: Vec<PortView>,
}

impl UpDown {
    pub(crate) fn of(up: bool) -> Self {
        if up { Self::Up } else { Self::Down }
    }
}

/// What is left of a lab whose emulated host has ended.
pub fn gone(state: &State) -> LabStatus {
    LabStatus {
        name: state.lab.name.clone(),
        state: LabState::Gone,
        host: state.host,
        engine: state.engine,
        file: state.file.clone(),
        nodes: Vec::new(),
        switches: Vec::new(),
    }
}

/// Looks at a lab on this host.
pub async fn status(state: &State, dir: &LabDir) -> LabStatus {
    let mut switches = Vec::new();
    for switch in &state.lab.switches {
        let bridge = state.lab.bridge(&switch.name);
        let view = view(&bridge).await;
        switches.push(SwitchStatus {
            name: switch.name.clone(),
            state: UpDown::of(view.is_some()),
            pid: view.as_ref().map(|view| view.pid),
            ports: view.map(|view| view.ports).unwrap_or_default(),
            bridge,
        });
    }
    let nodes: Vec<NodeStatus> = state
        .lab
        .nodes
        .iter()
        .map(|node| node_status(state, node, &switches))
        .collect();
    let healthy = nodes.iter().all(|node| node.state == NodeState::Running)
        && switches.iter().all(|switch| switch.state == UpDown::Up);
    let lab = match (state.phase, Lock::is_held(&dir.lock())) {
        (Phase::Running, _) if healthy => LabState::Running,
        (Phase::Running, _) => LabState::Degraded,
        (Phase::Starting, true) => LabState::Starting,
        (Phase::Stopping, true) => LabState::Stopping,
        (Phase::Starting | Phase::Stopping, false) => LabState::Incomplete,
    };
    LabStatus {
        name: state.lab.name.clone(),
        state: lab,
        host: state.host,
        engine: state.engine,
        file: state.file.clone(),
        nodes,
        switches,
    }
}

async fn view(bridge: &str) -> Option<BridgeView> {
    Client::new(bridge).ok()?.bridge().await.ok()
}

fn node_status(state: &State, node: &crate::lab::Node, switches: &[SwitchStatus]) -> NodeStatus {
    let process = state
        .node_process(&node.name)
        .filter(|process| process.is_alive());
    let nics = node
        .nics
        .iter()
        .enumerate()
        .map(|(index, nic)| {
            let port = port_name(&node.name, index);
            let device = state
                .devices
                .iter()
                .find(|device| device.is_nic(&node.name, index));
            let up = match (process, nic.on_switch()) {
                (None, _) => false,
                (Some(_), Some(on)) => switches
                    .iter()
                    .filter(|switch| switch.name == on.switch)
                    .flat_map(|switch| &switch.ports)
                    .any(|view| view.name == port && view.state == PortState::Up),
                (Some(process), None) => device.is_some_and(|device| device.is_up(process.pid)),
            };
            let place = device.map_or_else(|| nic.place(), Device::place);
            NicStatus {
                port,
                switch: nic.on_switch().map(|on| on.switch.clone()),
                device: nic.on_switch().is_none().then_some(place),
                pci: device.map(|device| device.bdf.to_string()),
                mac: nic.mac.or_else(|| device?.mac).map(|mac| mac.to_string()),
                ip: nic.ip.map(|ip| ip.to_string()),
                link: UpDown::of(up),
            }
        })
        .collect();
    NodeStatus {
        name: node.name.clone(),
        state: if process.is_some() {
            NodeState::Running
        } else {
            NodeState::Stopped
        },
        engine: state.engine_of(node),
        pid: process.map(|process| process.pid),
        nics,
    }
}
