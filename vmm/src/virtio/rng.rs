//! The entropy device: fills the driver's buffers from the host's random number generator.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use tracing::debug;
use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

use super::device::{ActivateError, Activation, ActiveQueue, ConfigIrq, VirtioDevice};
use super::ring::{BrokenRing, Ring, ServeError};
use super::worker::{Poller, Worker};
use crate::memory::GuestRam;

#[cfg(test)]
mod tests;

/// The device type number of an entropy source.
const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// The most that one request gets; the driver asks again for more.
const MOST: usize = 4096;

/// A virtio entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    worker: Option<Worker>,
    terms: Option<Terms>,
}

/// What an activation gives besides the queue.
#[derive(Debug)]
struct Terms {
    mem: GuestRam,
    features: u64,
    config_irq: ConfigIrq,
}

impl Rng {
    /// An entropy device that nobody drives yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_F_RING_RESET
    }

    fn ack_features(&mut self, _features: u64) -> bool {
        true
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            mem,
            queues,
            features,
            config_irq,
        } = activation;
        let queue = queues.into_iter().next().ok_or(ActivateError::MissingQueue(0))?;
        self.terms = Some(Terms {
            mem,
            features,
            config_irq,
        });
        self.start_queue(queue)
    }

    fn pause(&mut self) {
        if let Some(worker) = &self.worker {
            worker.hold();
        }
    }

    fn resume(&mut self) {
        if let Some(worker) = &self.worker {
            worker.release();
        }
    }

    fn reset(&mut self) {
        self.worker = None;
        self.terms = None;
    }

    fn reset_queue(&mut self, _index: u16) {
        self.worker = None;
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let Some(terms) = &self.terms else {
            return Err(ActivateError::MissingQueue(queue.index));
        };
        let ring = Ring::new(queue, terms.mem.mem.clone(), terms.features)?;
        let config_irq = terms.config_irq.clone();
        self.worker = Some(Worker::spawn("rng", move |poller| {
            run(poller, ring, &config_irq);
        })?);
        Ok(())
    }
}

fn run(mut poller: Poller, ring: Ring, config_irq: &ConfigIrq) {
    if let Err(error) = serve(&mut poller, ring) {
        debug!(%error, "entropy device stops");
        config_irq.needs_reset();
        poller.wait_for_end();
    }
}

fn serve(poller: &mut Poller, mut ring: Ring) -> Result<(), ServeError> {
    poller.add(ring.kick(), 0, EventSet::IN)?;
    // The driver may have notified before anyone listened.
    fill(&mut ring)?;
    while poller.wait()?.is_some() {
        if ring.kick().read().is_ok() {
            fill(&mut ring)?;
        }
    }
    Ok(())
}

/// Fills what is there, at most a ring full at a time: what comes in meanwhile is served next time.
fn fill(ring: &mut Ring) -> Result<(), BrokenRing> {
    for _ in 0..ring.size() {
        let Some(chain) = ring.pop()? else { break };
        let mut bytes = vec![0; chain.writable().min(MOST)];
        let written = if random(&mut bytes).is_ok() {
            ring.write(&chain, &bytes)
        } else {
            0
        };
        ring.complete(&chain, written)?;
    }
    ring.announce()?;
    if ring.has_buffers()? {
        // Comes back here after a look at whether to stop.
        let _ = ring.kick().write(1);
    }
    Ok(())
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        done += getrandom(&mut bytes[done..], GetRandomFlags::empty())?;
    }
    Ok(())
}
