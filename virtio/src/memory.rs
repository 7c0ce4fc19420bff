//! Guest memory: mapped regions, and the map that turns guest addresses into bounds-checked views.

mod cursor;
pub mod guard;
mod region;
mod slice;
mod vectored;

use std::ptr::NonNull;
use std::sync::Arc;

pub use cursor::Cursor;
pub use region::{Region, SharedMemory};
pub(crate) use slice::prefetch_write;
pub use slice::{
    GuestSlice, chain_len, copy_chain, prefetch, read_array, read_chain, write_array, write_chain,
};
pub use vectored::{read_vectored, write_vectored};

/// The most regions a map may have (what the `vhost` crate offers as memory slots).
pub const MAX_REGIONS: usize = 509;

/// Up to this many regions, looking one up takes no branches.
const FEW: usize = 8;

/// Why memory was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// A region of no bytes.
    #[error("memory region refused: its length is 0; send only regions with memory in them")]
    Empty,
    /// An end that doesn't fit the address space.
    #[error("memory region refused: address, offset and length wrap around; check the memory table")]
    Wraps,
    /// The file isn't plain memory.
    #[error(
        "memory region refused: its file is on a file system whose pages can block or vanish; use a memfd, tmpfs or hugetlbfs"
    )]
    NotMemory,
    /// The file ends before the region does.
    #[error("memory region refused: it ends at {end} but its file has {size} bytes; size the file first")]
    FileTooShort {
        /// Size of the file.
        size: u64,
        /// Where the region would end.
        end: u64,
    },
    /// Two regions share addresses.
    #[error(
        "memory region at {guest_addr:#x} refused: it overlaps another one; remove that one before adding this"
    )]
    Overlap {
        /// Guest address of the second region.
        guest_addr: u64,
    },
    /// More regions than a map may have.
    #[error("memory table refused: more than {MAX_REGIONS} regions; use fewer, larger ones")]
    TooManyRegions,
    /// No region matches one to be removed.
    #[error("memory region at {guest_addr:#x} not removed: no such region; remove only what was added")]
    NoSuchRegion {
        /// Guest address asked for.
        guest_addr: u64,
    },
    /// The guard has no room for another mapping.
    #[error(
        "memory region refused: {0} regions are mapped already; remove ports or use fewer, larger regions"
    )]
    TooManyMappings(usize),
    /// The kernel refused.
    #[error("memory region refused by the kernel: {0}; check limits on memory and mappings")]
    Os(#[from] rustix::io::Errno),
}

/// What translation needs of a region, side by side in one vector.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    start: u64,
    len: u64,
    ptr: NonNull<u8>,
}

impl Span {
    /// Where `gpa..gpa + len` is in this process, when that is inside the span. The place is valid for as long as the map lives
    /// that the span is of.
    #[inline]
    pub(crate) fn translate(&self, gpa: u64, len: u64) -> Option<NonNull<u8>> {
        let off = gpa.wrapping_sub(self.start);
        if off >= self.len || len > self.len - off {
            return None;
        }
        // SAFETY: off < self.len.
        Some(unsafe { self.at(off) })
    }

    /// Where the byte at `off` is.
    ///
    /// # Safety
    /// `off` must be below the span's length.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an offset inside a mapping fits the address space"
    )]
    unsafe fn at(&self, off: u64) -> NonNull<u8> {
        // SAFETY: the span is mapped as a whole, and the caller says that off is inside.
        unsafe { self.ptr.add(off as usize) }
    }
}

/// The regions of one front-end. Immutable: changing the memory means building another map.
#[derive(Debug)]
pub struct MemoryMap {
    /// Sorted by guest address.
    spans: Vec<Span>,
    /// Where the spans start when there are few, then `u64::MAX`: found without a branch to mispredict.
    starts: [u64; FEW],
    /// In the order of `spans`; keeps the mappings.
    regions: Vec<Arc<Region>>,
}

// SAFETY: the pointers in `spans` point into mappings that `regions` keeps, and those may be used from any thread.
unsafe impl Send for MemoryMap {}
// SAFETY: as above; the map never changes.
unsafe impl Sync for MemoryMap {}

impl MemoryMap {
    /// Builds a map; regions may come in any order but must not overlap, for the guest or for the front-end.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        for key in [Region::user_addr, Region::guest_addr] {
            regions.sort_by_key(|r| key(r));
            for pair in regions.windows(2) {
                if key(&pair[0]) + pair[0].len() > key(&pair[1]) {
                    return Err(MemoryError::Overlap {
                        guest_addr: pair[1].guest_addr(),
                    });
                }
            }
        }
        let spans = regions
            .iter()
            .map(|r| Span {
                start: r.guest_addr(),
                len: r.len(),
                ptr: r.ptr(),
            })
            .collect();
        let mut starts = [u64::MAX; FEW];
        for (start, region) in starts.iter_mut().zip(&regions) {
            *start = region.guest_addr();
        }
        Ok(Self {
            spans,
            starts,
            regions,
        })
    }

    /// The map with one more region.
    pub fn with_region(&self, region: Arc<Region>) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(region);
        Self::new(regions)
    }

    /// The map without the region that has exactly these addresses and this length.
    pub fn without_region(&self, guest_addr: u64, user_addr: u64, len: u64) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        let at = regions
            .iter()
            .position(|r| r.guest_addr() == guest_addr && r.user_addr() == user_addr && r.len() == len)
            .ok_or(MemoryError::NoSuchRegion { guest_addr })?;
        regions.remove(at);
        Self::new(regions)
    }

    /// The regions, sorted by guest address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// True once pages of a region were taken away under a reader (see [`guard`]): whoever owns the map should give it up.
    pub fn is_poisoned(&self) -> bool {
        self.regions.iter().any(|r| r.is_poisoned())
    }

    /// The `len` bytes at guest address `gpa`, when they are wholly inside one region.
    #[inline]
    pub fn slice(&self, gpa: u64, len: usize) -> Option<GuestSlice<'_>> {
        let ptr = self.translate(&mut 0, gpa, len as u64)?;
        // SAFETY: `translate` found all bytes inside one region, which lives as long as this map.
        Some(unsafe { GuestSlice::new(ptr, len) })
    }

    /// The `len` bytes at the front-end's address `uva`, when they are wholly inside one region.
    pub fn user_slice(&self, uva: u64, len: usize) -> Option<GuestSlice<'_>> {
        self.regions.iter().find_map(|r| {
            let off = uva.checked_sub(r.user_addr()).filter(|off| *off < r.len())?;
            let off = usize::try_from(off).ok()?;
            let view = r.slice().skip(off);
            (len <= view.len()).then(|| view.take(len))
        })
    }

    /// The first piece of the `len` bytes at `gpa`, up to the end of the region they start in, and how many bytes are left
    /// for the regions after it.
    #[inline]
    pub fn first_piece(&self, gpa: u64, len: u32) -> Option<(GuestSlice<'_>, u32)> {
        let span = self.spans.get(self.find(gpa)?)?;
        let off = gpa - span.start;
        let piece = u64::from(len).min(span.len - off);
        // Both fit: `piece` is at most `len`, and `off` is inside a mapping.
        let rest = u32::try_from(u64::from(len) - piece).ok()?;
        let piece = usize::try_from(piece).ok()?;
        // SAFETY: off + piece <= span.len, inside a region that lives as long as this map.
        Some((unsafe { GuestSlice::new(span.at(off), piece) }, rest))
    }

    /// Copies `dst.len()` bytes from guest address `gpa`, over adjacent regions if need be; false when there is a hole.
    pub fn read(&self, gpa: u64, dst: &mut [u8]) -> bool {
        let (mut at, mut done) = (gpa, 0);
        while done < dst.len() {
            let left = u32::try_from(dst.len() - done).unwrap_or(u32::MAX);
            let Some((piece, _)) = self.first_piece(at, left) else {
                return false;
            };
            done += piece.read_to(0, &mut dst[done..]);
            // A map's spans don't wrap, so neither does the end of a piece, save at the very top of the address space.
            at = at.wrapping_add(piece.len() as u64);
        }
        true
    }

    /// Where `gpa..gpa + len` is in this process. `hint` is the caller's memory of the region that was right last time.
    #[inline]
    pub(crate) fn translate(&self, hint: &mut usize, gpa: u64, len: u64) -> Option<NonNull<u8>> {
        self.span(*hint)
            .translate(gpa, len)
            .or_else(|| self.translate_other(hint, gpa, len))
    }

    /// The span that a hint is about; an empty one where there is none.
    #[inline]
    pub(crate) fn span(&self, hint: usize) -> Span {
        self.spans.get(hint).copied().unwrap_or(Span {
            start: 0,
            len: 0,
            ptr: NonNull::dangling(),
        })
    }

    fn translate_other(&self, hint: &mut usize, gpa: u64, len: u64) -> Option<NonNull<u8>> {
        let at = self.find(gpa)?;
        let span = &self.spans[at];
        let off = gpa - span.start;
        if len > span.len - off {
            return None;
        }
        *hint = at;
        // SAFETY: `find` gives a span that `gpa` is in, so off < span.len.
        Some(unsafe { span.at(off) })
    }

    /// The span that `gpa` is in.
    #[inline]
    fn find(&self, gpa: u64) -> Option<usize> {
        let after = if self.spans.len() <= FEW {
            self.starts
                .iter()
                .map(|start| usize::from(*start <= gpa))
                .sum::<usize>()
        } else {
            self.spans.partition_point(|s| s.start <= gpa)
        };
        let at = after.checked_sub(1)?;
        let span = self.spans.get(at)?;
        (gpa - span.start < span.len).then_some(at)
    }
}

#[cfg(test)]
mod tests;
