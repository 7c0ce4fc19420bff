//! Memory from one NUMA node of the host.

use std::io;

use vm_memory::GuestRegionMmap;

/// Nodes that a mask has room for; Linux has at most as many.
const MAX_NODES: u32 = 1024;
const WORD: u32 = u64::BITS;

/// Has all pages of `region` come from the host's `node`, in every process that maps its file. Huge pages are taken
/// at once: the guest would be hit by a bus error where the node has too few.
pub(super) fn bind(region: &GuestRegionMmap, node: u32, hugepages: bool) -> io::Result<()> {
    if node >= MAX_NODES {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut mask = [0_u64; (MAX_NODES / WORD) as usize];
    mask[(node / WORD) as usize] = 1 << (node % WORD);
    let (start, len) = (region.as_ptr(), region.size());
    // SAFETY: the range is the mapping that `region` owns, and the mask has the bits that the call is told of: one
    // less than its argument says. The policy changes where pages come from, not what is in them.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            start,
            len,
            libc::MPOL_BIND,
            mask.as_ptr(),
            u64::from(MAX_NODES) + 1,
            0,
        )
    };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    if hugepages {
        // SAFETY: as above; the call only makes pages present that the mapping has a right to.
        let ret = unsafe { libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE) };
        if ret != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
