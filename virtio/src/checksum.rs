//! The Internet checksum (RFC 1071), and completing the partial checksums that virtio-net hands over.

use crate::memory::{Cursor, GuestSlice};

/// Bytes copied and summed at a time: small enough to stay in the first-level cache.
const CHUNK: usize = 2048;

/// A running one's complement sum over bytes in any number of pieces.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checksum {
    sum: u64,
    /// An odd number of bytes came before: the next piece's bytes have their places swapped.
    odd: bool,
}

impl Checksum {
    /// An empty sum.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let sum = fold(sum_words(bytes));
        self.sum += u64::from(if self.odd { sum.swap_bytes() } else { sum });
        self.odd ^= !bytes.len().is_multiple_of(2);
    }

    /// Adds a 16-bit field, at an even place.
    #[inline]
    pub fn add_word(&mut self, word: u16) {
        self.sum += u64::from(word.to_be());
    }

    /// The sum itself, as bytes of a frame: what goes into a checksum field that is still partial.
    #[inline]
    pub fn partial(&self) -> [u8; 2] {
        fold(self.sum).to_ne_bytes()
    }

    /// The checksum, as bytes of a frame.
    #[inline]
    pub fn finish(&self) -> [u8; 2] {
        (!fold(self.sum)).to_ne_bytes()
    }

    /// The checksum for a field in which zero means "none" (UDP): all ones instead of zero. Both mean the same to TCP.
    #[inline]
    pub fn finish_nonzero(&self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    }
}

/// Completes the checksum of a whole frame in place. False when the field lies outside.
#[inline]
pub fn complete(frame: &mut [u8], csum_start: u16, csum_offset: u16) -> bool {
    let start = usize::from(csum_start);
    let field = start + usize::from(csum_offset);
    if field + 2 > frame.len() {
        return false;
    }
    let mut sum = Checksum::new();
    sum.add(&frame[start..]);
    frame[field..field + 2].copy_from_slice(&sum.finish_nonzero());
    true
}

/// Copies a frame of `len` bytes from `src_off` of one list to `dst_off` of another and completes its checksum on the way, in
/// one pass. False when the field lies outside the frame or one of the lists is too short: then nothing useful was written.
pub fn copy_completing(
    src: &[GuestSlice<'_>],
    src_off: usize,
    dst: &[GuestSlice<'_>],
    dst_off: usize,
    len: usize,
    csum_start: u16,
    csum_offset: u16,
) -> bool {
    let start = usize::from(csum_start);
    let field = start + usize::from(csum_offset);
    if field + 2 > len {
        return false;
    }
    let mut from = Cursor::new(src, src_off);
    let mut to = Cursor::new(dst, dst_off);
    if from.copy_to(&mut to, start) < start {
        return false;
    }
    match copy_summing(&mut from, &mut to, len - start) {
        Some(sum) => crate::memory::write_chain(dst, dst_off + field, &sum.finish_nonzero()) == 2,
        None => false,
    }
}

/// Copies `len` bytes and sums what was copied: a peer that changes them meanwhile spoils only its own frame. None when one of
/// the lists is too short.
pub(crate) fn copy_summing(from: &mut Cursor<'_>, to: &mut Cursor<'_>, len: usize) -> Option<Checksum> {
    let mut sum = Checksum::new();
    let mut buffer = [0; CHUNK];
    let mut left = len;
    while left > 0 {
        let piece = &mut buffer[..left.min(CHUNK)];
        let n = piece.len();
        if from.read(piece) < n || to.write(piece) < n {
            return None;
        }
        sum.add(piece);
        left -= n;
    }
    Some(sum)
}

/// The sum of native-endian words; byte order drops out in one's complement arithmetic.
#[inline]
fn sum_words(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = blocks.iter().map(|b| u64::from(u32::from_ne_bytes(*b))).sum();
    let (words, last) = rest.as_chunks::<2>();
    sum += words
        .iter()
        .map(|b| u64::from(u16::from_ne_bytes(*b)))
        .sum::<u64>();
    if let [byte] = last {
        sum += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    sum
}

#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    // At most 0xffff after the last carry.
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
