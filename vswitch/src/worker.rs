//! The threads that move frames.
//!
//! A worker owns a set of queues that guests transmit on, and nobody else serves those. A queue is either
//! *active*, served in every round, or *armed*: its guest was asked to kick, and the worker looks at it when
//! it does. A worker without active queues sleeps.
//!
//! ```text
//!            kick, or the session asks for attention
//!    armed ───────────────────────────────────────────► active ──► (burst forwarded) ──┐
//!      ▲                                                  │  ▲                         │
//!      │   nothing came for a while: ask for kicks,       │  └─────────────────────────┘
//!      └── look once more, nothing there ◄────────────────┘
//! ```

mod announce;
mod copy;
mod deliver;
mod egress;
mod examine;
mod plan;
mod round;
mod shared;
mod source;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::thread::CpuSet;

use crate::bridge::Bridge;
use crate::config::BridgeSettings;
use crate::port::Port;

pub(crate) use announce::announce;
use round::Round;
pub use shared::WorkerShared;

/// The most chains taken from a queue at a time.
pub const BURST: usize = 64;

/// The workers of one bridge.
#[derive(Debug)]
pub struct Workers {
    shared: Vec<Arc<WorkerShared>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    /// Starts as many workers as the settings ask for.
    pub fn start(bridge: &Arc<Bridge>, settings: &BridgeSettings) -> io::Result<Self> {
        let mut workers = Self {
            shared: Vec::new(),
            threads: Mutex::default(),
        };
        for number in 0..settings.workers.max(1) {
            let shared = Arc::new(WorkerShared::new()?);
            let cpus = &settings.cpus;
            let cpu = cpus.get(usize::from(number) % cpus.len().max(1)).copied();
            let (bridge, own, poll) = (Arc::clone(bridge), Arc::clone(&shared), settings.poll);
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        pin(cpu);
                    }
                    Round::new(bridge, own, poll).run();
                })?;
            workers.shared.push(shared);
            workers
                .threads
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
        }
        Ok(workers)
    }

    /// Gives the queues of a port to the workers; returns each pair's worker and number there.
    pub fn add(&self, port: &Arc<Port>) -> Vec<(Arc<WorkerShared>, u64)> {
        (0..port.pairs().len())
            .map(|pair| {
                let shared = &self.shared[(port.id().index() + pair) % self.shared.len()];
                (Arc::clone(shared), shared.add(port, pair))
            })
            .collect()
    }

    /// Takes the queues of a port away from the workers.
    pub fn remove(&self, port: &Port) {
        for shared in &self.shared {
            shared.remove(port);
        }
    }

    /// Ends the workers.
    pub fn stop(&self) {
        for shared in &self.shared {
            shared.stop();
        }
        for thread in self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pin(cpu: u16) {
    let mut cpus = CpuSet::new();
    if usize::from(cpu) < CpuSet::MAX_CPU {
        cpus.set(usize::from(cpu));
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &cpus) {
        tracing::warn!(cpu, "the worker stays unpinned: {error}");
    }
}
