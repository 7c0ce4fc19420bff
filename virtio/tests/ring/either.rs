//! Both ends of a queue of either layout, on a rig.

use std::sync::Arc;

use virtio::queue::{DriverQueue, Queue};
use virtio::split::driver::IndirectTables;

use crate::rig::{BASE, Rig};

/// Turns a rig into one with a packed queue that starts at the given places.
pub(crate) fn make_packed(rig: &mut Rig, next_avail: u16, used_idx: u16) {
    rig.config.desc = BASE;
    rig.config.avail = BASE + 0x2_0000;
    rig.config.used = BASE + 0x2_0040;
    rig.config.next_avail = next_avail;
    rig.config.used_idx = used_idx;
}

/// Both ends on a rig's queue.
pub(crate) fn ends(rig: &Rig, packed: bool, tables: Option<IndirectTables>) -> (Queue, DriverQueue) {
    let driver = DriverQueue::new(Arc::clone(&rig.mem), &rig.config, tables, packed).expect("a driver end");
    let device = Queue::new(Arc::clone(&rig.mem), &rig.config, packed).expect("a device end");
    (device, driver)
}
