//! The state of one ring while its front-end puts it together, runs it and stops it.

use virtio::memory::MemoryMap;
use virtio::split::QueueConfig;

use crate::eventfd::{Call, Kick};

/// How the driver tells about new buffers.
#[derive(Debug, Default)]
pub(super) enum Kicking {
    /// The front-end has not said: the ring stays stopped.
    #[default]
    Unknown,
    /// Not at all: the ring is polled.
    Never,
    /// With this eventfd.
    Fd(Kick),
}

/// The three parts of a ring, at the front-end's addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// One ring.
#[derive(Debug, Default)]
pub(super) struct RingState {
    pub(super) size: Option<u16>,
    pub(super) addresses: Option<Addresses>,
    /// Where the device goes on in the available ring; in a packed ring with the wrap counter in bit 15.
    pub(super) base: u16,
    pub(super) kick: Kicking,
    /// The kick of a running ring, kept for whoever goes on with it.
    pub(super) watched: Option<Kick>,
    pub(super) call: Option<Call>,
    pub(super) err: Option<Call>,
    pub(super) enabled: bool,
    /// What the plane was told of that, while it runs.
    pub(super) told: bool,
    pub(super) running: bool,
}

impl RingState {
    /// The queue's parameters, once the front-end has given all that a ring needs to run.
    pub(super) fn config(&self, memory: &MemoryMap, packed: bool) -> Option<QueueConfig> {
        if self.running || matches!(self.kick, Kicking::Unknown) {
            return None;
        }
        let (size, at) = (self.size?, self.addresses?);
        let start = if packed {
            self.base
        } else {
            used_idx(memory, at.used).unwrap_or(self.base)
        };
        Some(QueueConfig {
            size,
            desc: at.desc,
            avail: at.avail,
            used: at.used,
            next_avail: start,
            used_idx: start,
            ..QueueConfig::default()
        })
    }
}

/// The used index as the last device left it. A device that uses in order and was stopped properly has nothing in flight,
/// so this is its base, too. After one that died, what was in flight is done again; and a front-end that cannot know
/// where a dead one stopped (DPDK's gives 0) need not.
fn used_idx(memory: &MemoryMap, used: u64) -> Option<u16> {
    let mut index = [0u8; 2];
    memory.user_slice(used.checked_add(2)?, 2)?.read_to(0, &mut index);
    Some(u16::from_le_bytes(index))
}
