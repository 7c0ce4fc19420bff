//! A port as the workers see it.

mod home;
mod plane;
mod queue;
mod sources;
mod tap;
mod wishes;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::config::{DEFAULT_MTU, LinkSetting, PortKind, PortSettings};
use crate::counters::Drops;
use crate::flow::FlowTable;
use crate::handover::PortCounts;
use crate::port_id::PortId;

pub use home::Home;
pub use plane::PortPlane;
pub use queue::{EgressQueue, EgressRing, IngressQueue, IngressRing, QueuePair};
pub use sources::Sources;
pub use tap::{TapPort, TapPortError};
pub use wishes::Wishes;

/// In the mask of ready pairs, of which there are at most 16: the link was set down.
const SET_DOWN: u32 = 1 << 31;
/// In the same: the guest says by receive-side scaling which pair a frame goes to.
pub(crate) const STEERED: u32 = 1 << 30;

/// One port of the bridge.
#[derive(Debug)]
pub struct Port {
    id: PortId,
    settings: PortSettings,
    features: AtomicU64,
    connected: AtomicBool,
    ready: AtomicU32,
    flows: FlowTable,
    pairs: Box<[QueuePair]>,
    drops: Drops,
    wishes: Wishes,
    sources: Sources,
}

impl Port {
    /// A port that is not connected to anything yet.
    pub fn new(id: PortId, settings: PortSettings) -> Self {
        let down = match settings.link {
            LinkSetting::Up => 0,
            LinkSetting::Down => SET_DOWN,
        };
        let sources = Sources::default();
        sources.set(settings.source_macs.clone());
        let pairs = (0..settings.queue_pairs).map(|_| QueuePair::default()).collect();
        Self {
            id,
            settings,
            features: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            ready: AtomicU32::new(down),
            flows: FlowTable::new(),
            pairs,
            drops: Drops::default(),
            wishes: Wishes::default(),
            sources,
        }
    }

    /// The port's number.
    #[inline]
    pub fn id(&self) -> PortId {
        self.id
    }

    /// Whether the port is an interface of the host.
    #[inline]
    pub fn is_tap(&self) -> bool {
        matches!(self.settings.kind, PortKind::Tap { .. })
    }

    /// What the port was made from.
    pub fn settings(&self) -> &PortSettings {
        &self.settings
    }

    /// The largest payload of a frame.
    #[inline]
    pub fn mtu(&self) -> u16 {
        self.settings.mtu.unwrap_or(DEFAULT_MTU)
    }

    /// Features that the guest acknowledged. They change only while none of its rings runs.
    #[inline]
    pub fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    /// Whether a peer is connected.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// The queue pairs that frames can be delivered on, one bit each: those that the guest can receive on, or none
    /// while the link is set down. Bit 30 says that the guest chooses among them.
    #[inline]
    pub fn ready(&self) -> u32 {
        let ready = self.ready.load(Ordering::Relaxed);
        if ready & SET_DOWN == 0 { ready } else { 0 }
    }

    /// The queue pairs that the guest can receive on, one bit each.
    pub fn enabled(&self) -> u32 {
        self.ready.load(Ordering::Relaxed) & !(SET_DOWN | STEERED)
    }

    /// What the link was set to.
    #[inline]
    pub fn link(&self) -> LinkSetting {
        if self.ready.load(Ordering::Relaxed) & SET_DOWN == 0 {
            LinkSetting::Up
        } else {
            LinkSetting::Down
        }
    }

    /// Sets the link.
    pub(crate) fn set_link(&self, link: LinkSetting) {
        match link {
            LinkSetting::Up => self.ready.fetch_and(!SET_DOWN, Ordering::Relaxed),
            LinkSetting::Down => self.ready.fetch_or(SET_DOWN, Ordering::Relaxed),
        };
    }

    /// Waits for the bursts that workers have taken from the port: what was changed before, all later ones go by.
    pub(crate) fn outlast_bursts(&self) {
        for pair in &self.pairs {
            drop(pair.ingress.ring.lock());
        }
    }

    /// Notes whether the guest can receive on a queue pair; returns the mask as it was.
    pub(crate) fn set_ready(&self, pair: usize, ready: bool) -> u32 {
        let bit = 1 << (pair % 32);
        if ready {
            self.ready.fetch_or(bit, Ordering::Relaxed) & !(SET_DOWN | STEERED)
        } else {
            self.ready.fetch_and(!bit, Ordering::Relaxed) & !(SET_DOWN | STEERED)
        }
    }

    /// Notes whether the guest chooses the pair that a frame goes to.
    pub(crate) fn set_steered(&self, steered: bool) {
        if steered {
            self.ready.fetch_or(STEERED, Ordering::Relaxed);
        } else {
            self.ready.fetch_and(!STEERED, Ordering::Relaxed);
        }
    }

    /// What the guest asked for through its control queue.
    #[inline]
    pub fn wishes(&self) -> &Wishes {
        &self.wishes
    }

    /// The addresses that frames from the port may come from.
    #[inline]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Which pair each flow is delivered on.
    #[inline]
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// The queue pairs.
    #[inline]
    pub fn pairs(&self) -> &[QueuePair] {
        &self.pairs
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> PortCounts {
        let pairs = self.pairs.iter();
        PortCounts {
            drops: self.drops.counts(),
            pairs: pairs
                .map(|pair| [pair.ingress.counters().counts(), pair.egress.counters().counts()])
                .collect(),
        }
    }

    /// Counts on from there. Only while no worker serves the port.
    pub(crate) fn set_counts(&self, counts: &PortCounts) {
        self.drops.set(&counts.drops);
        for (pair, [ingress, egress]) in self.pairs.iter().zip(&counts.pairs) {
            pair.ingress.counters().set(ingress);
            pair.egress.counters().set(egress);
        }
    }

    /// Frames for the port that never reached one of its queues.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }
}
