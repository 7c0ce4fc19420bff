//! The registers of one virtqueue.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::virtio::device::{ActiveQueue, QueueIrq};
use crate::virtio::irq::VectorCell;

/// No interrupt vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// One virtqueue as the driver sets it up. All but the vector is frozen once it is enabled.
#[derive(Debug)]
pub(super) struct QueueRegisters {
    max_size: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    /// The driver took it back from the device that runs.
    pub(super) returned: bool,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) cell: Arc<VectorCell>,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            enabled: false,
            returned: false,
            desc: 0,
            avail: 0,
            used: 0,
            cell: Arc::default(),
        }
    }

    /// Back to power-on. The cell goes on: nobody uses it, and it maps to nothing.
    pub(super) fn reset(&mut self) {
        self.cell.set(None);
        *self = Self {
            cell: Arc::clone(&self.cell),
            ..Self::new(self.max_size)
        };
    }

    /// Takes a size over if the standard allows it: in a packed ring any, else a power of two.
    pub(super) fn set_size(&mut self, size: u16, packed: bool) {
        if (size.is_power_of_two() || packed && size > 0) && size <= self.max_size {
            self.size = size;
        }
    }

    /// Enables the queue, if all of it is aligned and in memory.
    pub(super) fn enable(&mut self, ram: &GuestRam, packed: bool) {
        let size = u64::from(self.size);
        let desc = (self.desc, 16, 16 * size);
        let parts = if packed {
            // The event suppression areas of driver and device.
            [desc, (self.avail, 4, 4), (self.used, 4, 4)]
        } else {
            [desc, (self.avail, 2, 6 + 2 * size), (self.used, 4, 6 + 8 * size)]
        };
        self.returned = false;
        self.enabled = parts
            .iter()
            .all(|&(addr, align, len)| addr.is_multiple_of(align) && in_ram(ram, addr, len));
        if !self.enabled {
            tracing::debug!(
                ?parts,
                "virtqueue is not enabled: misaligned, or not in guest memory"
            );
        }
    }

    /// The queue for the device, if it is enabled.
    pub(super) fn activate(&self, index: u16, kick: &EventFd) -> io::Result<Option<ActiveQueue>> {
        if !self.enabled {
            return Ok(None);
        }
        let queue = ActiveQueue {
            index,
            size: self.size,
            desc: self.desc,
            avail: self.avail,
            used: self.used,
            kick: kick.try_clone()?,
            irq: QueueIrq::new(index, Arc::clone(&self.cell)),
        };
        Ok(Some(queue))
    }
}

fn in_ram(ram: &GuestRam, addr: u64, len: u64) -> bool {
    let Some(end) = addr.checked_add(len) else {
        return false;
    };
    ram.regions
        .iter()
        .any(|region| region.guest_addr <= addr && end <= region.guest_addr + region.len)
}
