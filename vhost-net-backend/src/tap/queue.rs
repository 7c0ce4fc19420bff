//! One queue of a tap device.
//!
//! The descriptor outlives the interface: when that is deleted, reads and writes fail, and the descriptor can be attached
//! to the next interface of the name. So what was asked of the queue is remembered, and asked again then.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio::features as f;
use virtio::memory::{GuestSlice, read_vectored, write_vectored};

use super::{TapError, ioctl};

/// What was asked of a queue.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Features that a driver acknowledged, where the queue was told.
    offload: Option<u64>,
    /// The host may put frames into it.
    attached: bool,
    carrier: bool,
}

/// One queue of a tap device: a non-blocking descriptor that reads and writes one frame per call.
#[derive(Debug)]
pub struct TapQueue {
    fd: OwnedFd,
    /// Held while the kernel is asked, so that an interface that comes back gets the last word.
    asked: Mutex<Asked>,
}

/// Whether the interface is gone: what is asked now is done when it returns.
fn is_away(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

impl TapQueue {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            asked: Mutex::new(Asked {
                offload: None,
                attached: true,
                carrier: true,
            }),
        }
    }

    /// A new queue of interface `name`.
    pub(super) fn open(name: &str, multi_queue: bool) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(TapError::Device)?;
        let fd = OwnedFd::from(file);
        attach(fd.as_fd(), name, multi_queue)?;
        Ok(Self::new(fd))
    }

    /// Something else that keeps the bounds of what is written, in the place of a tap.
    #[cfg(test)]
    pub(crate) fn stand_in(fd: OwnedFd) -> Self {
        Self::new(fd)
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is an interface behind the queue.
    pub fn is_attached(&self) -> bool {
        ioctl::interface(self.as_fd()).is_ok()
    }

    /// Attach to interface `name`, which took the place of one that was deleted, as this queue was to the former.
    pub(super) fn attach_again(&self, name: &str, multi_queue: bool) -> Result<(), TapError> {
        let asked = self.asked();
        attach(self.as_fd(), name, multi_queue)?;
        self.set_header()?;
        if let Some(acked) = asked.offload {
            self.ask_offload(acked)?;
        }
        let again = |what| move |error| TapError::Setup { what, error };
        if !asked.carrier {
            ioctl::set_carrier(self.as_fd(), false).map_err(again("the carrier"))?;
        }
        if !asked.attached {
            ioctl::set_queue(self.as_fd(), false).map_err(again("a queue aside"))?;
        }
        Ok(())
    }

    pub(super) fn set_header(&self) -> Result<(), TapError> {
        ioctl::set_vnet_header_size(self.as_fd(), virtio::net::HEADER_LEN).map_err(|error| TapError::Setup {
            what: "a vnet header of 12 bytes",
            error,
        })
    }

    /// As [`super::Tap::set_offload`]: it is a property of the whole device, settable through any queue.
    pub fn set_offload(&self, features: u64) -> Result<(), TapError> {
        let mut asked = self.asked();
        asked.offload = Some(features);
        self.ask_offload(features)
    }

    fn ask_offload(&self, acked: u64) -> Result<(), TapError> {
        match ioctl::set_offload(self.as_fd(), offload_flags(acked)) {
            Err(error) if !is_away(&error) => Err(TapError::Setup {
                what: "offloads",
                error,
            }),
            _ => Ok(()),
        }
    }

    /// Whether the host puts frames into this queue; only queues of a multi-queue device can be detached.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        let mut asked = self.asked();
        asked.attached = attached;
        match ioctl::set_queue(self.as_fd(), attached) {
            Err(error) if !is_away(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the host sees a carrier on the interface.
    pub fn set_carrier(&self, carrier: bool) -> io::Result<()> {
        let mut asked = self.asked();
        asked.carrier = carrier;
        match ioctl::set_carrier(self.as_fd(), carrier) {
            Err(error) if !is_away(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Read one frame with its vnet header: `None` when there is none.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, buf) {
            Ok(taken) => Ok(Some(taken)),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Read one frame with its vnet header straight into guest memory: `None` when there is none.
    pub fn read_vectored(&self, list: &[GuestSlice<'_>]) -> io::Result<Option<usize>> {
        self.read_around(&mut [], list, 0, &mut [])
    }

    /// Read one frame in three parts: its vnet header, the bytes of `list` from `off` on, and what is longer than
    /// both. `None` when there is no frame.
    pub(crate) fn read_around(
        &self,
        header: &mut [u8],
        list: &[GuestSlice<'_>],
        off: usize,
        rest: &mut [u8],
    ) -> io::Result<Option<usize>> {
        match read_vectored(self.as_fd(), header, list, off, rest) {
            Ok(taken) => Ok(Some(taken)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Write one frame: its vnet header, then the bytes of `list` from `off` on. False when the queue is full.
    pub fn write(&self, header: &[u8], list: &[GuestSlice<'_>], off: usize) -> io::Result<bool> {
        match write_vectored(self.as_fd(), header, list, off) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Attach a descriptor to interface `name`, which is created when it doesn't exist.
fn attach(fd: BorrowedFd<'_>, name: &str, multi_queue: bool) -> Result<(), TapError> {
    let mut attached = ioctl::attach(fd, name, multi_queue);
    if let Err(error) = &attached
        && !multi_queue
        && error.raw_os_error() == Some(libc::EINVAL)
    {
        // It exists, made for the other kind of use: a single queue can live with either.
        attached = ioctl::attach(fd, name, true);
    }
    attached.map_err(|error| TapError::Attach {
        name: name.to_owned(),
        error,
    })
}

/// UDP segmentation, `TUNSETOFFLOAD` in `linux/if_tun.h`.
pub(super) const TUN_F_USO4: libc::c_uint = 0x20;
/// The same over IPv6.
pub(super) const TUN_F_USO6: libc::c_uint = 0x40;

/// The kernel's flags for what the driver is able to receive.
pub(super) fn offload_flags(acked: u64) -> libc::c_uint {
    if acked & f::NET_F_GUEST_CSUM == 0 {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    for (feature, flag) in [
        (f::NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (f::NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    ] {
        if acked & feature != 0 {
            flags |= flag;
        }
    }
    // The kernel refuses ECN without segmentation.
    if acked & f::NET_F_GUEST_ECN != 0 && flags != libc::TUN_F_CSUM {
        flags |= libc::TUN_F_TSO_ECN;
    }
    // The kernel takes both or none.
    let uso = f::NET_F_GUEST_USO4 | f::NET_F_GUEST_USO6;
    if acked & uso == uso {
        flags |= TUN_F_USO4 | TUN_F_USO6;
    }
    flags
}
