//! The driver end of a virtqueue of either layout.

use std::sync::Arc;

use virtio::memory::MemoryMap;
use virtio::split::driver::{Buffer, QueueFull};
use virtio::split::{QueueConfig, QueueError, RingError};
use virtio::{packed, split};

/// The driver end of a queue.
#[derive(Debug)]
pub enum Driver {
    /// Of a split queue.
    Split(split::driver::DriverQueue),
    /// Of a packed queue.
    Packed(packed::driver::DriverQueue),
}

/// Calls the same method of either kind.
macro_rules! either {
    ($driver:expr, $inner:ident => $call:expr) => {
        match $driver {
            Driver::Split($inner) => $call,
            Driver::Packed($inner) => $call,
        }
    };
}

impl Driver {
    /// Builds an empty queue, packed or split, which the device end must start where `config` says.
    pub fn new(mem: Arc<MemoryMap>, config: &QueueConfig, packed: bool) -> Result<Self, QueueError> {
        if packed {
            packed::driver::DriverQueue::new(mem, config, None).map(Self::Packed)
        } else {
            split::driver::DriverQueue::new(mem, config, None).map(Self::Split)
        }
    }

    /// Makes a chain for the device, as [`split::driver::DriverQueue::push`] does.
    #[inline]
    pub fn push(&mut self, readable: &[Buffer], writable: &[Buffer], token: u64) -> Result<(), QueueFull> {
        either!(self, driver => driver.push(readable, writable, token))
    }

    /// Shows the device everything pushed since the last time. True when it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(self, driver => driver.publish())
    }

    /// Takes the next used chain back: its token, and how many bytes the device says it wrote.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<(u64, u32)>, RingError> {
        either!(self, driver => driver.pop_used())
    }

    /// Chains that the device has and did not return yet.
    #[inline]
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Split(driver) => usize::from(driver.in_flight()),
            Self::Packed(driver) => driver.in_flight(),
        }
    }

    /// Asks the device not to interrupt: the driver end polls.
    pub fn disable_interrupts(&mut self) {
        either!(self, driver => driver.disable_interrupts());
    }

    /// Asks the device to interrupt at the next used chain. True when some came meanwhile.
    pub fn enable_interrupts(&mut self) -> bool {
        either!(self, driver => driver.enable_interrupts())
    }
}
