//! What happened to the frames of one queue pair.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a queue pair. `rx` is what the guest receives, `tx` what it transmits.
#[derive(Debug, Default)]
pub struct Counters {
    rx_frames: AtomicU64,
    rx_bytes: AtomicU64,
    rx_copied: AtomicU64,
    rx_dropped: AtomicU64,
    rx_bad_chains: AtomicU64,
    tx_frames: AtomicU64,
    tx_bytes: AtomicU64,
    tx_discarded: AtomicU64,
    tx_refused: AtomicU64,
    tx_malformed: AtomicU64,
    broken_rings: AtomicU64,
}

/// A reading of [`Counters`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Frames that the guest received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Those among them that were copied from this process's memory, not read straight into the guest's.
    pub rx_copied: u64,
    /// Frames dropped because the guest's buffers can never hold them.
    pub rx_dropped: u64,
    /// Receive buffers returned unused because they were malformed.
    pub rx_bad_chains: u64,
    /// Frames that the guest transmitted.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames discarded because the ring was disabled.
    pub tx_discarded: u64,
    /// Frames that the wire could not take.
    pub tx_refused: u64,
    /// Frames dropped because chain, header or length made no sense.
    pub tx_malformed: u64,
    /// Rings stopped because the driver broke them.
    pub broken_rings: u64,
}

impl Counters {
    pub(super) fn rx_frame(&self, len: usize) {
        add(&self.rx_frames, 1);
        add(&self.rx_bytes, len as u64);
    }

    pub(super) fn rx_copied(&self) {
        add(&self.rx_copied, 1);
    }

    pub(super) fn rx_dropped(&self) {
        add(&self.rx_dropped, 1);
    }

    pub(super) fn rx_bad_chain(&self) {
        add(&self.rx_bad_chains, 1);
    }

    pub(super) fn tx_frame(&self, len: usize) {
        add(&self.tx_frames, 1);
        add(&self.tx_bytes, len as u64);
    }

    pub(super) fn tx_discarded(&self) {
        add(&self.tx_discarded, 1);
    }

    pub(super) fn tx_refused(&self) {
        add(&self.tx_refused, 1);
    }

    pub(super) fn tx_malformed(&self) {
        add(&self.tx_malformed, 1);
    }

    pub(super) fn broken_ring(&self) {
        add(&self.broken_rings, 1);
    }

    /// The values now.
    pub fn read(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            rx_frames: get(&self.rx_frames),
            rx_bytes: get(&self.rx_bytes),
            rx_copied: get(&self.rx_copied),
            rx_dropped: get(&self.rx_dropped),
            rx_bad_chains: get(&self.rx_bad_chains),
            tx_frames: get(&self.tx_frames),
            tx_bytes: get(&self.tx_bytes),
            tx_discarded: get(&self.tx_discarded),
            tx_refused: get(&self.tx_refused),
            tx_malformed: get(&self.tx_malformed),
            broken_rings: get(&self.broken_rings),
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
