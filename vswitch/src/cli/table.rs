//! What the commands show of bridges, ports and addresses.

use std::fmt::Write as _;

use crate::config::LinkSetting;
use crate::model::{BridgeView, FdbEntryView, PortState, PortView, WorkerView};
use crate::table::table;

pub(super) fn bridges(views: &[BridgeView]) -> String {
    if views.is_empty() {
        return "no bridge is up: `vswitch up NAME` starts one\n".to_owned();
    }
    let rows = views.iter().map(|view| {
        let up = view
            .ports
            .iter()
            .filter(|port| port.state == PortState::Up)
            .count();
        vec![
            view.name.clone(),
            view.pid.to_string(),
            format!("{up}/{}", view.ports.len()),
            format!("{}/{}", view.fdb.entries, view.fdb.size),
            view.workers.to_string(),
            uptime(view.uptime_s),
        ]
    });
    table(
        &["BRIDGE", "PID", "PORTS UP", "FDB", "WORKERS", "UPTIME"],
        &[1, 2, 3, 4, 5],
        rows,
    )
}

pub(super) fn bridge(view: &BridgeView) -> String {
    let mut text = format!(
        "bridge {}  pid {}  up {}  workers {}  fdb {}/{}\n",
        view.name,
        view.pid,
        uptime(view.uptime_s),
        view.workers,
        view.fdb.entries,
        view.fdb.size
    );
    text.push_str(&ports(&view.ports));
    if !view.worker_counters.is_empty() {
        text.push('\n');
        text.push_str(&workers(&view.worker_counters));
    }
    text
}

fn workers(views: &[WorkerView]) -> String {
    let rows = views.iter().map(|worker| {
        let each = worker.busy_ns.checked_div(worker.frames);
        vec![
            worker.index.to_string(),
            worker.frames.to_string(),
            worker.bursts.to_string(),
            milliseconds(worker.busy_ns),
            each.map_or_else(|| "-".to_owned(), |nanoseconds| nanoseconds.to_string()),
            worker.empty_looks.to_string(),
            milliseconds(worker.polling_ns),
            worker.wakeups.to_string(),
        ]
    });
    table(
        &[
            "WORKER",
            "FRAMES",
            "BURSTS",
            "BUSY MS",
            "NS/FRAME",
            "EMPTY LOOKS",
            "POLLING MS",
            "WAKE-UPS",
        ],
        &[1, 2, 3, 4, 5, 6, 7],
        rows,
    )
}

fn milliseconds(nanoseconds: u64) -> String {
    (nanoseconds / 1_000_000).to_string()
}

pub(super) fn ports(views: &[PortView]) -> String {
    if views.is_empty() {
        return "no ports: `vswitch port add` adds one\n".to_owned();
    }
    let rows = views.iter().map(|port| {
        vec![
            port.name.clone(),
            port.kind.clone(),
            state(port).to_owned(),
            format!("{}/{}", port.enabled_queue_pairs, port.queue_pairs),
            port.counters.rx_frames.to_string(),
            port.counters.tx_frames.to_string(),
            port.counters.drops.values().sum::<u64>().to_string(),
            end(port),
        ]
    });
    table(
        &["PORT", "KIND", "STATE", "QUEUES", "RX", "TX", "DROPS", "END"],
        &[],
        rows,
    )
}

pub(super) fn port(view: &PortView) -> String {
    let mut text = format!(
        "port {}  {}  {}  mtu {}  {}\n",
        view.name,
        view.kind,
        state(view),
        view.mtu,
        end(view)
    );
    if let Some(mac) = view.mac {
        let _: std::fmt::Result = writeln!(text, "mac {mac}");
    }
    if view.control_queue {
        text.push_str("control queue served by the switch\n");
    }
    if !view.source_macs.is_empty() {
        let macs: Vec<String> = view.source_macs.iter().map(ToString::to_string).collect();
        let _: std::fmt::Result = writeln!(text, "only frames from {}", macs.join(", "));
    }
    if !view.features.is_empty() {
        let _: std::fmt::Result = writeln!(text, "features {}", view.features.join(" "));
    }
    for (reason, count) in &view.counters.drops {
        let _: std::fmt::Result = writeln!(text, "dropped {reason} {count}");
    }
    let rows = view.queues.iter().map(|queue| {
        vec![
            queue.index.to_string(),
            if queue.enabled { "yes" } else { "no" }.to_owned(),
            queue.rx_frames.to_string(),
            queue.rx_bytes.to_string(),
            queue.tx_frames.to_string(),
            queue.tx_bytes.to_string(),
        ]
    });
    text.push_str(&table(
        &[
            "QUEUE",
            "ENABLED",
            "RX FRAMES",
            "RX BYTES",
            "TX FRAMES",
            "TX BYTES",
        ],
        &[2, 3, 4, 5],
        rows,
    ));
    text
}

pub(super) fn fdb(entries: &[FdbEntryView]) -> String {
    let rows = entries.iter().map(|entry| {
        let age = if entry.is_static {
            "static".to_owned()
        } else {
            entry.age_s.to_string()
        };
        vec![
            entry.mac.to_string(),
            entry.vlan.to_string(),
            entry.port.clone(),
            age,
        ]
    });
    table(&["MAC", "VLAN", "PORT", "AGE"], &[3], rows)
}

pub(super) fn state(port: &PortView) -> &'static str {
    match (port.link, port.state, port.connected) {
        (LinkSetting::Down, ..) => "set down",
        (_, PortState::Up, _) => "up",
        (_, PortState::Down, true) => "connected",
        (_, PortState::Down, false) => "down",
    }
}

fn end(port: &PortView) -> String {
    match (&port.socket, &port.interface) {
        (Some(socket), _) => socket.display().to_string(),
        (None, Some(interface)) => interface.clone(),
        (None, None) => String::new(),
    }
}

fn uptime(seconds: u32) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}
