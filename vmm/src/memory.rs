//! Guest RAM: sealed, shared memory files mapped into this process, into KVM, and by descriptor into back-ends.
//!
//! RAM is one memory file per NUMA node of the guest. The file is sealed against shrinking and growing before anybody
//! else sees it, so no peer that maps it can be hit by a bus error. The nodes follow one another. Below 4 GiB RAM ends
//! where the PCI window begins; the rest of the node that is there continues at 4 GiB.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, SealFlags};
use virtio::memory::{MemoryMap, Region};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::board::layout;

mod host_node;
#[cfg(test)]
mod tests;

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size makes no sense.
    #[error(
        "guest memory of {0} bytes refused: it must be a multiple of {1} and at least {2} bytes; change --memory"
    )]
    Size(u64, u64, u64),
    /// The memory file could not be made.
    #[error("guest memory file refused by the host: {0}; check the limits on memory and open files")]
    File(#[source] std::io::Error),
    /// The memory file could not be mapped.
    #[error("guest memory of {0} bytes could not be mapped: {1}; free memory or lower --memory")]
    Map(u64, String),
    /// Huge pages were asked for and the host has too few.
    #[error(
        "guest memory of {0} bytes in huge pages refused: {1}; reserve {2} pages with `sysctl vm.nr_hugepages` or \
         leave out hugepages=on"
    )]
    HugePages(u64, String, u64),
    /// The memory cannot be had from the NUMA node of the host that was asked for.
    #[error(
        "guest memory on NUMA node {0} of the host refused: {1}; `vmm check` and /sys/devices/system/node tell \
             which there are"
    )]
    HostNode(u32, #[source] std::io::Error),
    /// Somebody who follows guest memory refused a region.
    #[error("guest memory at {0:#x} refused by {1}: {2}")]
    Observer(u64, &'static str, String),
}

/// Guest RAM with no hole in it: a piece of a memory file, mapped at one address of the guest and one of this process.
#[derive(Debug, Clone)]
pub struct RamRegion {
    /// Where the guest sees it.
    pub guest_addr: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The memory file.
    pub memfd: Arc<File>,
    /// Where in the file it starts.
    pub offset: u64,
    /// Where this process has it mapped.
    pub host_addr: u64,
}

impl RamRegion {
    /// The memory file, for handing it to a back-end.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

/// Follows the guest's memory: KVM's slots, a back-end's memory table, a device's DMA maps.
pub trait MemoryObserver: Send + Sync {
    /// For error messages.
    fn name(&self) -> &'static str;
    /// `region` is mapped and about to become guest memory.
    fn ram_added(&self, region: &RamRegion) -> Result<(), String>;
    /// `region` is no longer guest memory; returns when the observer does not use it any more.
    fn ram_removed(&self, region: &RamRegion);
}

/// All RAM of a guest. Cloning shares it.
#[derive(Debug, Clone)]
pub struct GuestRam {
    /// The view through which this process reads and writes guest memory.
    pub mem: Arc<GuestMemoryMmap>,
    /// The regions behind the view, by rising guest address.
    pub regions: Vec<RamRegion>,
    /// See [`GuestRam::for_rings`].
    pub(crate) rings: Arc<OnceLock<Arc<MemoryMap>>>,
}

/// What guest RAM is asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamConfig {
    /// Bytes of RAM.
    pub size: u64,
    /// Back it with reserved 2 MiB pages; all are taken when the VM is made, or it is not made.
    pub hugepages: bool,
}

/// One NUMA node's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamNode {
    /// Bytes of RAM.
    pub size: u64,
    /// The NUMA node of the host that all of it comes from; any, if none is given.
    pub host_node: Option<u32>,
}

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;
/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS_MAGIC: rustix::fs::FsWord = 0x9584_58f6;
/// Kernel, tables and start-up data need some room.
const MIN_SIZE: u64 = 2 << 20;

impl GuestRam {
    /// Makes the RAM of one node, starting at guest address 0.
    pub fn new(config: RamConfig) -> Result<Self, MemoryError> {
        let node = RamNode {
            size: config.size,
            host_node: None,
        };
        Self::with_nodes(&[node], config.hugepages)
    }

    /// Makes the RAM of several nodes, the first one starting at guest address 0.
    pub fn with_nodes(nodes: &[RamNode], hugepages: bool) -> Result<Self, MemoryError> {
        let page = if hugepages { HUGE_PAGE } else { PAGE };
        let mut regions = Vec::new();
        let mut listed = Vec::new();
        let mut before = 0;
        for node in nodes {
            if node.size < MIN_SIZE || !node.size.is_multiple_of(page) {
                return Err(MemoryError::Size(node.size, page, MIN_SIZE));
            }
            let config = RamConfig {
                size: node.size,
                hugepages,
            };
            let memfd = Arc::new(File::from(sealed_memfd(config)?));
            for (offset, guest) in places(before, node.size) {
                let region = map(&memfd, offset, &guest, config)?;
                if let Some(host_node) = node.host_node {
                    host_node::bind(&region, host_node, hugepages)
                        .map_err(|e| MemoryError::HostNode(host_node, e))?;
                }
                listed.push(RamRegion {
                    guest_addr: guest.start,
                    len: guest.end - guest.start,
                    memfd: Arc::clone(&memfd),
                    offset,
                    host_addr: region.as_ptr().addr() as u64,
                });
                regions.push(region);
            }
            before += node.size;
        }
        let mem =
            GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Map(before, e.to_string()))?;
        Ok(Self {
            mem: Arc::new(mem),
            regions: listed,
            rings: Arc::default(),
        })
    }

    /// The view through which this process serves virtqueues by itself: one for all devices, mapped for the first of them.
    pub fn for_rings(&self) -> io::Result<Arc<MemoryMap>> {
        if let Some(map) = self.rings.get() {
            return Ok(Arc::clone(map));
        }
        let map = |region: &RamRegion| {
            let at = region.guest_addr;
            Region::map(region.fd(), region.offset, at, at, region.len).map_err(io::Error::other)
        };
        let regions = self.regions.iter().map(map).collect::<io::Result<_>>()?;
        let map = Arc::new(MemoryMap::new(regions).map_err(io::Error::other)?);
        Ok(Arc::clone(self.rings.get_or_init(|| map)))
    }

    /// The guest addresses of each node.
    pub fn nodes(&self) -> Vec<Vec<Range<u64>>> {
        self.regions
            .chunk_by(|one, next| Arc::ptr_eq(&one.memfd, &next.memfd))
            .map(|node| node.iter().map(|r| r.guest_addr..r.guest_addr + r.len).collect())
            .collect()
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|r| r.len).sum()
    }

    /// Tells `observer` of every region; on a refusal takes back those it had accepted.
    pub fn announce(&self, observer: &dyn MemoryObserver) -> Result<(), MemoryError> {
        for (done, region) in self.regions.iter().enumerate() {
            if let Err(reason) = observer.ram_added(region) {
                for accepted in &self.regions[..done] {
                    observer.ram_removed(accepted);
                }
                return Err(MemoryError::Observer(region.guest_addr, observer.name(), reason));
            }
        }
        Ok(())
    }

    /// Makes all of it zeros, as after power-on. Small pages are given back to the host; reserved huge pages are
    /// written, since giving them back would lose the reservation to whoever asks next, and so is `pinned` memory: devices
    /// would go on with pages that are no longer the guest's.
    pub fn clear(&self, pinned: bool) -> Result<(), MemoryError> {
        use rustix::fs::{FallocateFlags, fallocate, fstatfs};
        for region in &self.regions {
            let file = &*region.memfd;
            let kind = fstatfs(file).map_err(|e| MemoryError::File(e.into()))?.f_type;
            if pinned || kind == HUGETLBFS_MAGIC {
                self.overwrite(region)?;
            } else {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, region.offset, region.len).map_err(|e| MemoryError::File(e.into()))?;
            }
        }
        Ok(())
    }

    fn overwrite(&self, region: &RamRegion) -> Result<(), MemoryError> {
        let zeros = vec![0; 64 << 10];
        for at in (0..region.len).step_by(zeros.len()) {
            self.mem
                .write_slice(&zeros, GuestAddress(region.guest_addr + at))
                .map_err(|e| MemoryError::Map(region.len, e.to_string()))?;
        }
        Ok(())
    }
}

fn sealed_memfd(config: RamConfig) -> Result<OwnedFd, MemoryError> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if config.hugepages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let refused = |e: rustix::io::Errno| {
        if config.hugepages {
            MemoryError::HugePages(config.size, e.to_string(), config.size / HUGE_PAGE)
        } else {
            MemoryError::File(e.into())
        }
    };
    let memfd = rustix::fs::memfd_create("netyard-ram", flags).map_err(refused)?;
    rustix::fs::ftruncate(&memfd, config.size).map_err(refused)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(refused)?;
    Ok(memfd)
}

/// Where the `size` bytes of RAM that have `before` bytes in front of them go: for each piece, its offset among them
/// and its guest addresses.
fn places(before: u64, size: u64) -> Vec<(u64, Range<u64>)> {
    let end = before + size;
    let low = before..end.min(layout::RAM_BELOW_4G_END);
    let high = before.max(layout::RAM_BELOW_4G_END)..end;
    let moved = layout::RAM_ABOVE_4G_START - layout::RAM_BELOW_4G_END;
    [(low, 0), (high, moved)]
        .into_iter()
        .filter(|(piece, _)| !piece.is_empty())
        .map(|(piece, moved)| (piece.start - before, piece.start + moved..piece.end + moved))
        .collect()
}

fn map(
    memfd: &Arc<File>,
    offset: u64,
    guest: &Range<u64>,
    config: RamConfig,
) -> Result<GuestRegionMmap, MemoryError> {
    let len = guest.end - guest.start;
    let failed = |reason: String| {
        if config.hugepages {
            MemoryError::HugePages(config.size, reason, config.size / HUGE_PAGE)
        } else {
            MemoryError::Map(len, reason)
        }
    };
    let size = usize::try_from(len).map_err(|e| failed(e.to_string()))?;
    // Without MAP_NORESERVE the host sets the huge pages aside now, so that a lack of them shows here and not as a
    // bus error in the running guest.
    let flags = libc::MAP_SHARED | if config.hugepages { 0 } else { libc::MAP_NORESERVE };
    let mapping = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .with_file_offset(FileOffset::from_arc(Arc::clone(memfd), offset))
        .with_hugetlbfs(config.hugepages)
        .build()
        .map_err(|e| failed(e.to_string()))?;
    advise(&mapping, config.hugepages);
    GuestRegionMmap::new(mapping, GuestAddress(guest.start))
        .ok_or_else(|| failed("its end is beyond the address space".to_owned()))
}

/// Advice only: a host that cannot follow it still runs the guest.
fn advise(mapping: &vm_memory::MmapRegion, hugepages: bool) {
    let wanted = [libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE];
    for advice in &wanted[..if hugepages { 1 } else { 2 }] {
        // SAFETY: the range is exactly the mapping that `mapping` owns, and neither advice changes its contents.
        let ret = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), *advice) };
        if ret != 0 {
            tracing::debug!(advice, error = %std::io::Error::last_os_error(), "madvise on guest memory");
        }
    }
}
