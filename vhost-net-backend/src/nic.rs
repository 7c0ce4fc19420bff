//! The data plane of a stand-alone NIC: a worker for each queue pair, between the guest's rings and a wire.

mod counters;
mod pair;
mod receiver;
mod turn;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use virtio::memory::MemoryMap;
use virtio::split::QueueError;

pub use counters::{Counters, Counts};
pub use pair::MAX_FRAME;
use pair::{Pair, Side};
pub use receiver::{Delivery, Receiver, Taken};

use crate::eventfd::Call;
use crate::plane::{DevicePlane, Ring};
use crate::wire::Wire;

/// A NIC: implements [`DevicePlane`] for one session.
pub struct Nic {
    pairs: Vec<Arc<Pair>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Nic {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Nic")
            .field("pairs", &self.pairs.len())
            .finish_non_exhaustive()
    }
}

impl Nic {
    /// Start a worker for each wire. Frames without segmentation that exceed `mtu` are dropped.
    pub fn start(wires: Vec<Box<dyn Wire>>, mtu: Option<u16>) -> io::Result<Arc<Self>> {
        let pairs = wires
            .into_iter()
            .map(|wire| Pair::new(wire, mtu))
            .collect::<io::Result<Vec<_>>>()?;
        let nic = Arc::new(Self {
            pairs,
            workers: Mutex::default(),
        });
        for (at, pair) in nic.pairs.iter().enumerate() {
            let pair = Arc::clone(pair);
            let worker = std::thread::Builder::new()
                .name(format!("pair-{at}"))
                .spawn(move || pair.run())?;
            nic.workers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(worker);
        }
        Ok(nic)
    }

    /// What happened to the frames of each queue pair so far.
    pub fn counts(&self) -> Vec<Counts> {
        self.pairs.iter().map(|pair| pair.counters.read()).collect()
    }

    fn pair(&self, index: u16) -> Option<(&Arc<Pair>, Side)> {
        let side = if index.is_multiple_of(2) {
            Side::Rx
        } else {
            Side::Tx
        };
        self.pairs.get(usize::from(index / 2)).map(|pair| (pair, side))
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.pairs.iter().for_each(|pair| pair.stop());
        for worker in self
            .workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _ = worker.join();
        }
    }
}

impl DevicePlane for Nic {
    fn features_acked(&self, acked: u64) {
        for pair in &self.pairs {
            pair.change(|state| state.set_features(acked));
        }
    }

    fn ring_started(&self, index: u16, ring: Ring) {
        if let Some((pair, side)) = self.pair(index) {
            pair.change(|state| pair.start(state, side, ring));
        }
    }

    fn ring_enabled(&self, index: u16, enabled: bool) {
        if let Some((pair, side)) = self.pair(index) {
            pair.change(|state| state.enable(side, enabled));
        }
    }

    fn call_changed(&self, index: u16, call: Option<Call>) {
        if let Some((pair, side)) = self.pair(index) {
            pair.change(|state| state.set_call(side, call));
        }
    }

    fn ring_stopped(&self, index: u16) -> u16 {
        self.pair(index)
            .map_or(0, |(pair, side)| pair.change(|state| pair.end(state, side)))
    }

    fn memory_changed(&self, memory: &Arc<MemoryMap>) -> Result<(), QueueError> {
        self.pairs
            .iter()
            .try_for_each(|pair| pair.change(|state| state.set_memory(memory)))
    }

    fn disconnected(&self) {
        for pair in &self.pairs {
            pair.change(|state| {
                pair.end(state, Side::Rx);
                pair.end(state, Side::Tx);
            });
        }
    }
}
