//! Guest memory.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

/// The guest's RAM: one view for accesses, and the regions it is made of for those that map it themselves.
#[derive(Clone, Debug)]
pub struct GuestRam {
    /// Reads and writes by guest-physical address.
    pub mem: Arc<GuestMemoryMmap<()>>,
    /// The regions behind it, in ascending order.
    pub regions: Vec<RamRegion>,
}

/// A contiguous piece of guest RAM, in a file that can be shared.
#[derive(Clone, Debug)]
pub struct RamRegion {
    /// Guest-physical address.
    pub guest_addr: u64,
    /// Bytes.
    pub len: u64,
    /// The memory's file.
    pub memfd: Arc<OwnedFd>,
    /// Where in the file the region starts.
    pub offset: u64,
    /// Where in our address space the region starts.
    pub host_addr: u64,
}
