//! The memory that a front-end shares.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use vhost::vhost_user::Result;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use virtio::memory::guard::fault_count;
use virtio::memory::{MemoryMap, Region};

use super::super::handover::RegionState;
use super::{Handler, refused};

impl Handler {
    /// Whether pages of the shared memory vanished since it was last asked.
    pub(in super::super) fn memory_lost(&mut self) -> bool {
        let faults = fault_count();
        if std::mem::replace(&mut self.faults, faults) == faults {
            return false;
        }
        self.memory
            .as_ref()
            .is_some_and(|memory| memory.regions().iter().any(|region| region.is_poisoned()))
    }

    /// Move everything to another memory map; the old one is unused afterwards.
    pub(super) fn change_memory(&mut self, memory: MemoryMap) -> Result<()> {
        let memory = Arc::new(memory);
        self.plane.memory_changed(&memory).map_err(refused)?;
        if let Some(control) = &mut self.control.running {
            control.queue.set_memory(Arc::clone(&memory)).map_err(refused)?;
        }
        self.memory = Some(memory);
        self.start_all()?;
        self.publish_status();
        Ok(())
    }
}

pub(super) fn place(region: &VhostUserMemoryRegion) -> RegionState {
    RegionState {
        guest_addr: region.guest_phys_addr,
        user_addr: region.user_addr,
        len: region.memory_size,
        offset: region.mmap_offset,
    }
}

pub(super) fn map(region: &VhostUserMemoryRegion, file: &File) -> Result<Arc<Region>> {
    let VhostUserMemoryRegion {
        guest_phys_addr,
        memory_size,
        user_addr,
        mmap_offset,
    } = *region;
    Region::map(file.as_fd(), mmap_offset, guest_phys_addr, user_addr, memory_size).map_err(refused)
}
