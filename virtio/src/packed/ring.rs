//! The parts of a packed virtqueue as cached host pointers, and places in it.

use std::ptr::NonNull;

use super::{DESC_F_AVAIL, DESC_F_USED, EVENT_FLAGS_DESC, EVENT_FLAGS_ENABLE, EVENT_LEN, WRAP};
use crate::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::desc::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_LEN, MAX_QUEUE_SIZE};
use crate::memory::{MemoryMap, prefetch_write};
use crate::queue::{QueueConfig, QueueError, locate, passes_event};

/// A place in the ring. Its index is always below the ring's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    index: u16,
    pub(super) wrap: bool,
}

impl Position {
    /// `index` must be below the size of the ring it is used with.
    pub(super) fn new(index: u16, wrap: bool) -> Self {
        Self { index, wrap }
    }

    #[inline]
    pub(super) fn raw(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// The place `n` descriptors (at most `size`) further on.
    #[inline]
    pub(super) fn forward(self, n: u16, size: u16) -> Self {
        // Both are at most 32768, so the sum fits after one subtraction.
        let room = size - self.index;
        if n < room {
            Self {
                index: self.index + n,
                ..self
            }
        } else {
            Self {
                index: n - room,
                wrap: !self.wrap,
            }
        }
    }

    /// The place `n` descriptors (at most `size`) back.
    #[inline]
    pub(super) fn back(self, n: u16, size: u16) -> Self {
        if n <= self.index {
            Self {
                index: self.index - n,
                ..self
            }
        } else {
            Self {
                index: size - (n - self.index),
                wrap: !self.wrap,
            }
        }
    }

    /// The flags of a descriptor that the driver makes available here.
    #[inline]
    pub(super) fn avail_flags(self) -> u16 {
        if self.wrap { DESC_F_AVAIL } else { DESC_F_USED }
    }

    /// The flags of a descriptor that the device uses here.
    #[inline]
    pub(super) fn used_flags(self) -> u16 {
        if self.wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 }
    }
}

/// Everything of a descriptor but its address: one 64-bit word, read and written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) len: u32,
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl Tail {
    #[inline]
    fn from_word(word: u64) -> Self {
        let b = u64::from_le(word).to_le_bytes();
        Self {
            len: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            id: u16::from_le_bytes([b[4], b[5]]),
            flags: u16::from_le_bytes([b[6], b[7]]),
        }
    }

    #[inline]
    fn to_word(self) -> u64 {
        (u64::from(self.len) | u64::from(self.id) << 32 | u64::from(self.flags) << 48).to_le()
    }

    #[inline]
    pub(super) fn is_available(self, at: Position) -> bool {
        self.flags & (DESC_F_AVAIL | DESC_F_USED) == at.avail_flags()
    }

    #[inline]
    pub(super) fn is_used(self, at: Position) -> bool {
        self.flags & (DESC_F_AVAIL | DESC_F_USED) == at.used_flags()
    }

    /// Used, in whichever round: both flags are the same.
    pub(super) fn is_done(self) -> bool {
        (self.flags & DESC_F_AVAIL != 0) == (self.flags & DESC_F_USED != 0)
    }

    /// The driver's wrap counter when it wrote the descriptor; a device leaves that flag as it is.
    pub(super) fn round(self) -> bool {
        self.flags & DESC_F_AVAIL != 0
    }

    /// The same, used at this place.
    pub(super) fn with_used_flags(self, at: Position) -> Self {
        Self {
            flags: self.flags & !(DESC_F_AVAIL | DESC_F_USED) | at.used_flags(),
            ..self
        }
    }

    #[inline]
    pub(super) fn has_next(self) -> bool {
        self.flags & DESC_F_NEXT != 0
    }

    #[inline]
    pub(super) fn is_indirect(self) -> bool {
        self.flags & DESC_F_INDIRECT != 0
    }
}

/// Host pointers to a queue's parts, checked once for size and alignment. Valid while the map they came from lives, which the
/// owner sees to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ring {
    desc: NonNull<u64>,
    driver_event: NonNull<u32>,
    device_event: NonNull<u32>,
    size: u16,
}

// SAFETY: plain pointers into a shared mapping, used through atomics only; the owner keeps the mapping.
unsafe impl Send for Ring {}

impl Ring {
    pub(super) fn new(mem: &MemoryMap, cfg: &QueueConfig) -> Result<Self, QueueError> {
        if cfg.size == 0 || cfg.size > MAX_QUEUE_SIZE {
            return Err(QueueError::Size(cfg.size));
        }
        let len = DESC_LEN * usize::from(cfg.size);
        Ok(Self {
            desc: locate(mem, "descriptor ring", cfg.desc, len, 16)?.cast(),
            driver_event: locate(mem, "driver event suppression area", cfg.avail, EVENT_LEN, 4)?.cast(),
            device_event: locate(mem, "device event suppression area", cfg.used, EVENT_LEN, 4)?.cast(),
            size: cfg.size,
        })
    }

    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The place that `raw` (with the wrap counter in bit 15) means.
    pub(super) fn position(&self, raw: u16) -> Result<Position, QueueError> {
        let index = raw & !WRAP;
        if index >= self.size {
            return Err(QueueError::Position {
                position: raw,
                size: self.size,
            });
        }
        Ok(Position {
            index,
            wrap: raw & WRAP != 0,
        })
    }

    /// The descriptors from a place on that lie side by side: up to the end of the ring.
    #[inline]
    pub(super) fn run(&self, at: Position) -> Run {
        debug_assert!(at.index < self.size, "positions stay inside the ring");
        Run {
            // SAFETY: a position's index is below the size.
            first: unsafe { self.desc.add(2 * usize::from(at.index)) },
            len: usize::from(self.size - at.index),
            wanted: u64::from(at.avail_flags()) << FLAGS_AT,
        }
    }

    #[inline]
    fn word(&self, at: Position, half: usize) -> &AtomicU64 {
        debug_assert!(at.index < self.size, "positions stay inside the ring");
        // SAFETY: a position's index is below the size, and half is 0 or 1: inside the ring, whose alignment was checked.
        unsafe { AtomicU64::from_ptr(self.desc.as_ptr().add(2 * usize::from(at.index) + half)) }
    }

    /// Acquires what the other end wrote before it wrote these flags.
    #[inline]
    pub(super) fn tail(&self, at: Position) -> Tail {
        Tail::from_word(self.word(at, 1).load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn addr(&self, at: Position) -> u64 {
        u64::from_le(self.word(at, 0).load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_addr(&self, at: Position, addr: u64) {
        self.word(at, 0).store(addr.to_le(), Ordering::Relaxed);
    }

    /// Writes a descriptor's tail that the other end doesn't look at yet.
    #[inline]
    pub(super) fn set_tail(&self, at: Position, tail: Tail) {
        self.word(at, 1).store(tail.to_word(), Ordering::Relaxed);
    }

    /// Writes the tail that shows the other end this and all later ones, and releases what was written before.
    #[inline]
    pub(super) fn release_tail(&self, at: Position, tail: Tail) {
        self.word(at, 1).store(tail.to_word(), Ordering::Release);
    }

    /// Fetches the descriptor `ahead` of this one, to be written when it is used. At the end of the ring it fetches nothing of use.
    #[inline]
    pub(super) fn prefetch_ahead(&self, at: Position, ahead: u16) {
        prefetch_write(
            self.desc
                .as_ptr()
                .wrapping_add(2 * (usize::from(at.index) + usize::from(ahead))),
        );
    }

    /// What the driver wants to be told.
    #[inline]
    pub(super) fn driver_event(&self) -> Event {
        // SAFETY: the pointer was checked for size and alignment.
        Event::from_word(unsafe { AtomicU32::from_ptr(self.driver_event.as_ptr()) }.load(Ordering::Relaxed))
    }

    /// What the device wants to be told.
    #[inline]
    pub(super) fn device_event(&self) -> Event {
        // SAFETY: the pointer was checked for size and alignment.
        Event::from_word(unsafe { AtomicU32::from_ptr(self.device_event.as_ptr()) }.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_driver_event(&self, at: Position, flags: u16) {
        set_event(self.driver_event, at, flags);
    }

    #[inline]
    pub(super) fn set_device_event(&self, at: Position, flags: u16) {
        set_event(self.device_event, at, flags);
    }
}

/// Where the flags are in a tail.
const FLAGS_AT: u32 = 48;
/// Flags that tell whether a descriptor is available, and a whole chain.
const SINGLE: u64 = ((DESC_F_AVAIL | DESC_F_USED | DESC_F_NEXT | DESC_F_INDIRECT) as u64) << FLAGS_AT;

/// Descriptors that lie side by side, to be read in a loop that keeps all of this in registers. It borrows nothing, like what it was
/// made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    first: NonNull<u64>,
    len: usize,
    /// The flags of those that are available in this round.
    wanted: u64,
}

impl Run {
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// Descriptor number `i`, below the length, when it is available and a whole chain with a direct buffer: its tail and its address.
    #[inline]
    pub(super) fn single(self, i: usize) -> Option<(Tail, u64)> {
        debug_assert!(i < self.len, "inside the run");
        // SAFETY: the run's descriptors are inside the ring, whose alignment was checked.
        let words = unsafe { self.first.add(2 * i) };
        // SAFETY: as above; this is the second word.
        let tail =
            u64::from_le(unsafe { AtomicU64::from_ptr(words.add(1).as_ptr()) }.load(Ordering::Acquire));
        if tail & SINGLE != self.wanted {
            return None;
        }
        // SAFETY: as above.
        let addr = u64::from_le(unsafe { AtomicU64::from_ptr(words.as_ptr()) }.load(Ordering::Relaxed));
        Some((Tail::from_word(tail.to_le()), addr))
    }

    /// Fetches the descriptor `ahead` of number `i`, to be written when it is used. At the end of the ring it fetches nothing of use.
    #[inline]
    pub(super) fn prefetch_ahead(self, i: usize, ahead: usize) {
        prefetch_write(self.first.as_ptr().wrapping_add(2 * (i + ahead)));
    }
}

/// The place first: who sees the flags must see it, too.
#[inline]
fn set_event(area: NonNull<u32>, at: Position, flags: u16) {
    let halves = area.as_ptr().cast::<u16>();
    // SAFETY: the area was checked for size and alignment: two 16-bit halves.
    unsafe {
        AtomicU16::from_ptr(halves).store(at.raw().to_le(), Ordering::Relaxed);
        AtomicU16::from_ptr(halves.add(1)).store(flags.to_le(), Ordering::Release);
    }
}

/// A copy of an event suppression area.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    position: u16,
    flags: u16,
}

impl Event {
    #[inline]
    fn from_word(word: u32) -> Self {
        let b = u32::from_le(word).to_le_bytes();
        Self {
            position: u16::from_le_bytes([b[0], b[1]]),
            flags: u16::from_le_bytes([b[2], b[3]]),
        }
    }

    /// True when the other end wants to be told that `moved` descriptors up to `new` changed hands.
    #[inline]
    pub(super) fn wants(self, new: Position, moved: u16, size: u16) -> bool {
        match self.flags {
            EVENT_FLAGS_ENABLE => true,
            EVENT_FLAGS_DESC => {
                let mut event = self.position & !WRAP;
                if (self.position & WRAP != 0) != new.wrap {
                    event = event.wrapping_sub(size);
                }
                passes_event(event, new.index, new.index.wrapping_sub(moved))
            }
            _ => false,
        }
    }
}
