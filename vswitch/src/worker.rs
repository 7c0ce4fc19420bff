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
mod balance;
mod copy;
mod deliver;
mod egress;
mod examine;
mod plan;
mod round;
mod shared;
mod source;
mod train;
mod wanted;
mod window;
mod work;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::thread::CpuSet;

use crate::bridge::{Bridge, PortTable};
use crate::config::BridgeSettings;
use crate::port::{Home, Port};

pub(crate) use announce::announce;
use balance::{Balancer, Step};
use round::Round;
pub use shared::WorkerShared;
use window::Window;
pub use work::Work;

/// The most chains taken from a queue at a time.
pub const BURST: usize = 64;

/// The workers of one bridge.
#[derive(Debug)]
pub struct Workers {
    shared: Vec<Arc<WorkerShared>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    balancer: Mutex<Balancer>,
    moves: AtomicU64,
}

impl Workers {
    /// Starts as many workers as the settings ask for.
    pub fn start(bridge: &Arc<Bridge>, settings: &BridgeSettings) -> io::Result<Self> {
        let mut workers = Self {
            shared: Vec::new(),
            threads: Mutex::default(),
            balancer: Mutex::default(),
            moves: AtomicU64::new(0),
        };
        // Asked here: to a worker that is pinned, its own CPU is the only one.
        let cpus_at_hand = std::thread::available_parallelism().map_or(1, usize::from);
        for number in 0..settings.workers.max(1) {
            let shared = Arc::new(WorkerShared::new(usize::from(number))?);
            let cpus = &settings.cpus;
            let cpu = cpus.get(usize::from(number) % cpus.len().max(1)).copied();
            let (bridge, own, poll) = (Arc::clone(bridge), Arc::clone(&shared), settings.poll);
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        pin(cpu);
                    }
                    Round::new(bridge, own, Window::new(poll, cpus_at_hand)).run();
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
        (0..)
            .zip(port.pairs())
            .map(|(pair, queues)| {
                let worker = Arc::clone(&self.shared[(port.id().index() + pair) % self.shared.len()]);
                let number = worker.add(port, pair);
                let home = Home {
                    worker: Arc::clone(&worker),
                    number,
                };
                queues.ingress.set_home(&mut queues.ingress.home(), home);
                (worker, number)
            })
            .collect()
    }

    /// Takes the queues of a port away from the workers.
    pub fn remove(&self, port: &Port) {
        for queues in port.pairs() {
            if let Some(home) = queues.ingress.home().take() {
                home.worker.remove(home.number);
            }
        }
    }

    /// Looks at what each queue cost since the last time, and moves one to another worker if that has been worth it
    /// for two looks in a row. True if there was anything to do for the workers.
    pub fn balance(&self, ports: &PortTable) -> bool {
        let mut balancer = self.balancer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(step) = balancer.look(ports, self.shared.len()) {
            self.take(&step, ports);
        }
        balancer.busy
    }

    fn take(&self, step: &Step, ports: &PortTable) {
        let (Some(port), Some(to)) = (ports.get(step.port), self.shared.get(step.to)) else {
            return;
        };
        match relocate(port, step.pair, to) {
            Ok(()) => {
                self.moves.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(
                    port = port.settings().name,
                    pair = step.pair,
                    worker = step.to,
                    "queue moved"
                );
            }
            Err(error) => tracing::warn!(port = port.settings().name, "queue not moved: {error}"),
        }
    }

    /// Queues moved from one worker to another so far.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// The workers, each in the place of its number.
    pub fn all(&self) -> &[Arc<WorkerShared>] {
        &self.shared
    }

    /// While this is held, no queue that is given to the workers is served.
    pub fn hold(&self) -> Vec<MutexGuard<'_, ()>> {
        self.shared.iter().map(|shared| shared.hold()).collect()
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

/// Gives a queue to another worker. Frames stay in order: under the gate the former worker has delivered all that it
/// took, and it looks at who owns the queue whenever it has passed the gate.
fn relocate(port: &Arc<Port>, pair: usize, to: &Arc<WorkerShared>) -> io::Result<()> {
    let Some(queue) = port.pairs().get(pair).map(|pair| &pair.ingress) else {
        return Ok(());
    };
    let mut home = queue.home();
    let Some(from) = home.clone() else { return Ok(()) };
    let ring = queue.ring.lock();
    let new = Home {
        worker: Arc::clone(to),
        number: to.add(port, pair),
    };
    if let Some(kick) = ring.as_ref().and_then(|ring| ring.kick.as_ref()) {
        if let Err(error) = new.watch(kick) {
            to.remove(new.number);
            return Err(error);
        }
        from.unwatch(kick);
    }
    queue.set_home(&mut home, new);
    drop(ring);
    // It may still keep the memory of its last burst, and lets go when it looks.
    from.worker.remove(from.number);
    queue.want_attention();
    to.wake();
    Ok(())
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
