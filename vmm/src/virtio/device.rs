//! What a virtio device is, to the transport in front of it.
//!
//! ```text
//!   new ──► offered ──ack_features──► negotiated ──activate──► running ◄──pause, resume──► paused
//!              ▲                           │                      │                          │
//!              └────────────reset──────────┴──────────reset───────┴──────────reset───────────┘
//! ```
//!
//! `read_config` and `write_config` are called in every state. The transport calls one method at a time.

use std::fmt::Debug;
use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;

pub use super::irq::{ConfigIrq, QueueIrq};

/// A device behind a virtio transport, whether it runs in this process or behind a vhost-user socket.
pub trait VirtioDevice: Debug + Send {
    /// The device type number of the VIRTIO standard, section 5: 1 for a network device.
    fn device_type(&self) -> u32;

    /// The largest size of each virtqueue: a power of two. The count is the number of virtqueues and does not
    /// change in the life of the device.
    fn queue_max_sizes(&self) -> &[u16];

    /// Features offered. The transport adds `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// The driver chose `features`, a subset of those offered with `VIRTIO_F_VERSION_1` in it. False if they make
    /// no sense together: the driver then sees `FEATURES_OK` refused. Called again after a reset, or when the
    /// driver tries another set.
    fn ack_features(&mut self, features: u64) -> bool;

    /// Reads the device's configuration space. `data` comes zeroed: bytes behind its end need no care.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the device's configuration space; read-only fields and bytes behind its end are ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver set `DRIVER_OK`: the device may use the queues and guest memory from here until `reset`.
    /// A device that fails is marked as needing a reset, and `reset` is called before anything else.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Keeps away from the queues and from guest memory until `resume`: when this returns, nothing of them changes any
    /// more and no interrupt is raised for what becomes of them. Called while the device runs.
    fn pause(&mut self);

    /// Goes on where `pause` stopped, with nothing lost.
    fn resume(&mut self);

    /// Forgets everything negotiated. When this returns, nothing uses guest memory or the eventfds of the last
    /// activation any more. Called in every state.
    fn reset(&mut self);

    /// The driver takes queue `index` of the running or paused device back (`VIRTIO_F_RING_RESET`): when this returns,
    /// nothing uses it any more. Only a device that offers the feature is asked.
    fn reset_queue(&mut self, index: u16) {
        let _ = index;
    }

    /// The driver enabled a queue that it had taken back, set up anew. A device that fails is marked as needing a reset.
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        Err(ActivateError::MissingQueue(queue.index))
    }

    /// The driver mapped a queue of the running device to another MSI-X vector, or to none: the eventfd of its
    /// [`QueueIrq`] is not the one it was. A device that only calls [`QueueIrq::notify`] needs no care.
    fn queue_irq_changed(&mut self, index: u16) {
        let _ = index;
    }
}

/// All that a device needs to run.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub mem: GuestRam,
    /// The queues that the driver enabled, in ascending order of index. There may be fewer than offered.
    pub queues: Vec<ActiveQueue>,
    /// The negotiated features.
    pub features: u64,
    /// Tells the driver of changes in the configuration space.
    pub config_irq: ConfigIrq,
}

/// A virtqueue that the driver has enabled. It stays as it is until the device or the queue is reset.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Which of the device's queues this is.
    pub index: u16,
    /// Entries: at most the maximum that the device gave; a power of two unless `VIRTIO_F_RING_PACKED` was negotiated.
    pub size: u16,
    /// Guest-physical address of the descriptor table; 16-byte aligned, inside guest memory.
    pub desc: u64,
    /// Guest-physical address of the available ring, or of the driver's event suppression area in a packed queue; 2-byte
    /// aligned, or 4, inside guest memory.
    pub avail: u64,
    /// Guest-physical address of the used ring, or of the device's event suppression area; 4-byte aligned, inside guest
    /// memory.
    pub used: u64,
    /// Signalled by the driver's notifications; non-blocking.
    pub kick: EventFd,
    /// Interrupts the driver.
    pub irq: QueueIrq,
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A part of a virtqueue is not in guest memory.
    #[error("the {ring} of virtqueue {queue} at {addr:#x} is not in guest memory: the driver is at fault")]
    RingOutsideMemory {
        /// Index of the virtqueue.
        queue: u16,
        /// Which of its parts.
        ring: &'static str,
        /// Guest-physical address.
        addr: u64,
    },
    /// The driver did not enable a virtqueue that the device cannot do without.
    #[error("virtqueue {0} is not enabled, but the device needs it: the driver is at fault")]
    MissingQueue(u16),
    /// The operating system refused something.
    #[error("the device could not start: {0}")]
    Os(#[from] io::Error),
}
