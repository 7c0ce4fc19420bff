//! How a device interrupts its driver: from any thread, whatever vector the driver has mapped to the event.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vmm_sys_util::eventfd::EventFd;

/// The eventfd of the MSI-X vector that the driver mapped to an event, if any.
#[derive(Debug, Default)]
pub struct VectorCell(RwLock<Option<EventFd>>);

impl VectorCell {
    /// Maps the event to the vector that `eventfd` triggers, or to none.
    pub fn set(&self, eventfd: Option<EventFd>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = eventfd;
    }

    fn signal(&self) {
        if let Some(fd) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            // An eventfd that is full is signalled already.
            let _ = fd.write(1);
        }
    }

    fn duplicate(&self) -> Option<EventFd> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(|fd| fd.try_clone().ok())
    }
}

/// Interrupts the driver on behalf of one virtqueue. Silent while the driver has mapped no vector to the queue.
#[derive(Clone)]
pub struct QueueIrq {
    index: u16,
    cell: Arc<VectorCell>,
}

impl QueueIrq {
    /// The interrupt of the queue `index`, raised through whatever `cell` holds.
    pub fn new(index: u16, cell: Arc<VectorCell>) -> Self {
        Self { index, cell }
    }

    /// Raises the interrupt.
    pub fn notify(&self) {
        self.cell.signal();
    }

    /// An eventfd that raises the interrupt when written to, for back-ends outside of this process. It stays right
    /// while the vector is masked, unmasked or given another message; it changes only when the driver maps
    /// another vector (see [`super::device::VirtioDevice::queue_irq_changed`]). `None` without a vector.
    pub fn as_irqfd(&self) -> Option<EventFd> {
        self.cell.duplicate()
    }
}

impl fmt::Debug for QueueIrq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueIrq")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// What device threads tell the transport and the transport tells the driver.
#[derive(Debug, Default)]
pub struct DeviceEvents {
    /// Vector for configuration changes.
    pub config_vector: VectorCell,
    generation: AtomicU8,
    config_changed: AtomicBool,
    needs_reset: AtomicBool,
}

impl DeviceEvents {
    /// The value of `config_generation`.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// True if the configuration has changed since the last call.
    pub fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::AcqRel)
    }

    /// True if the device has failed since the last reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Back to the state of a device that was never driven. The generation goes on: it only has to differ.
    pub fn reset(&self) {
        self.config_vector.set(None);
        self.config_changed.store(false, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }
}

/// Tells the driver that the configuration space has changed, or that the device has failed.
#[derive(Clone, Debug)]
pub struct ConfigIrq(Arc<DeviceEvents>);

impl ConfigIrq {
    /// Reports through `events`.
    pub fn new(events: Arc<DeviceEvents>) -> Self {
        Self(events)
    }

    /// The configuration space has changed: call this once the new contents are what `read_config` returns.
    pub fn notify(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.0.config_changed.store(true, Ordering::Release);
        self.0.config_vector.signal();
    }

    /// The device cannot go on until it is reset, because its driver broke a rule: sets `DEVICE_NEEDS_RESET`.
    pub fn needs_reset(&self) {
        self.0.needs_reset.store(true, Ordering::Release);
        self.notify();
    }
}
