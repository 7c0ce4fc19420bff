//! The state of a bridge in the API's words.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bridge::Bridge;
use crate::config::{BridgeSettings, PortKind};
use crate::counters::{Counter, DropCounts, Drops};
use crate::model::{
    BridgeView, FdbEntryView, FdbView, PortCounters, PortState, PortView, QueueView, WorkerView,
};
use crate::port::Port;
use crate::worker::WorkerShared;

/// Feature bits with their names in the VIRTIO text, without their prefixes.
const FEATURES: [(u32, &str); 26] = [
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (20, "CTRL_RX_EXTRA"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (35, "IN_ORDER"),
    (57, "HASH_REPORT"),
    (60, "RSS"),
];

pub(super) fn bridge(name: &str, settings: &BridgeSettings, bridge: &Bridge) -> BridgeView {
    let mut ports: Vec<PortView> = bridge.ports().iter().map(|shared| port(shared)).collect();
    ports.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let fdb = bridge.fdb();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    BridgeView {
        name: name.to_owned(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: bridge.clock().uptime(),
        workers: settings.workers,
        poll: settings.poll,
        queue_moves: 0,
        worker_counters: Vec::new(),
        fdb: FdbView {
            entries: fdb.len(),
            size: fdb.size(),
            ageing_s: fdb.ageing(),
            on_full: fdb.on_full(),
            learned: count(&fdb.counters().learned),
            moved: count(&fdb.counters().moved),
            expired: count(&fdb.counters().expired),
            evicted: count(&fdb.counters().evicted),
            refused: count(&fdb.counters().refused),
        },
        ports,
    }
}

pub(super) fn worker(worker: &WorkerShared) -> WorkerView {
    let work = worker.work();
    WorkerView {
        index: u16::try_from(worker.number()).unwrap_or(u16::MAX),
        frames: work.frames.get(),
        bursts: work.bursts.get(),
        busy_ns: work.busy_ns.get(),
        empty_looks: work.empty_looks.get(),
        polling_ns: work.polling_ns.get(),
        wakeups: work.wakeups.get(),
    }
}

pub(super) fn port(port: &Port) -> PortView {
    let settings = port.settings();
    let (kind, socket, client, interface) = match &settings.kind {
        PortKind::VhostUser { socket, client } => ("vhost-user", Some(socket.clone()), *client, None),
        PortKind::Tap { interface } => ("tap", None, false, Some(interface.clone())),
    };
    let features = port.features();
    let queues: Vec<QueueView> = (0..settings.queue_pairs)
        .filter_map(|index| queue(port, index))
        .collect();
    let sum = |field: fn(&QueueView) -> u64| queues.iter().map(field).sum();
    PortView {
        name: settings.name.clone(),
        kind: kind.to_owned(),
        socket,
        client,
        interface,
        state: if port.ready() & port.enabled() == 0 {
            PortState::Down
        } else {
            PortState::Up
        },
        connected: port.is_connected(),
        link: port.link(),
        mac: settings.mac,
        control_queue: settings.control_queue,
        source_macs: port.sources().macs(),
        mtu: port.mtu(),
        queue_pairs: settings.queue_pairs,
        enabled_queue_pairs: u16::try_from(port.enabled().count_ones()).unwrap_or(u16::MAX),
        features: FEATURES
            .iter()
            .filter(|(bit, _)| features & 1 << bit != 0)
            .map(|(_, name)| (*name).to_owned())
            .collect(),
        counters: PortCounters {
            rx_frames: sum(|queue| queue.rx_frames),
            rx_bytes: sum(|queue| queue.rx_bytes),
            tx_frames: sum(|queue| queue.tx_frames),
            tx_bytes: sum(|queue| queue.tx_bytes),
            drops: drops(port),
        },
        queues,
    }
}

fn queue(port: &Port, index: u16) -> Option<QueueView> {
    let pair = port.pairs().get(usize::from(index))?;
    let (rx, tx) = (pair.ingress.counters(), pair.egress.counters());
    let get = Counter::get;
    Some(QueueView {
        index,
        enabled: port.enabled() & 1 << index != 0,
        worker: u16::try_from(pair.ingress.worker()).unwrap_or(u16::MAX),
        rx_frames: get(&rx.frames),
        rx_bytes: get(&rx.bytes),
        rx_bursts: get(&rx.bursts),
        tx_frames: get(&tx.frames),
        tx_bytes: get(&tx.bytes),
        tx_bursts: get(&tx.bursts),
        rx_notifications: get(&rx.notifications),
        tx_notifications: get(&tx.notifications),
    })
}

/// Drops of all queues by reason, those that happened only.
fn drops(port: &Port) -> DropCounts {
    let everywhere: Vec<&Drops> = port
        .pairs()
        .iter()
        .flat_map(|pair| [&pair.ingress.counters().drops, &pair.egress.counters().drops])
        .chain([port.drops()])
        .collect();
    let mut sums = DropCounts::new();
    for (reason, count) in everywhere.iter().flat_map(|drops| drops.counts()) {
        *sums.entry(reason).or_default() += count;
    }
    sums
}

pub(super) fn fdb_entries(bridge: &Bridge) -> Vec<FdbEntryView> {
    bridge
        .fdb()
        .entries(bridge.clock().now())
        .into_iter()
        .filter_map(|entry| {
            // A port that is just being deleted has no name any more, and soon no entries.
            let port = bridge.port(entry.port)?.settings().name.clone();
            Some(FdbEntryView {
                mac: entry.mac,
                vlan: entry.vlan,
                port,
                age_s: entry.age,
                is_static: entry.is_static,
            })
        })
        .collect()
}
