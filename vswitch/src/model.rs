//! What the HTTP API says, shared by the daemon, its client and the command line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::{LinkSetting, PollMode};
use crate::fdb::OnFull;
use crate::mac::MacAddr;

/// A bridge.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BridgeView {
    /// Its name.
    pub name: String,
    /// The daemon's process.
    pub pid: u32,
    /// Version of the daemon.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u32,
    /// Number of worker threads.
    pub workers: u16,
    /// How workers wait for frames.
    pub poll: PollMode,
    /// Queues moved from one worker to another because of their load.
    #[serde(default)]
    pub queue_moves: u64,
    /// What each worker did with its time.
    #[serde(default)]
    pub worker_counters: Vec<WorkerView>,
    /// Its forwarding database.
    pub fdb: FdbView,
    /// Its ports, in order of name.
    pub ports: Vec<PortView>,
}

/// What a worker did with its time since its daemon started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// Its number.
    pub index: u16,
    /// Frames taken from queues.
    pub frames: u64,
    /// Bursts that they came in.
    pub bursts: u64,
    /// Nanoseconds that these took, from the look that found them until the last frame was delivered. Divided by the frames,
    /// what one costs.
    pub busy_ns: u64,
    /// Looks at queues that had nothing.
    pub empty_looks: u64,
    /// Nanoseconds that these took.
    pub polling_ns: u64,
    /// Times it slept and was woken.
    pub wakeups: u64,
}

/// State of the forwarding database.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FdbView {
    /// Entries in use.
    pub entries: usize,
    /// The most entries it holds.
    pub size: usize,
    /// Seconds until a silent address is forgotten.
    pub ageing_s: u32,
    /// What it does when it is full.
    pub on_full: OnFull,
    /// Addresses learned so far.
    pub learned: u64,
    /// Addresses that moved to another port.
    pub moved: u64,
    /// Entries that aged.
    pub expired: u64,
    /// Entries that made room for others.
    pub evicted: u64,
    /// Addresses not learned because the table was full.
    pub refused: u64,
}

/// Whether a port can carry frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// The peer is connected and has a queue enabled.
    Up,
    /// It is not, or has none.
    Down,
}

/// A port.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// Its name.
    pub name: String,
    /// `vhost-user` or `tap`.
    pub kind: String,
    /// Path of the vhost-user socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Whether the switch connects to the socket instead of listening on it.
    #[serde(default)]
    pub client: bool,
    /// Name of the host's interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Whether it can carry frames.
    pub state: PortState,
    /// Whether a peer is connected.
    pub connected: bool,
    /// What its link was set to.
    #[serde(default)]
    pub link: LinkSetting,
    /// The address offered to the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mac: Option<MacAddr>,
    /// Whether the switch serves the guest's control queue.
    #[serde(default)]
    pub control_queue: bool,
    /// The only addresses that frames from it may come from; empty for any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub source_macs: Vec<MacAddr>,
    /// The largest payload of a frame.
    pub mtu: u16,
    /// The most queue pairs.
    pub queue_pairs: u16,
    /// Queue pairs that the guest uses now.
    pub enabled_queue_pairs: u16,
    /// Negotiated features, by their names in the VIRTIO text.
    pub features: Vec<String>,
    /// Sums over all queues.
    pub counters: PortCounters,
    /// One per queue pair.
    pub queues: Vec<QueueView>,
}

/// Counters of a port; `rx` is what the switch received from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortCounters {
    /// Frames received from the port.
    pub rx_frames: u64,
    /// Bytes received from the port.
    pub rx_bytes: u64,
    /// Frames sent to the port.
    pub tx_frames: u64,
    /// Bytes sent to the port.
    pub tx_bytes: u64,
    /// Dropped frames by reason: on the way in those from this port, on the way out those to it.
    pub drops: BTreeMap<String, u64>,
}

/// Counters of one queue pair; `rx` is what the switch received from it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    /// Number of the queue pair.
    pub index: u16,
    /// Whether the guest can receive on it.
    pub enabled: bool,
    /// The worker that takes what the guest transmits on it.
    #[serde(default)]
    pub worker: u16,
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bursts they came in.
    pub rx_bursts: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bursts they went in.
    pub tx_bursts: u64,
    /// Times the guest was notified that frames of its were taken.
    pub rx_notifications: u64,
    /// Times the guest was notified of frames for it.
    pub tx_notifications: u64,
}

/// A port to add.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPort {
    /// Its name.
    pub name: String,
    /// Path of the vhost-user socket; `ports/NAME.sock` in the bridge's folder if neither this nor `tap` is
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Connect to the socket instead of listening on it.
    #[serde(default)]
    pub client: bool,
    /// Name of an interface of the host, made if it does not exist, instead of a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The most queue pairs, 1 to 16.
    #[serde(default = "one_queue_pair")]
    pub queues: u16,
    /// The address offered to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mac: Option<MacAddr>,
    /// The MTU offered to the guest and enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Serve the guest's control queue, for a front-end that forwards it.
    #[serde(default)]
    pub control_queue: bool,
    /// Drop frames from other addresses than `mac` and those in `allow_macs`.
    #[serde(default)]
    pub anti_spoof: bool,
    /// More addresses that frames may come from, up to 15; for `anti_spoof` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow_macs: Vec<MacAddr>,
}

fn one_queue_pair() -> u16 {
    1
}

impl NewPort {
    /// A vhost-user port with one queue pair and the default socket.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            socket: None,
            client: false,
            tap: None,
            queues: 1,
            mac: None,
            mtu: None,
            control_queue: false,
            anti_spoof: false,
            allow_macs: Vec::new(),
        }
    }
}

/// What to change of a port; what is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortChange {
    /// Its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkSetting>,
    /// Whether frames from other addresses than the port's `mac` and those in `allow_macs` are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anti_spoof: Option<bool>,
    /// All other addresses that frames may come from, up to 15; for `anti_spoof` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow_macs: Vec<MacAddr>,
}

/// An entry of the forwarding database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FdbEntryView {
    /// The address.
    #[schema(value_type = String)]
    pub mac: MacAddr,
    /// The VLAN; 0 without VLANs.
    pub vlan: u16,
    /// Name of the port.
    pub port: String,
    /// Seconds since it last sent a frame.
    pub age_s: u32,
    /// Set by hand.
    #[serde(rename = "static")]
    pub is_static: bool,
}

/// A static entry to add.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFdbEntry {
    /// The address.
    #[schema(value_type = String)]
    pub mac: MacAddr,
    /// The VLAN; 0 without VLANs.
    #[serde(default)]
    pub vlan: u16,
    /// Name of the port.
    pub port: String,
}

/// How many entries a flush took.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Flushed {
    /// Number of entries.
    pub entries: usize,
}

/// Have another process go on with the bridge.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// The program to start; the daemon's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub program: Option<PathBuf>,
}

/// Another process goes on with the bridge.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Restarted {
    /// The new daemon's process.
    pub pid: u32,
    /// How long the ports stood still, in microseconds; frames waited in their senders' queues.
    pub stopped_us: u64,
}

/// Why a request was refused.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiErrorBody {
    /// What was refused, why, and what to do, in one line.
    pub error: String,
}
