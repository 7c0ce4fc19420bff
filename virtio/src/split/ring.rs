//! The three parts of a split virtqueue as cached host pointers.

use std::ptr::NonNull;

use super::{QueueConfig, QueueError};
use crate::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::desc::{DESC_LEN, Descriptor, MAX_QUEUE_SIZE};
use crate::memory::{MemoryMap, prefetch, prefetch_write};
use crate::queue::locate;

/// Where the parts of a queue go when one piece of memory holds them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Offset of the descriptor table.
    pub desc: u64,
    /// Offset of the available ring.
    pub avail: u64,
    /// Offset of the used ring, on a cache line of its own.
    pub used: u64,
    /// Bytes in all, a multiple of 64.
    pub len: u64,
}

impl RingLayout {
    /// The layout for a queue of `size` entries.
    pub fn new(size: u16) -> Self {
        let size = u64::from(size);
        let avail = 16 * size;
        let used = (avail + 6 + 2 * size).next_multiple_of(64);
        Self {
            desc: 0,
            avail,
            used,
            len: (used + 6 + 8 * size).next_multiple_of(64),
        }
    }
}

/// Host pointers to a queue's parts, checked once for size and alignment. Valid while the map they came from lives, which the
/// owner sees to. Slots are masked, so that every access is inside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ring {
    desc: NonNull<u64>,
    avail: NonNull<u16>,
    used: NonNull<u32>,
    mask: u16,
}

// SAFETY: plain pointers into a shared mapping, used through atomics only; the owner keeps the mapping.
unsafe impl Send for Ring {}

impl Ring {
    /// Translates the parts.
    pub(super) fn new(mem: &MemoryMap, cfg: &QueueConfig) -> Result<Self, QueueError> {
        if !cfg.size.is_power_of_two() || cfg.size > MAX_QUEUE_SIZE {
            return Err(QueueError::Size(cfg.size));
        }
        let size = usize::from(cfg.size);
        Ok(Self {
            desc: locate(mem, "descriptor table", cfg.desc, DESC_LEN * size, 16)?.cast(),
            avail: locate(mem, "available ring", cfg.avail, 6 + 2 * size, 2)?.cast(),
            used: locate(mem, "used ring", cfg.used, 6 + 8 * size, 4)?.cast(),
            mask: cfg.size - 1,
        })
    }

    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.mask + 1
    }

    /// Reads descriptor `index` (masked) once.
    #[inline]
    pub(super) fn desc(&self, index: u16) -> Descriptor {
        let at = usize::from(index & self.mask) * 2;
        // SAFETY: index is masked to the table, whose alignment was checked; both words are inside.
        let (addr, rest) = unsafe {
            (
                AtomicU64::from_ptr(self.desc.as_ptr().add(at)).load(Ordering::Relaxed),
                AtomicU64::from_ptr(self.desc.as_ptr().add(at + 1)).load(Ordering::Relaxed),
            )
        };
        Descriptor::from_words(addr, rest)
    }

    /// Writes descriptor `index` (masked).
    #[inline]
    pub(super) fn set_desc(&self, index: u16, desc: Descriptor) {
        let at = usize::from(index & self.mask) * 2;
        let (addr, rest) = desc.to_words();
        // SAFETY: as in `desc`.
        unsafe {
            AtomicU64::from_ptr(self.desc.as_ptr().add(at)).store(addr, Ordering::Relaxed);
            AtomicU64::from_ptr(self.desc.as_ptr().add(at + 1)).store(rest, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn prefetch_desc(&self, index: u16) {
        prefetch(
            self.desc
                .as_ptr()
                .wrapping_add(usize::from(index & self.mask) * 2),
        );
    }

    /// Fetches the used elements from `slot` on that share a cache line with it, to be written soon.
    #[inline]
    pub(super) fn prefetch_used(&self, slot: u16) {
        prefetch_write(
            self.used
                .as_ptr()
                .wrapping_add(1 + 2 * usize::from(slot & self.mask)),
        );
    }

    /// The same, to be read.
    #[inline]
    pub(super) fn prefetch_used_elem(&self, slot: u16) {
        prefetch(
            self.used
                .as_ptr()
                .wrapping_add(1 + 2 * usize::from(slot & self.mask)),
        );
    }

    #[inline]
    fn avail_word(&self, i: usize) -> &AtomicU16 {
        debug_assert!(
            i < usize::from(self.mask) + 4,
            "flags, idx, size entries, used_event"
        );
        // SAFETY: all callers pass 0, 1, 2 + a masked slot, or 2 + size: inside the 6 + 2 * size bytes, and 2-byte aligned.
        unsafe { AtomicU16::from_ptr(self.avail.as_ptr().add(i)) }
    }

    #[inline]
    fn used_half(&self, i: usize) -> &AtomicU16 {
        debug_assert!(
            i < 3 + 4 * (usize::from(self.mask) + 1),
            "flags, idx, size elements, avail_event"
        );
        // SAFETY: all callers pass 0, 1 or 2 + 4 * size: inside the 6 + 8 * size bytes, and 2-byte aligned.
        unsafe { AtomicU16::from_ptr(self.used.as_ptr().cast::<u16>().add(i)) }
    }

    #[inline]
    fn used_word(&self, i: usize) -> &AtomicU32 {
        debug_assert!(
            i < 1 + 2 * (usize::from(self.mask) + 1),
            "header word, then two words per element"
        );
        // SAFETY: all callers pass 1 + 2 * a masked slot, or one more: inside the elements, and 4-byte aligned.
        unsafe { AtomicU32::from_ptr(self.used.as_ptr().add(i)) }
    }

    #[inline]
    pub(super) fn avail_flags(&self) -> u16 {
        u16::from_le(self.avail_word(0).load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_avail_flags(&self, flags: u16) {
        self.avail_word(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// Acquires what the driver wrote before it moved the index.
    #[inline]
    pub(super) fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail_word(1).load(Ordering::Acquire))
    }

    /// Releases what the driver end wrote before.
    #[inline]
    pub(super) fn set_avail_idx(&self, idx: u16) {
        self.avail_word(1).store(idx.to_le(), Ordering::Release);
    }

    #[inline]
    pub(super) fn avail_entry(&self, slot: u16) -> u16 {
        u16::from_le(
            self.avail_word(2 + usize::from(slot & self.mask))
                .load(Ordering::Relaxed),
        )
    }

    #[inline]
    pub(super) fn set_avail_entry(&self, slot: u16, head: u16) {
        self.avail_word(2 + usize::from(slot & self.mask))
            .store(head.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn used_event(&self) -> u16 {
        u16::from_le(
            self.avail_word(2 + usize::from(self.size()))
                .load(Ordering::Relaxed),
        )
    }

    #[inline]
    pub(super) fn set_used_event(&self, idx: u16) {
        self.avail_word(2 + usize::from(self.size()))
            .store(idx.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn used_flags(&self) -> u16 {
        u16::from_le(self.used_half(0).load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_used_flags(&self, flags: u16) {
        self.used_half(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// Acquires what the device wrote before it moved the index.
    #[inline]
    pub(super) fn used_idx(&self) -> u16 {
        u16::from_le(self.used_half(1).load(Ordering::Acquire))
    }

    /// Releases what the device end wrote before.
    #[inline]
    pub(super) fn set_used_idx(&self, idx: u16) {
        self.used_half(1).store(idx.to_le(), Ordering::Release);
    }

    #[inline]
    pub(super) fn used_elem(&self, slot: u16) -> (u32, u32) {
        let at = 1 + 2 * usize::from(slot & self.mask);
        let id = self.used_word(at).load(Ordering::Relaxed);
        let len = self.used_word(at + 1).load(Ordering::Relaxed);
        (u32::from_le(id), u32::from_le(len))
    }

    #[inline]
    pub(super) fn set_used_elem(&self, slot: u16, id: u32, len: u32) {
        let at = 1 + 2 * usize::from(slot & self.mask);
        self.used_word(at).store(id.to_le(), Ordering::Relaxed);
        self.used_word(at + 1).store(len.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn avail_event(&self) -> u16 {
        u16::from_le(
            self.used_half(2 + 4 * usize::from(self.size()))
                .load(Ordering::Relaxed),
        )
    }

    #[inline]
    pub(super) fn set_avail_event(&self, idx: u16) {
        self.used_half(2 + 4 * usize::from(self.size()))
            .store(idx.to_le(), Ordering::Relaxed);
    }
}
