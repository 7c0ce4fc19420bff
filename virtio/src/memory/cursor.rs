//! Going through a list of segments from front to back.

use super::GuestSlice;

/// A place in a list of segments. Reading, writing and copying move it on.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    list: &'a [GuestSlice<'a>],
    /// In the first segment of `list`.
    off: usize,
}

impl<'a> Cursor<'a> {
    /// Byte `off` of the list (its end, when the list is shorter).
    #[inline]
    pub fn new(list: &'a [GuestSlice<'a>], off: usize) -> Self {
        let mut cursor = Self { list, off: 0 };
        cursor.advance(off);
        cursor
    }

    /// Bytes from here to the end.
    pub fn remaining(&self) -> usize {
        super::chain_len(self.list) - self.off
    }

    /// Moves on by `n` bytes, or to the end.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        let mut left = n;
        while let [first, rest @ ..] = self.list {
            let here = first.len() - self.off;
            if left < here {
                self.off += left;
                return;
            }
            left -= here;
            self.off = 0;
            self.list = rest;
        }
    }

    /// Copies the next bytes into `dst`; returns how many there were.
    #[inline]
    pub fn read(&mut self, dst: &mut [u8]) -> usize {
        let mut done = 0;
        while done < dst.len() {
            let Some(first) = self.list.first() else { break };
            let n = first.read_to(self.off, &mut dst[done..]);
            done += n;
            self.advance(n);
        }
        done
    }

    /// Copies `src` to the next bytes; returns how many had room.
    #[inline]
    pub fn write(&mut self, src: &[u8]) -> usize {
        let mut done = 0;
        while done < src.len() {
            let Some(first) = self.list.first() else { break };
            let n = first.write_from(self.off, &src[done..]);
            done += n;
            self.advance(n);
        }
        done
    }

    /// Copies the next `len` bytes to where `dst` is; returns how many both had. Both move on.
    #[inline]
    pub fn copy_to(&mut self, dst: &mut Cursor<'_>, len: usize) -> usize {
        let mut done = 0;
        while done < len {
            let (Some(from), Some(to)) = (self.list.first(), dst.list.first()) else {
                break;
            };
            let n = from.skip(self.off).copy_to(to.skip(dst.off), len - done);
            done += n;
            self.advance(n);
            dst.advance(n);
        }
        done
    }
}
