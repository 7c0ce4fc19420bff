//! The bridge's state as Prometheus metrics.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::model::{BridgeView, PortState, WorkerView};

/// The text's media type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PortLabels {
    port: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabels {
    port: String,
    queue: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WorkerLabels {
    worker: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DropLabels {
    port: String,
    reason: String,
}

/// Writes the metrics of a bridge.
pub fn render(view: &BridgeView) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix_and_labels(
        "vswitch",
        [("bridge".into(), view.name.clone().into())].into_iter(),
    );
    bridge(&mut registry, view);
    ports(&mut registry, view);
    queues(&mut registry, view);
    workers(&mut registry, view);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn bridge(registry: &mut Registry, view: &BridgeView) {
    let gauge = |value: usize| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(
        "fdb_entries",
        "Entries in the forwarding database",
        gauge(view.fdb.entries),
    );
    registry.register(
        "fdb_size",
        "Most entries of the forwarding database",
        gauge(view.fdb.size),
    );
    registry.register(
        "uptime_seconds",
        "Time since the bridge came up",
        ConstGauge::new(i64::from(view.uptime_s)),
    );
    for (name, help, value) in [
        (
            "queue_moves",
            "Queues moved to another worker because of their load",
            view.queue_moves,
        ),
        ("fdb_learned", "Addresses learned", view.fdb.learned),
        (
            "fdb_moved",
            "Addresses that moved to another port",
            view.fdb.moved,
        ),
        ("fdb_expired", "Entries that aged", view.fdb.expired),
        (
            "fdb_evicted",
            "Entries that made room for others",
            view.fdb.evicted,
        ),
        (
            "fdb_refused",
            "Addresses not learned because the table was full",
            view.fdb.refused,
        ),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
}

fn ports(registry: &mut Registry, view: &BridgeView) {
    let up = Family::<PortLabels, Gauge>::default();
    let drops = Family::<DropLabels, Counter>::default();
    for port in &view.ports {
        let labels = PortLabels {
            port: port.name.clone(),
        };
        up.get_or_create(&labels)
            .set(i64::from(port.state == PortState::Up));
        for (reason, count) in &port.counters.drops {
            let labels = DropLabels {
                port: port.name.clone(),
                reason: reason.clone(),
            };
            drops.get_or_create(&labels).inc_by(*count);
        }
    }
    registry.register("port_up", "Whether the port can carry frames", up);
    registry.register("port_drops", "Frames dropped", drops);
}

fn queues(registry: &mut Registry, view: &BridgeView) {
    type Field = fn(&crate::model::QueueView) -> u64;
    let fields: [(&str, &str, Field); 6] = [
        ("queue_rx_frames", "Frames received from the port", |queue| {
            queue.rx_frames
        }),
        ("queue_rx_bytes", "Bytes received from the port", |queue| {
            queue.rx_bytes
        }),
        ("queue_tx_frames", "Frames sent to the port", |queue| {
            queue.tx_frames
        }),
        ("queue_tx_bytes", "Bytes sent to the port", |queue| queue.tx_bytes),
        (
            "queue_rx_notifications",
            "Notifications for frames taken",
            |queue| queue.rx_notifications,
        ),
        (
            "queue_tx_notifications",
            "Notifications for frames delivered",
            |queue| queue.tx_notifications,
        ),
    ];
    for (name, help, field) in fields {
        let family = Family::<QueueLabels, Counter>::default();
        for port in &view.ports {
            for queue in &port.queues {
                let labels = QueueLabels {
                    port: port.name.clone(),
                    queue: queue.index,
                };
                family.get_or_create(&labels).inc_by(field(queue));
            }
        }
        registry.register(name, help, family);
    }
}

fn workers(registry: &mut Registry, view: &BridgeView) {
    type Count = fn(&WorkerView) -> u64;
    let counts: [(&str, &str, Count); 4] = [
        ("worker_frames", "Frames taken from queues", |worker| {
            worker.frames
        }),
        ("worker_bursts", "Bursts that frames were taken in", |worker| {
            worker.bursts
        }),
        (
            "worker_empty_looks",
            "Looks at queues that had nothing",
            |worker| worker.empty_looks,
        ),
        (
            "worker_wakeups",
            "Times the worker slept and was woken",
            |worker| worker.wakeups,
        ),
    ];
    for (name, help, count) in counts {
        let family = Family::<WorkerLabels, Counter>::default();
        for worker in &view.worker_counters {
            family.get_or_create(&labels(worker)).inc_by(count(worker));
        }
        registry.register(name, help, family);
    }
    let times: [(&str, &str, Count); 2] = [
        ("worker_busy_seconds", "Time spent on bursts", |worker| {
            worker.busy_ns
        }),
        (
            "worker_polling_seconds",
            "Time spent on looks at queues that had nothing",
            |worker| worker.polling_ns,
        ),
    ];
    for (name, help, time) in times {
        let family = Family::<WorkerLabels, Counter<f64, AtomicU64>>::default();
        for worker in &view.worker_counters {
            let time = Duration::from_nanos(time(worker)).as_secs_f64();
            family.get_or_create(&labels(worker)).inc_by(time);
        }
        registry.register(name, help, family);
    }
}

fn labels(worker: &WorkerView) -> WorkerLabels {
    WorkerLabels { worker: worker.index }
}
