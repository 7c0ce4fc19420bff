//! One mapped region of a front-end's memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{GuestSlice, MemoryError, guard};

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// One shared mapping of (a part of) a memfd or hugetlbfs file. Unmapped when dropped.
#[derive(Debug)]
pub struct Region {
    /// What was mapped: at least the region, extended to whole pages of the file.
    base: NonNull<u8>,
    map_len: usize,
    /// The region itself.
    ptr: NonNull<u8>,
    len: usize,
    guest_addr: u64,
    user_addr: u64,
    sealed: bool,
    guard: guard::Registration,
}

// SAFETY: the mapping belongs to the value and not to a thread; all access is by raw copies (see `GuestSlice`) or atomics.
unsafe impl Send for Region {}
// SAFETY: as above; no method hands out a reference into the memory.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes of `fd` from `mmap_offset` on; they are at `guest_addr` for the guest and at `user_addr` for the
    /// front-end that sent the file.
    pub fn map(
        fd: BorrowedFd<'_>,
        mmap_offset: u64,
        guest_addr: u64,
        user_addr: u64,
        len: u64,
    ) -> Result<Arc<Self>, MemoryError> {
        if len == 0 {
            return Err(MemoryError::Empty);
        }
        let end = mmap_offset.checked_add(len).ok_or(MemoryError::Wraps)?;
        guest_addr.checked_add(len).ok_or(MemoryError::Wraps)?;
        user_addr.checked_add(len).ok_or(MemoryError::Wraps)?;

        // Only files of memory have seals, and it is the kernel that knows: a file system would have to be asked for its
        // kind, and one in user space (FUSE) may be the peer's own and never answer.
        let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| MemoryError::NotMemory)?;
        let fs = rustix::fs::fstatfs(fd)?;
        let stat = rustix::fs::fstat(fd)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size < end {
            return Err(MemoryError::FileTooShort { size, end });
        }
        let sealed = seals.contains(SealFlags::SHRINK);

        // Whole pages of the file: a huge page where the file has them.
        let page = if fs.f_type == HUGETLBFS_MAGIC {
            u64::try_from(fs.f_bsize).unwrap_or(4096)
        } else {
            4096
        };
        let page = page.max(4096);
        let delta = mmap_offset % page;
        let map_len = (delta + len)
            .checked_next_multiple_of(page)
            .ok_or(MemoryError::Wraps)?;
        let map_len = usize::try_from(map_len).map_err(|_| MemoryError::Wraps)?;
        let region_len = usize::try_from(len).map_err(|_| MemoryError::Wraps)?;
        let delta_bytes = usize::try_from(delta).map_err(|_| MemoryError::Wraps)?;

        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                mmap_offset - delta,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(MemoryError::Wraps)?;
        for advice in [Advice::LinuxHugepage, Advice::LinuxDontDump] {
            // Advice only: a kernel without it, or a file that has huge pages anyway, changes nothing for us.
            // SAFETY: these two kinds of advice change neither contents nor protection of our own mapping.
            let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), map_len, advice) };
        }
        // SAFETY: delta < map_len.
        let ptr = unsafe { base.add(delta_bytes) };
        let page = usize::try_from(page).map_err(|_| MemoryError::Wraps)?;
        match guard::register(base.addr().get(), map_len, page) {
            Ok(guard) => Ok(Arc::new(Self {
                base,
                map_len,
                ptr,
                len: region_len,
                guest_addr,
                user_addr,
                sealed,
                guard,
            })),
            Err(e) => {
                // SAFETY: the mapping was made above and nobody knows of it.
                let _ = unsafe { rustix::mm::munmap(base.as_ptr().cast(), map_len) };
                Err(e)
            }
        }
    }

    /// Where the guest sees the region.
    pub fn guest_addr(&self) -> u64 {
        self.guest_addr
    }

    /// Where the front-end sees the region.
    pub fn user_addr(&self) -> u64 {
        self.user_addr
    }

    /// Bytes in the region.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Never: a region has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// True when the file is sealed against shrinking, so that its pages can't be taken away by truncation.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// True once a page of the region was taken away under a reader and replaced: its contents mean nothing any more.
    pub fn is_poisoned(&self) -> bool {
        self.guard.is_poisoned()
    }

    /// The whole region.
    pub fn slice(&self) -> GuestSlice<'_> {
        // SAFETY: the region is mapped as long as `self` lives, and nobody makes references into it.
        unsafe { GuestSlice::new(self.ptr, self.len) }
    }

    pub(super) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Before the addresses can be taken by another mapping.
        self.guard.clear();
        // SAFETY: the mapping was made by `map`, and every view of it borrowed from this value.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.map_len) };
    }
}

/// Memory of our own to share with a back-end: a sealed memfd and its mapping (for the driver end of a queue).
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    region: Arc<Region>,
}

impl SharedMemory {
    /// Makes `len` bytes (whole pages) of zeroed memory that a peer sees at `guest_addr`; its user address is the same.
    pub fn new(name: &str, guest_addr: u64, len: u64) -> Result<Self, MemoryError> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let region = Region::map(fd.as_fd(), 0, guest_addr, guest_addr, len)?;
        Ok(Self { fd, region })
    }

    /// The memfd, to be sent to a back-end.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The mapping.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }
}
