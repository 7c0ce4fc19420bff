//! Tap devices with vnet headers and several queues: created, or attached to when they exist.
//!
//! Every frame carries the 12-byte header of a modern virtio-net device, so that offloads pass through untouched.

mod ioctl;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use virtio::features as f;
use virtio::memory::{GuestSlice, read_vectored, write_vectored};

/// The longest name of a network interface.
const MAX_NAME: usize = 15;

/// The most queues that the kernel gives one tap device.
pub const MAX_QUEUES: u16 = 256;

/// Why there is no tap device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not a name that an interface can have.
    #[error("tap {0:?} refused: not an interface name; use 1 to 15 letters, digits, '.', '-' or '_'")]
    Name(String),
    /// No queue, or more than the kernel has.
    #[error("tap with {0} queues refused; use 1 to 256")]
    Queues(u16),
    /// `/dev/net/tun` cannot be opened.
    #[error(
        "tap refused: cannot open /dev/net/tun: {0}; load the 'tun' module and give access to the device"
    )]
    Device(#[source] io::Error),
    /// Attaching to the interface failed.
    #[error("tap '{name}' refused: {error}; {}", cure(.error))]
    Attach {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// An inherited descriptor isn't a tap's.
    #[error("descriptor {fd} refused: {error}; pass one that is attached to a tap with IFF_VNET_HDR")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The device lacks vnet headers of 12 bytes or offloads.
    #[error("tap refused: cannot set {what}: {error}")]
    Setup {
        /// What was being set.
        what: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

fn cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "run as root or own the interface (ip tuntap add mode tap user $USER …)",
        Some(libc::EBUSY) => "another program is attached to it",
        Some(libc::EINVAL) => {
            "it exists with other flags; create it with 'ip tuntap add mode tap vnet_hdr multi_queue'"
        }
        Some(libc::E2BIG) => "all its queues are in use",
        _ => "see 'ip -d link show'",
    }
}

/// A tap device: one descriptor per queue.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<TapQueue>,
}

impl Tap {
    /// Attach to interface `name` with so many queues; it is created when it doesn't exist, and then vanishes with
    /// the last descriptor.
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) || name == "." || name == ".."
        {
            return Err(TapError::Name(name.to_owned()));
        }
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TapError::Queues(queues));
        }
        let wanted = queues > 1;
        let first = match attach(name, wanted) {
            // It exists, made for the other kind of use: a single queue can live with either.
            Err(TapError::Attach { error, .. }) if !wanted && error.raw_os_error() == Some(libc::EINVAL) => {
                attach(name, true)?
            }
            other => other?,
        };
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(attach(name, true)?);
        }
        let tap = Self {
            name: name.to_owned(),
            queues: all,
        };
        tap.set_up()?;
        Ok(tap)
    }

    /// Take over descriptors that are attached to a tap already, one per queue.
    pub fn from_raw_fds(fds: &[RawFd]) -> Result<Self, TapError> {
        let mut name = String::new();
        let mut queues = Vec::new();
        for &fd in fds {
            let refused = |error| TapError::Descriptor { fd, error };
            let owned = ioctl::adopt(fd).map_err(refused)?;
            name = ioctl::interface(owned.as_fd()).map_err(refused)?;
            rustix::io::ioctl_fionbio(&owned, true).map_err(|errno| refused(errno.into()))?;
            queues.push(TapQueue { fd: owned });
        }
        if queues.is_empty() {
            return Err(TapError::Queues(0));
        }
        let tap = Self { name, queues };
        tap.set_up()?;
        Ok(tap)
    }

    fn set_up(&self) -> Result<(), TapError> {
        for queue in &self.queues {
            ioctl::set_vnet_header_size(queue.as_fd(), virtio::net::HEADER_LEN).map_err(|error| {
                TapError::Setup {
                    what: "a vnet header of 12 bytes",
                    error,
                }
            })?;
        }
        self.set_offload(0)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Let the host hand over frames with the offloads that a driver acknowledged: partial checksums, super-frames.
    pub fn set_offload(&self, acked: u64) -> Result<(), TapError> {
        match self.queues.first() {
            Some(queue) => queue.set_offload(acked),
            None => Ok(()),
        }
    }

    /// The queues.
    pub fn queues(&self) -> &[TapQueue] {
        &self.queues
    }

    /// Take the device apart, a queue for each worker.
    pub fn into_queues(self) -> Vec<TapQueue> {
        self.queues
    }
}

fn attach(name: &str, multi_queue: bool) -> Result<TapQueue, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(TapError::Device)?;
    let fd = OwnedFd::from(file);
    ioctl::attach(fd.as_fd(), name, multi_queue).map_err(|error| TapError::Attach {
        name: name.to_owned(),
        error,
    })?;
    Ok(TapQueue { fd })
}

/// One queue of a tap device: a non-blocking descriptor that reads and writes one frame per call.
#[derive(Debug)]
pub struct TapQueue {
    fd: OwnedFd,
}

impl TapQueue {
    /// Something else that keeps the bounds of what is written, in the place of a tap.
    #[cfg(test)]
    pub(crate) fn stand_in(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// As [`Tap::set_offload`]: it is a property of the whole device, settable through any queue.
    pub fn set_offload(&self, acked: u64) -> Result<(), TapError> {
        ioctl::set_offload(self.as_fd(), offload_flags(acked)).map_err(|error| TapError::Setup {
            what: "offloads",
            error,
        })
    }

    /// Whether the host puts frames into this queue; only queues of a multi-queue device can be detached.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        ioctl::set_queue(self.as_fd(), attached)
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

/// The kernel's flags for what the driver is able to receive.
fn offload_flags(acked: u64) -> libc::c_uint {
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
    flags
}

#[cfg(test)]
mod tests;
