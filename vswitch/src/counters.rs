//! Counters of the data plane.
//!
//! Every counter has one writer at a time (the worker that owns the queue, or the one that holds the
//! queue's lock), so that counting is a load and a store, and lies on cache lines of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    Runt,
    /// Longer than the port's MTU allows.
    Oversize,
    /// The descriptor chain was malformed, or not one that carries a frame in this direction.
    BadDescriptor,
    /// The virtio-net header asks for what was not negotiated or makes no sense.
    BadHeader,
    /// The source address was a group address or zero.
    BadSource,
    /// The source address was none of those that the port may send from.
    Spoofed,
    /// Sent to an address that bridges never forward.
    ReservedGroup,
    /// Sent on a queue pair that the guest had disabled.
    QueueDisabled,
    /// The destination is on the port that the frame came from.
    Hairpin,
    /// The source address did not fit into the forwarding database, whose policy is to drop.
    FdbFull,
    /// The receiver is not connected, or has no queue enabled.
    LinkDown,
    /// The receiver had posted too few buffers.
    NoBuffer,
    /// The receiver's buffers are too small for the frame.
    BufferTooSmall,
    /// The receiver's ring was being changed for longer than a worker waits.
    QueueBusy,
    /// The receiver did not negotiate an offload that could not be replaced by work of the switch.
    OffloadUnsupported,
    /// The host interface did not take the frame.
    HostError,
    /// The receiver said through its control queue that it does not want such frames.
    Filtered,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Runt,
        Self::Oversize,
        Self::BadDescriptor,
        Self::BadHeader,
        Self::BadSource,
        Self::Spoofed,
        Self::ReservedGroup,
        Self::QueueDisabled,
        Self::Hairpin,
        Self::FdbFull,
        Self::LinkDown,
        Self::NoBuffer,
        Self::BufferTooSmall,
        Self::QueueBusy,
        Self::OffloadUnsupported,
        Self::HostError,
        Self::Filtered,
    ];

    /// The name used in every output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runt => "runt",
            Self::Oversize => "oversize",
            Self::BadDescriptor => "bad-descriptor",
            Self::BadHeader => "bad-header",
            Self::BadSource => "bad-source",
            Self::Spoofed => "spoofed",
            Self::ReservedGroup => "reserved-group",
            Self::QueueDisabled => "queue-disabled",
            Self::Hairpin => "hairpin",
            Self::FdbFull => "fdb-full",
            Self::LinkDown => "link-down",
            Self::NoBuffer => "no-buffer",
            Self::BufferTooSmall => "buffer-too-small",
            Self::QueueBusy => "queue-busy",
            Self::OffloadUnsupported => "offload-unsupported",
            Self::HostError => "host-error",
            Self::Filtered => "filtered",
        }
    }
}

/// A number with one writer at a time.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the counter's writer calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds `n` where writers may meet; for what happens at most once in a burst.
    pub fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts on from `n`. Only while nobody counts.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Drops by reason.
#[derive(Debug, Default)]
pub struct Drops([Counter; DropReason::ALL.len()]);

impl Drops {
    /// Counts `n` drops. Only the counters' writer calls this.
    #[inline]
    pub fn add(&self, reason: DropReason, n: u64) {
        self.0[reason as usize].add(n);
    }

    /// Counts `n` drops where writers may meet; for what happens at most once in a burst.
    pub fn add_shared(&self, reason: DropReason, n: u64) {
        self.0[reason as usize].add_shared(n);
    }

    /// Drops for one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }

    /// Those that there were, by the names of their reasons.
    pub fn counts(&self) -> DropCounts {
        let all = DropReason::ALL.iter();
        let counts = all.map(|&reason| (reason.name().to_owned(), self.get(reason)));
        counts.filter(|&(_, count)| count > 0).collect()
    }

    /// Counts on from these; what is not known by name is left out. Only while nobody counts.
    pub fn set(&self, counts: &DropCounts) {
        for (reason, counter) in DropReason::ALL.iter().zip(&self.0) {
            counter.set(counts.get(reason.name()).copied().unwrap_or(0));
        }
    }
}

/// Drops by the names of their reasons.
pub type DropCounts = BTreeMap<String, u64>;

/// Counters of one direction of one queue pair.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    /// Frames moved.
    pub frames: Counter,
    /// Bytes moved, without the virtio-net header.
    pub bytes: Counter,
    /// Bursts they came in.
    pub bursts: Counter,
    /// Times the guest was notified.
    pub notifications: Counter,
    /// Frames dropped, by reason.
    pub drops: Drops,
}

/// What a queue's counters say, for whoever counts on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueCounts {
    frames: u64,
    bytes: u64,
    bursts: u64,
    notifications: u64,
    drops: DropCounts,
}

impl QueueCounters {
    /// All of them.
    pub fn counts(&self) -> QueueCounts {
        QueueCounts {
            frames: self.frames.get(),
            bytes: self.bytes.get(),
            bursts: self.bursts.get(),
            notifications: self.notifications.get(),
            drops: self.drops.counts(),
        }
    }

    /// Counts on from these. Only while nobody counts.
    pub fn set(&self, counts: &QueueCounts) {
        self.frames.set(counts.frames);
        self.bytes.set(counts.bytes);
        self.bursts.set(counts.bursts);
        self.notifications.set(counts.notifications);
        self.drops.set(&counts.drops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_order_and_named_apart() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
