//! Vectored reads and writes between a file descriptor and guest memory: a frame goes between a tap and a guest without a copy
//! in this process.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::GuestSlice;

/// The most pieces in one call: what the kernel takes (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Writes `head`, then the bytes of the list from `off` on, with one `writev`. Returns how many bytes were written.
pub fn write_vectored(
    fd: BorrowedFd<'_>,
    head: &[u8],
    list: &[GuestSlice<'_>],
    off: usize,
) -> io::Result<usize> {
    let mut pieces = [const { MaybeUninit::uninit() }; MAX_PIECES];
    let count = gather(&mut pieces, head.as_ptr().cast_mut(), head.len(), list, off)?;
    // SAFETY: `gather` filled the first `count` pieces with memory that is readable for the whole call.
    let n = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr().cast(), count) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Reads into `head`, then into the bytes of the list from `off` on, then what is left over into `tail`, with one `readv`.
/// Returns how many bytes were read.
pub fn read_vectored(
    fd: BorrowedFd<'_>,
    head: &mut [u8],
    list: &[GuestSlice<'_>],
    off: usize,
    tail: &mut [u8],
) -> io::Result<usize> {
    let mut pieces = [const { MaybeUninit::uninit() }; MAX_PIECES];
    let mut count = gather(&mut pieces, head.as_mut_ptr(), head.len(), list, off)?;
    if !tail.is_empty() {
        let at = usize::try_from(count).unwrap_or(MAX_PIECES);
        let piece = pieces.get_mut(at).ok_or_else(too_many)?;
        piece.write(libc::iovec {
            iov_base: tail.as_mut_ptr().cast(),
            iov_len: tail.len(),
        });
        count += 1;
    }
    // SAFETY: `gather` filled the first `count` pieces with memory that is writable for the whole call.
    let n = unsafe { libc::readv(fd.as_raw_fd(), pieces.as_ptr().cast(), count) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Fills in pieces for a call, leaving empty ones out; returns how many.
fn gather(
    pieces: &mut [MaybeUninit<libc::iovec>; MAX_PIECES],
    head: *mut u8,
    head_len: usize,
    list: &[GuestSlice<'_>],
    off: usize,
) -> io::Result<libc::c_int> {
    let mut count = 0;
    let mut add = |base: *mut u8, len: usize| -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let piece = pieces.get_mut(count).ok_or_else(too_many)?;
        piece.write(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
        count += 1;
        Ok(())
    };
    add(head, head_len)?;
    let mut skip = off;
    for segment in list {
        let rest = segment.skip(skip);
        skip -= skip.min(segment.len());
        add(rest.as_ptr(), rest.len())?;
    }
    libc::c_int::try_from(count).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn too_many() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "frame refused: it lies in more than 1024 pieces",
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::{read_vectored, write_vectored};
    use crate::memory::{SharedMemory, read_chain};

    #[test]
    fn a_frame_goes_through_a_pipe() {
        let shared = SharedMemory::new("vectored", 0, 4096).expect("shared memory");
        let (from, to) = shared.region().slice().split_at(2048);
        from.write_from(0, b"xxhello world");
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        let source = [from.take(4), from.skip(4).take(9)];
        assert_eq!(
            write_vectored(writer.as_fd(), b"head", &source, 2).expect("write"),
            15
        );
        let target = [to.take(3), to.skip(100).take(100)];
        let mut head = [0; 4];
        assert_eq!(
            read_vectored(reader.as_fd(), &mut head, &target, 0, &mut []).expect("read"),
            15
        );
        assert_eq!(&head, b"head");
        let mut got = [0; 11];
        assert_eq!(read_chain(&target, 0, &mut got), 11);
        assert_eq!(&got, b"hello world");
    }

    #[test]
    fn what_does_not_fit_the_list_goes_to_the_tail() {
        let shared = SharedMemory::new("vectored", 0, 4096).expect("shared memory");
        let all = shared.region().slice();
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        rustix::io::write(&writer, b"headhello world").expect("write");
        let (mut head, mut tail) = ([0; 4], [0; 64]);
        let target = [all.take(3), all.skip(8).take(2)];
        let read = read_vectored(reader.as_fd(), &mut head, &target, 1, &mut tail).expect("read");
        assert_eq!((read, &head, &tail[..7]), (15, b"head", &b"o world"[..]));
        let mut got = [0; 4];
        assert_eq!(read_chain(&target, 1, &mut got), 4);
        assert_eq!(&got, b"hell");
    }
}
