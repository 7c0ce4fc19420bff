//! Descriptors (VIRTIO 1.3 §2.7.5) and what a chain of them becomes: a list of segments.

use crate::memory::GuestSlice;

/// The chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// The device writes this buffer; without it, it reads it.
pub const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;

/// `used.flags`: the device asks for no notifications.
pub const USED_F_NO_NOTIFY: u16 = 1;
/// `avail.flags`: the driver asks for no notifications.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Bytes of a descriptor.
pub const DESC_LEN: usize = 16;
/// The largest queue size the standard allows.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// One translated piece of a buffer.
pub type Segment<'m> = GuestSlice<'m>;

/// A local copy of a descriptor, in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Length of the buffer.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor, with [`DESC_F_NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// Decodes the two little-endian words of a descriptor.
    #[inline]
    pub(crate) fn from_words(addr: u64, rest: u64) -> Self {
        let rest = u64::from_le(rest).to_le_bytes();
        Self {
            addr: u64::from_le(addr),
            len: u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]),
            flags: u16::from_le_bytes([rest[4], rest[5]]),
            next: u16::from_le_bytes([rest[6], rest[7]]),
        }
    }

    /// Encodes the descriptor as two little-endian words.
    #[inline]
    pub(crate) fn to_words(self) -> (u64, u64) {
        let rest = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        (self.addr.to_le(), rest.to_le())
    }

    /// Decodes a descriptor from its bytes.
    #[inline]
    pub(crate) fn from_bytes(b: &[u8; DESC_LEN]) -> Self {
        let word = |i: usize| {
            u64::from_ne_bytes([
                b[i],
                b[i + 1],
                b[i + 2],
                b[i + 3],
                b[i + 4],
                b[i + 5],
                b[i + 6],
                b[i + 7],
            ])
        };
        Self::from_words(word(0), word(8))
    }

    /// True with [`DESC_F_NEXT`].
    #[inline]
    pub fn has_next(&self) -> bool {
        self.flags & DESC_F_NEXT != 0
    }

    /// True with [`DESC_F_WRITE`].
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.flags & DESC_F_WRITE != 0
    }

    /// True with [`DESC_F_INDIRECT`].
    #[inline]
    pub fn is_indirect(&self) -> bool {
        self.flags & DESC_F_INDIRECT != 0
    }
}
