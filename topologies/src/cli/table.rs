//! What the commands show of labs, images and the emulated host.

use std::fmt::Write as _;

use vswitch::model::PortState;
use vswitch::table::table;

use crate::emulated::Record;
use crate::initramfs::Image;
use crate::state::HostKind;
use crate::status::{LabState, LabStatus, NicStatus, NodeState, NodeStatus, UpDown};

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn state(lab: &LabStatus) -> &'static str {
    match lab.state {
        LabState::Starting => "starting",
        LabState::Running => "running",
        LabState::Degraded => "degraded",
        LabState::Stopping => "stopping",
        LabState::Incomplete => "incomplete",
        LabState::Gone => "gone",
    }
}

fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Running => "running",
        NodeState::Stopped => "stopped",
    }
}

fn up_down(state: UpDown) -> &'static str {
    match state {
        UpDown::Up => "up",
        UpDown::Down => "down",
    }
}

/// Where a lab runs, in a word.
fn host(lab: &LabStatus) -> &'static str {
    match lab.host {
        HostKind::Native => "native",
        HostKind::Emulated => "emulated",
    }
}

/// The labs that are up.
pub(super) fn labs(labs: &[LabStatus]) -> String {
    if labs.is_empty() {
        return "no lab is up: `lab up FILE` starts one\n".to_owned();
    }
    let rows = labs.iter().map(|lab| {
        let running = lab
            .nodes
            .iter()
            .filter(|node| node.state == NodeState::Running)
            .count();
        vec![
            lab.name.clone(),
            state(lab).to_owned(),
            or_dash(lab.engine),
            host(lab).to_owned(),
            format!("{running}/{}", lab.nodes.len()),
            lab.switches.len().to_string(),
            lab.file.display().to_string(),
        ]
    });
    table(
        &["LAB", "STATE", "ENGINE", "HOST", "NODES", "SWITCHES", "FILE"],
        &[4, 5],
        rows,
    )
}

/// The machines of a lab and their NICs, one NIC a line.
pub(super) fn nodes(lab: &LabStatus) -> String {
    let rows = lab.nodes.iter().flat_map(node_rows);
    table(
        &[
            "NODE", "STATE", "ENGINE", "PID", "NIC", "SWITCH", "IP", "MAC", "LINK",
        ],
        &[3],
        rows,
    )
}

fn node_rows(node: &NodeStatus) -> Vec<Vec<String>> {
    let about = [
        node.name.clone(),
        node_state(node.state).to_owned(),
        or_dash(node.engine),
        or_dash(node.pid),
    ];
    let nic = |nic: &NicStatus| {
        [
            nic.port.clone(),
            or_dash(nic.switch.as_ref().or(nic.device.as_ref())),
            or_dash(nic.ip.as_ref()),
            or_dash(nic.mac.as_ref()),
            up_down(nic.link).to_owned(),
        ]
    };
    if node.nics.is_empty() {
        return vec![
            about
                .into_iter()
                .chain(std::array::from_fn::<_, 5, _>(|_| "-".to_owned()))
                .collect(),
        ];
    }
    node.nics
        .iter()
        .enumerate()
        .map(|(index, one)| {
            // What is about the machine stands on its first line.
            let about = if index == 0 {
                about.clone()
            } else {
                Default::default()
            };
            about.into_iter().chain(nic(one)).collect()
        })
        .collect()
}

/// Everything about a lab.
pub(super) fn lab(lab: &LabStatus) -> String {
    if lab.state == LabState::Gone {
        return format!(
            "lab {0} ran in an emulated host that has ended; `lab down --lab {0}` forgets it\n",
            lab.name
        );
    }
    let mut text = format!("lab {} is {}", lab.name, state(lab));
    if lab.host == HostKind::Emulated {
        text.push_str(" in the emulated host");
    }
    if lab.state == LabState::Incomplete {
        text.push_str(": a `lab` was interrupted; `lab up` or `lab down` removes what it left");
    }
    text.push_str("\n\n");
    text.push_str(&nodes(lab));
    let switches = lab.switches.iter().map(|switch| {
        let up = switch
            .ports
            .iter()
            .filter(|port| port.state == PortState::Up)
            .count();
        vec![
            switch.name.clone(),
            switch.bridge.clone(),
            up_down(switch.state).to_owned(),
            or_dash(switch.pid),
            format!("{up}/{}", switch.ports.len()),
        ]
    });
    text.push('\n');
    text.push_str(&table(
        &["SWITCH", "BRIDGE", "STATE", "PID", "PORTS UP"],
        &[3, 4],
        switches,
    ));
    let ports: Vec<Vec<String>> = lab
        .switches
        .iter()
        .flat_map(|switch| switch.ports.iter().map(move |port| (switch, port)))
        .map(|(switch, port)| {
            let state = up_down(UpDown::of(port.state == PortState::Up));
            vec![
                port.name.clone(),
                switch.name.clone(),
                state.to_owned(),
                format!("{}/{}", port.enabled_queue_pairs, port.queue_pairs),
                port.mtu.to_string(),
                port.counters.rx_frames.to_string(),
                port.counters.tx_frames.to_string(),
                port.counters.drops.values().sum::<u64>().to_string(),
            ]
        })
        .collect();
    if !ports.is_empty() {
        text.push('\n');
        let header = [
            "PORT",
            "SWITCH",
            "STATE",
            "QUEUES",
            "MTU",
            "RX FRAMES",
            "TX FRAMES",
            "DROPS",
        ];
        text.push_str(&table(&header, &[3, 4, 5, 6, 7], ports));
    }
    for switch in lab.switches.iter().filter(|switch| switch.state == UpDown::Down) {
        let _infallible = writeln!(
            text,
            "\nswitch {} is down: `{}vswitch up {}` brings it back with its ports",
            switch.name,
            if lab.host == HostKind::Emulated {
                "lab host exec -- "
            } else {
                ""
            },
            switch.bridge
        );
    }
    text
}

/// The images that were built.
pub(super) fn images(images: &[Image]) -> String {
    if images.is_empty() {
        return "no image was built: `lab image build` builds the one that labs use\n".to_owned();
    }
    let rows = images
        .iter()
        .map(|image| vec![image.manifest.name.clone(), image.folder.display().to_string()]);
    table(&["IMAGE", "FOLDER"], &[], rows)
}

/// The emulated host.
pub(super) fn host_status(state: &str, record: Option<&Record>) -> String {
    let row = vec![
        state.to_owned(),
        or_dash(record.map(|record| record.process.pid)),
        or_dash(record.map(|record| format!("{}M", record.memory_mib))),
        or_dash(record.map(|record| &record.kernel)),
    ];
    table(&["STATE", "PID", "MEMORY", "KERNEL"], &[1, 2], [row])
}
