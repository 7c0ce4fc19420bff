//! Queues of either layout behind one face.

use std::sync::Arc;

use virtio::queue::{Queue, RingError};
use virtio::split::driver::{Buffer, IndirectTables, QueueFull};
use virtio::{packed, split};

use crate::rig::{BASE, Rig};

/// The driver end of either layout.
pub(crate) enum Driver {
    Split(split::driver::DriverQueue),
    Packed(packed::driver::DriverQueue),
}

macro_rules! either {
    ($driver:expr, $inner:ident => $call:expr) => {
        match $driver {
            Driver::Split($inner) => $call,
            Driver::Packed($inner) => $call,
        }
    };
}

impl Driver {
    pub(crate) fn push(&mut self, r: &[Buffer], w: &[Buffer], token: u64) -> Result<(), QueueFull> {
        either!(self, q => q.push(r, w, token))
    }

    pub(crate) fn publish(&mut self) -> bool {
        either!(self, q => q.publish())
    }

    pub(crate) fn pop_used(&mut self) -> Result<Option<(u64, u32)>, RingError> {
        either!(self, q => q.pop_used())
    }

    pub(crate) fn enable_interrupts(&mut self) -> bool {
        either!(self, q => q.enable_interrupts())
    }

    pub(crate) fn disable_interrupts(&mut self) {
        either!(self, q => q.disable_interrupts());
    }

    pub(crate) fn free_descriptors(&self) -> u16 {
        either!(self, q => q.free_descriptors())
    }

    pub(crate) fn in_flight(&self) -> usize {
        match self {
            Self::Split(q) => usize::from(q.in_flight()),
            Self::Packed(q) => q.in_flight(),
        }
    }
}

/// Turns a rig into one with a packed queue that starts at the given places.
pub(crate) fn make_packed(rig: &mut Rig, next_avail: u16, used_idx: u16) {
    rig.config.desc = BASE;
    rig.config.avail = BASE + 0x2_0000;
    rig.config.used = BASE + 0x2_0040;
    rig.config.next_avail = next_avail;
    rig.config.used_idx = used_idx;
}

/// Both ends on a rig's queue.
pub(crate) fn ends(rig: &Rig, packed: bool, tables: Option<IndirectTables>) -> (Queue, Driver) {
    let mem = || Arc::clone(&rig.mem);
    let driver = if packed {
        packed::driver::DriverQueue::new(mem(), &rig.config, tables).map(Driver::Packed)
    } else {
        split::driver::DriverQueue::new(mem(), &rig.config, tables).map(Driver::Split)
    };
    let device = Queue::new(mem(), &rig.config, packed).expect("a device end");
    (device, driver.expect("a driver end"))
}
