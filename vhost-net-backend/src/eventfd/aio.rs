//! Signalling an eventfd without ever sleeping, whatever its other owners do.
//!
//! `write(2)` sleeps when the counter is full and the descriptor blocks, and a peer can bring about both at any
//! moment, even between a look at the counter and the write. The kernel's own way of signalling never sleeps: it
//! is what happens at the end of an asynchronous operation (`IOCB_FLAG_RESFD`). So each thread that signals has a
//! small context for such operations, and completes an empty read of an empty file for every signal.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;

use rustix::fs::MemfdFlags;

/// Operations between two collections of their results.
const DEPTH: u32 = 64;
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb` of `linux/aio_abi.h`, on a little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent([u64; 4]);

/// An empty file: reading nothing from it completes at once.
static EMPTY: LazyLock<Option<OwnedFd>> =
    LazyLock::new(|| rustix::fs::memfd_create("signal", MemfdFlags::CLOEXEC).ok());

/// A thread's context.
struct Context {
    id: libc::c_ulong,
    /// Results not collected yet.
    pending: u32,
}

impl Context {
    fn new() -> Option<Self> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: io_setup writes the new context's id to `id`, which lives across the call.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut id) };
        (result == 0).then_some(Self { id, pending: 0 })
    }

    fn collect(&mut self) {
        let mut events = [IoEvent::default(); DEPTH as usize];
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: io_getevents writes at most DEPTH events to `events` and reads `now`; both live across the call.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0,
                libc::c_long::from(DEPTH),
                events.as_mut_ptr(),
                &raw const now,
            )
        };
        self.pending = self.pending.saturating_sub(u32::try_from(taken).unwrap_or(0));
    }

    fn signal(&mut self, fd: BorrowedFd<'_>) -> bool {
        let Some(empty) = &*EMPTY else { return false };
        if self.pending >= DEPTH {
            self.collect();
        }
        let number = |fd: i32| u32::try_from(fd).unwrap_or(u32::MAX);
        let operation = Iocb {
            opcode: IOCB_CMD_PREAD,
            fd: number(empty.as_raw_fd()),
            flags: IOCB_FLAG_RESFD,
            resfd: number(fd.as_raw_fd()),
            ..Iocb::default()
        };
        let mut list = [&raw const operation];
        // SAFETY: io_submit reads one pointer to an iocb; both live across the call. The operation reads no bytes,
        // so that the kernel keeps no address of ours.
        let done = unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1, list.as_mut_ptr()) } == 1;
        self.pending += u32::from(done);
        done
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is this value's own, and no operation of it refers to our memory.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

thread_local! {
    static CONTEXT: RefCell<Option<Context>> = RefCell::new(Context::new());
}

/// Add one to the counter, as far as it goes. False where the kernel cannot do it this way.
pub(super) fn signal(fd: BorrowedFd<'_>) -> bool {
    CONTEXT
        .try_with(|context| {
            context
                .try_borrow_mut()
                .is_ok_and(|mut context| context.as_mut().is_some_and(|context| context.signal(fd)))
        })
        .unwrap_or(false)
}
