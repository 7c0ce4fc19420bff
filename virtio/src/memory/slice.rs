//! Bounds-checked views of guest memory, and copies between lists of them.
//!
//! Guest memory is never borrowed as a Rust slice: a guest may write to it at any time. All access goes through raw copies,
//! whose result may be torn but is then a private value like any other.

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::Cursor;

/// A (pointer, length) pair inside one mapped region, valid as long as what it was borrowed from keeps the mapping.
#[derive(Debug, Clone, Copy)]
pub struct GuestSlice<'m> {
    ptr: NonNull<u8>,
    len: usize,
    mapping: PhantomData<&'m ()>,
}

// SAFETY: all access is by raw copies of shared memory that other agents (a guest, other processes) change at any time anyway;
// being used from another thread adds nothing to that, and the lifetime keeps the mapping.
unsafe impl Send for GuestSlice<'_> {}
// SAFETY: as above; no method hands out a reference into the memory.
unsafe impl Sync for GuestSlice<'_> {}

impl GuestSlice<'_> {
    /// Makes a view.
    ///
    /// # Safety
    /// `ptr..ptr + len` must lie inside one mapping that stays readable and writable for `'m`, and no Rust reference to any
    /// of its bytes may exist during that time.
    #[inline]
    pub(crate) unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self {
            ptr,
            len,
            mapping: PhantomData,
        }
    }

    /// Bytes in the view.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the view starts in this process. For system calls (`iovec`); reading through it needs `unsafe`.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The view without its first `n` bytes; empty when there are fewer.
    #[inline]
    #[must_use]
    pub fn skip(&self, n: usize) -> Self {
        let n = n.min(self.len);
        // SAFETY: n <= len, so the result is inside this view.
        unsafe { Self::new(self.ptr.add(n), self.len - n) }
    }

    /// The first `n` bytes; the whole view when there are fewer.
    #[inline]
    #[must_use]
    pub fn take(&self, n: usize) -> Self {
        Self {
            len: n.min(self.len),
            ..*self
        }
    }

    /// Splits the view after `n` bytes (or at its end, when that comes first).
    #[inline]
    #[must_use]
    pub fn split_at(&self, n: usize) -> (Self, Self) {
        (self.take(n), self.skip(n))
    }

    /// Copies bytes from `off` on into `dst`; returns how many there were.
    #[inline]
    pub fn read_to(&self, off: usize, dst: &mut [u8]) -> usize {
        let from = self.skip(off);
        let n = from.len.min(dst.len());
        // SAFETY: n bytes are inside the view and inside `dst`; a Rust slice never overlaps guest memory.
        unsafe { copy_bytes(from.ptr.as_ptr(), dst.as_mut_ptr(), n) };
        n
    }

    /// Copies `src` to `off` on; returns how many bytes had room.
    #[inline]
    pub fn write_from(&self, off: usize, src: &[u8]) -> usize {
        let to = self.skip(off);
        let n = to.len.min(src.len());
        // SAFETY: n bytes are inside the view and inside `src`; a Rust slice never overlaps guest memory.
        unsafe { copy_bytes(src.as_ptr(), to.ptr.as_ptr(), n) };
        n
    }

    /// Copies `N` bytes from `off` on, with as few instructions as that takes; none when there are fewer.
    #[inline]
    pub fn read_array<const N: usize>(&self, off: usize) -> Option<[u8; N]> {
        if off.checked_add(N)? > self.len {
            return None;
        }
        let mut bytes = [0; N];
        // SAFETY: off + N is inside the view; a Rust array never overlaps guest memory.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr().add(off), bytes.as_mut_ptr(), N) };
        Some(bytes)
    }

    /// Copies `N` bytes to `off` on, with as few instructions as that takes; false, and nothing is done, without room.
    #[inline]
    pub fn write_array<const N: usize>(&self, off: usize, bytes: &[u8; N]) -> bool {
        if off.checked_add(N).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: off + N is inside the view; a Rust array never overlaps guest memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr.as_ptr().add(off), N) };
        true
    }

    /// Copies the first `n` bytes (or as many as both views hold) into `dst`; returns how many.
    #[inline]
    pub fn copy_to(&self, dst: GuestSlice<'_>, n: usize) -> usize {
        let n = n.min(self.len).min(dst.len);
        // SAFETY: n bytes are inside both views. They may overlap (two ports can share memory), which `copy` allows.
        unsafe { std::ptr::copy(self.ptr.as_ptr(), dst.ptr.as_ptr(), n) };
        n
    }

    /// Asks the CPU to fetch the cache lines of the bytes at `offsets` for reading; beyond the end, that of the last byte.
    #[inline]
    pub fn prefetch<const N: usize>(&self, offsets: [usize; N]) {
        for off in offsets {
            prefetch(self.near(off));
        }
    }

    /// The same for writing: another CPU that has the lines gives them up.
    #[inline]
    pub fn prefetch_write<const N: usize>(&self, offsets: [usize; N]) {
        for off in offsets {
            prefetch_write(self.near(off));
        }
    }

    #[inline]
    fn near(&self, off: usize) -> *const u8 {
        self.ptr
            .as_ptr()
            .cast_const()
            .wrapping_add(off.min(self.len.saturating_sub(1)))
    }
}

/// Copies `n` bytes, those of short frames without a call.
///
/// # Safety
/// As for `copy_nonoverlapping`.
#[inline]
unsafe fn copy_bytes(src: *const u8, dst: *mut u8, n: usize) {
    const PIECE: usize = 16;
    if (2 * PIECE..=4 * PIECE).contains(&n) {
        // The first two pieces and the last two, which overlap unless there are just four.
        for at in [0, PIECE, n - 2 * PIECE, n - PIECE] {
            // SAFETY: at + PIECE <= n, which the caller vouches for.
            unsafe { std::ptr::copy_nonoverlapping(src.add(at), dst.add(at), PIECE) };
        }
    } else {
        // SAFETY: as the caller says.
        unsafe { std::ptr::copy_nonoverlapping(src, dst, n) };
    }
}

/// Asks the CPU to fetch the cache line at `at` for writing. A hint: any address is allowed.
#[inline]
pub(crate) fn prefetch_write<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `prefetchw` never faults, whatever the address, and changes nothing that a program sees; a 64-bit CPU that does
    // not know it does nothing. (The intrinsic becomes an ordinary prefetch unless the target CPU is known to have it.)
    unsafe {
        std::arch::asm!("prefetchw [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks the CPU to fetch the cache line at `at`. A hint: any address is allowed.
#[inline]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Bytes in a list of segments.
#[inline]
pub fn chain_len(list: &[GuestSlice<'_>]) -> usize {
    list.iter().map(GuestSlice::len).sum()
}

/// Copies bytes from offset `off` of the list into `dst`; returns how many there were.
#[inline]
pub fn read_chain(src: &[GuestSlice<'_>], off: usize, dst: &mut [u8]) -> usize {
    if let [first, ..] = src
        && off.checked_add(dst.len()).is_some_and(|end| end <= first.len())
    {
        return first.read_to(off, dst);
    }
    Cursor::new(src, off).read(dst)
}

/// Copies the first `N` bytes of the list; none when there are fewer.
#[inline]
pub fn read_array<const N: usize>(src: &[GuestSlice<'_>]) -> Option<[u8; N]> {
    if let [first, ..] = src
        && let Some(bytes) = first.read_array(0)
    {
        return Some(bytes);
    }
    let mut bytes = [0; N];
    (Cursor::new(src, 0).read(&mut bytes) == N).then_some(bytes)
}

/// Copies `bytes` to the start of the list; false when it has less room (what there is, is written).
#[inline]
pub fn write_array<const N: usize>(dst: &[GuestSlice<'_>], bytes: &[u8; N]) -> bool {
    if let [first, ..] = dst
        && first.write_array(0, bytes)
    {
        return true;
    }
    Cursor::new(dst, 0).write(bytes) == N
}

/// Copies `src` to offset `off` of the list on; returns how many bytes had room.
#[inline]
pub fn write_chain(dst: &[GuestSlice<'_>], off: usize, src: &[u8]) -> usize {
    if let [first, ..] = dst
        && off.checked_add(src.len()).is_some_and(|end| end <= first.len())
    {
        return first.write_from(off, src);
    }
    Cursor::new(dst, off).write(src)
}

/// Copies `len` bytes from offset `src_off` of one list to offset `dst_off` of another; returns how many both lists held.
#[inline]
pub fn copy_chain(
    src: &[GuestSlice<'_>],
    src_off: usize,
    dst: &[GuestSlice<'_>],
    dst_off: usize,
    len: usize,
) -> usize {
    if let ([from, ..], [to, ..]) = (src, dst)
        && src_off.checked_add(len).is_some_and(|end| end <= from.len())
        && dst_off.checked_add(len).is_some_and(|end| end <= to.len())
    {
        return from.skip(src_off).copy_to(to.skip(dst_off), len);
    }
    copy_pieces(src, src_off, dst, dst_off, len)
}

fn copy_pieces(
    src: &[GuestSlice<'_>],
    src_off: usize,
    dst: &[GuestSlice<'_>],
    dst_off: usize,
    len: usize,
) -> usize {
    Cursor::new(src, src_off).copy_to(&mut Cursor::new(dst, dst_off), len)
}
