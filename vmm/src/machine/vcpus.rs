//! The threads that run the vCPUs.
//!
//! ```text
//!   start ──► running ──pause──► parked ──resume──► running ──stop──► gone, vCPUs handed back
//!                │                                      ▲
//!                └── no way on (reset, fault): parked until stop
//! ```
//!
//! Every thread acknowledges what is asked of it, and `pause` and `stop` return when all have.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::signal::Killable;

use crate::bus::Bus;
use crate::hv::kick;
use crate::hv::vcpu::{Exit, FaultReport, Vcpu};

/// How long a vCPU may take to come out. Only a device that blocks can make it long.
const PATIENCE: Duration = Duration::from_secs(10);

const RUNNING: u8 = 0;
const PAUSED: u8 = 1;
const STOPPED: u8 = 2;

/// A vCPU thread did not come out of the guest.
#[derive(Debug, thiserror::Error)]
#[error("{0} vCPUs did not stop within {limit} s: a device blocks them; end the process", limit = PATIENCE.as_secs())]
pub struct Stuck(usize);

/// What a vCPU thread reports.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The guest has no way on.
    Shutdown,
    /// The hypervisor cannot go on.
    Fault(FaultReport),
}

/// What all vCPUs share.
pub struct Guest {
    /// Ports.
    pub pio: Arc<Bus>,
    /// Memory addresses.
    pub mmio: Arc<Bus>,
    /// Who hears of events.
    pub report: Box<dyn Fn(VcpuEvent) + Send + Sync>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("pio", &self.pio)
            .field("mmio", &self.mmio)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shared {
    goal: AtomicU8,
    /// How many threads are out of the guest and stay out until the goal changes.
    parked: Mutex<usize>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goal(&self) -> u8 {
        self.goal.load(Ordering::SeqCst)
    }

    /// Stays out while `out` says so.
    fn park(&self, out: impl Fn(u8) -> bool) {
        let mut parked = self.lock();
        *parked += 1;
        self.changed.notify_all();
        while out(self.goal()) {
            parked = self.changed.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        *parked -= 1;
    }
}

/// The running vCPUs of a guest.
#[derive(Debug)]
pub struct VcpuThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vcpu>>,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU.
    pub fn start(vcpus: Vec<Vcpu>, guest: &Arc<Guest>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            goal: AtomicU8::new(RUNNING),
            parked: Mutex::new(0),
            changed: Condvar::new(),
        });
        let mut threads = Vec::with_capacity(vcpus.len());
        for vcpu in vcpus {
            let (shared, guest) = (Arc::clone(&shared), Arc::clone(guest));
            threads.push(
                std::thread::Builder::new()
                    .name(format!("vcpu{}", vcpu.index()))
                    .spawn(move || run(vcpu, &shared, &guest))?,
            );
        }
        Ok(Self { shared, threads })
    }

    /// Takes all vCPUs out of the guest.
    pub fn pause(&self) -> Result<(), Stuck> {
        self.set_goal(PAUSED);
        let deadline = Instant::now() + PATIENCE;
        let mut parked = self.shared.lock();
        while *parked < self.threads.len() {
            let Some(rest) = deadline.checked_duration_since(Instant::now()) else {
                return Err(Stuck(self.threads.len() - *parked));
            };
            parked = self
                .shared
                .changed
                .wait_timeout(parked, rest)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// Lets them run on.
    pub fn resume(&self) {
        self.set_goal(RUNNING);
    }

    /// Ends the threads and hands the vCPUs back, in order.
    pub fn stop(self) -> Result<Vec<Vcpu>, Stuck> {
        self.pause()?;
        self.set_goal(STOPPED);
        let count = self.threads.len();
        let vcpus: Vec<Vcpu> = self.threads.into_iter().filter_map(|t| t.join().ok()).collect();
        if vcpus.len() == count {
            Ok(vcpus)
        } else {
            Err(Stuck(count - vcpus.len()))
        }
    }

    fn set_goal(&self, goal: u8) {
        {
            // Under the lock, or a thread on its way to wait would miss it.
            let _parked = self.shared.lock();
            self.shared.goal.store(goal, Ordering::SeqCst);
        }
        self.shared.changed.notify_all();
        if goal != RUNNING {
            for thread in &self.threads {
                // A thread that has ended needs no kick.
                let _ = thread.kill(kick::signal());
            }
        }
    }
}

fn run(mut vcpu: Vcpu, shared: &Shared, guest: &Guest) -> Vcpu {
    let armed = vcpu.arm();
    loop {
        // In this order: a kick that comes later than the look at the goal must not be forgotten.
        vcpu.clear_kick();
        match shared.goal() {
            STOPPED => break,
            PAUSED => {
                shared.park(|goal| goal == PAUSED);
                vcpu.resumed();
                continue;
            }
            _ => {}
        }
        let event = match vcpu.run(&guest.pio, &guest.mmio) {
            Exit::Handled | Exit::Kicked => continue,
            Exit::Shutdown => VcpuEvent::Shutdown,
            Exit::Fault(fault) => VcpuEvent::Fault(fault),
        };
        (guest.report)(event);
        shared.park(|goal| goal != STOPPED);
    }
    drop(armed);
    vcpu
}
