//! A device's memory, mapped into this process so that KVM can map it into the guest.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a piece of a device's file, until it is dropped.
///
/// This process never reads or writes it: what it holds are registers, and only the guest knows their rules.
#[derive(Debug)]
pub struct DeviceMemory {
    addr: NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the address is only handed to the kernel; nothing is read or written through it.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

impl DeviceMemory {
    /// Maps `len` bytes at `offset` of `file`.
    pub fn map(file: impl AsFd, offset: u64, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing away from anybody.
        let addr = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        let addr = NonNull::new(addr).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { addr, len })
    }

    /// Where it is in this process.
    pub(super) fn host_addr(&self) -> u64 {
        self.addr.as_ptr().addr() as u64
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// True without any bytes, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` has mapped, and no reference into it was ever made.
        if let Err(error) = unsafe { munmap(self.addr.as_ptr(), self.len) } {
            tracing::warn!(%error, "a device's memory stays mapped");
        }
    }
}
