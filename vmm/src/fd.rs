//! Eventfds where the standard library's idea of a borrowed descriptor is asked for.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of an eventfd, for waiting on it.
pub(crate) fn borrow(fd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open for as long as the eventfd lives, and the result borrows it.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
