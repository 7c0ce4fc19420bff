//! Tap devices with vnet headers and several queues: created, or attached to when they exist.
//!
//! Every frame carries the 12-byte header of a modern virtio-net device, so that offloads pass through untouched.

mod ioctl;
mod keeper;
mod queue;

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;

use virtio::features as f;

pub use keeper::TapKeeper;
pub use queue::TapQueue;

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
    queues: Vec<Arc<TapQueue>>,
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
        let mut all = vec![Arc::new(TapQueue::open(name, queues > 1)?)];
        for _ in 1..queues {
            all.push(Arc::new(TapQueue::open(name, true)?));
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
            queues.push(Arc::new(TapQueue::new(owned)));
        }
        if queues.is_empty() {
            return Err(TapError::Queues(0));
        }
        let tap = Self { name, queues };
        tap.set_up()?;
        Ok(tap)
    }

    /// Take over queues of a tap that another process had attached and set up.
    pub fn take_over(name: &str, fds: Vec<OwnedFd>) -> Self {
        Self {
            name: name.to_owned(),
            queues: fds.into_iter().map(|fd| Arc::new(TapQueue::new(fd))).collect(),
        }
    }

    fn set_up(&self) -> Result<(), TapError> {
        self.queues.iter().try_for_each(|queue| queue.set_header())?;
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

    /// Whether the kernel segments UDP for the interface (Linux 6.2 and later). Forgets which offloads were set.
    pub fn takes_uso(&self) -> bool {
        let uso = f::NET_F_GUEST_CSUM | f::NET_F_GUEST_USO4 | f::NET_F_GUEST_USO6;
        let taken = self.set_offload(uso).is_ok();
        let _ = self.set_offload(0);
        taken
    }

    /// The queues.
    pub fn queues(&self) -> &[Arc<TapQueue>] {
        &self.queues
    }

    /// Take the device apart, a queue for each worker.
    pub fn into_queues(self) -> Vec<Arc<TapQueue>> {
        self.queues
    }
}

#[cfg(test)]
mod tests;
