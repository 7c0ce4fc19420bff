//! The SIGBUS guard: a peer that takes pages of shared memory away (by truncating its file, or when huge pages run out) must
//! not take this process down.
//!
//! The handler maps anonymous memory over the page that faulted, marks the region as poisoned and lets the thread go on. Whoever
//! owns the region sees [`fault_count`] change, or waits for [`fault_event`], and ends the one port that the region belongs to.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::event::EventfdFlags;

use super::MemoryError;

/// Mappings that can be guarded at once in a process.
pub const MAX_MAPPINGS: usize = 8192;

/// Start of a slot that is being filled: an address no mapping has.
const CLAIMED: usize = 1;

struct Slot {
    /// 0 when free.
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    poisoned: AtomicBool,
}

impl Slot {
    const fn free() -> Self {
        Self {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
        }
    }
}

static SLOTS: [Slot; MAX_MAPPINGS] = [const { Slot::free() }; MAX_MAPPINGS];
/// Slots from here on were never used: the handler needn't look there.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
static FAULTS: AtomicUsize = AtomicUsize::new(0);
/// The handler that was there before ours. Set before ours is.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Written to at each fault. Set before the handler is.
static EVENT: OnceLock<OwnedFd> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), rustix::io::Errno>> = OnceLock::new();

/// Pages replaced so far in this process. Cheap to read: when it changes, some region is poisoned.
#[inline]
pub fn fault_count() -> usize {
    FAULTS.load(Ordering::Relaxed)
}

/// An eventfd of which each fault is an event. It is never read from: whoever waits watches it edge-triggered.
pub fn fault_event() -> Result<BorrowedFd<'static>, rustix::io::Errno> {
    (*INSTALLED.get_or_init(install))?;
    EVENT.get().map(AsFd::as_fd).ok_or(rustix::io::Errno::BADF)
}

/// A mapping's place in the table.
#[derive(Debug)]
pub(super) struct Registration(usize);

impl Registration {
    pub(super) fn is_poisoned(&self) -> bool {
        SLOTS[self.0].poisoned.load(Ordering::Relaxed)
    }

    /// Gives the place back. Before the mapping is removed, as the address may be another's at once.
    pub(super) fn clear(&mut self) {
        SLOTS[self.0].start.store(0, Ordering::Release);
    }
}

/// Guards a mapping, whose file has pages of `page` bytes.
pub(super) fn register(start: usize, len: usize, page: usize) -> Result<Registration, MemoryError> {
    (*INSTALLED.get_or_init(install))?;
    let free = |slot: &Slot| {
        slot.start
            .compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    };
    let at = SLOTS
        .iter()
        .position(free)
        .ok_or(MemoryError::TooManyMappings(MAX_MAPPINGS))?;
    let slot = &SLOTS[at];
    slot.len.store(len, Ordering::Relaxed);
    slot.page.store(page, Ordering::Relaxed);
    slot.poisoned.store(false, Ordering::Relaxed);
    HIGH_WATER.fetch_max(at + 1, Ordering::Relaxed);
    slot.start.store(start, Ordering::Release);
    Ok(Registration(at))
}

fn install() -> Result<(), rustix::io::Errno> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let _ = EVENT.set(event);
    // SAFETY: zeroed is a valid `sigaction` (default action, no flags, empty mask), and both pointers are to live values.
    unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) != 0 {
            return Err(last_error());
        }
        let _ = PREVIOUS.set(previous);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        if libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0 {
            return Err(last_error());
        }
    }
    Ok(())
}

fn last_error() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL)
}

/// Runs on the thread that faulted: nothing but atomics and async-signal-safe system calls.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler; for SIGBUS it holds the address.
    let addr = unsafe { (*info).si_addr() }.addr();
    // SAFETY: errno is this thread's.
    let errno = unsafe { *libc::__errno_location() };
    if !replace_page(addr) {
        not_ours(signal, info, context);
    }
    // SAFETY: as above; it is the interrupted code's, and is put back.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts an anonymous page where `addr` is, when that is in a guarded mapping.
fn replace_page(addr: usize) -> bool {
    let high = HIGH_WATER.load(Ordering::Relaxed).min(MAX_MAPPINGS);
    for slot in &SLOTS[..high] {
        let start = slot.start.load(Ordering::Acquire);
        if start <= CLAIMED || addr.wrapping_sub(start) >= slot.len.load(Ordering::Relaxed) {
            continue;
        }
        let page = slot.page.load(Ordering::Relaxed);
        // SAFETY: the page lies in a mapping of ours, made of whole pages of this size, that the faulting thread uses right
        // now, so it isn't being removed. What it held is gone already.
        let mapped = unsafe {
            let at = libc::mmap(
                std::ptr::without_provenance_mut(addr - addr % page),
                page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            );
            at != libc::MAP_FAILED
        };
        if mapped {
            slot.poisoned.store(true, Ordering::Relaxed);
            FAULTS.fetch_add(1, Ordering::Relaxed);
            tell();
        }
        return mapped;
    }
    false
}

/// Makes the event of a fault.
fn tell() {
    if let Some(event) = EVENT.get() {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the descriptor stays open, and the pointer is to as many bytes. A full counter has been told of enough.
        let _ = unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// A fault that isn't in a guarded mapping: what would have happened without us happens.
fn not_ours(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if let Some(previous) = PREVIOUS.get()
        && previous.sa_sigaction != libc::SIG_DFL
        && previous.sa_sigaction != libc::SIG_IGN
    {
        // SAFETY: the address came from `sigaction` as a handler of the kind that its flags say.
        unsafe {
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(previous.sa_sigaction);
                handler(signal, info, context);
            } else {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(previous.sa_sigaction);
                handler(signal);
            }
        }
        return;
    }
    // The instruction runs again and, with the default action, ends the process as it should.
    // SAFETY: zeroed is the default action, and the pointer is to a live value.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests;
