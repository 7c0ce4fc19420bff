//! What a driver end knows of a device that uses buffers in order (`VIRTIO_F_IN_ORDER`, VIRTIO 1.3 §2.7.9 and §2.8.8): one
//! used entry may stand for a whole batch, whose last chain it names.

use std::collections::VecDeque;

/// The chains outstanding, in the order in which they were made available.
#[derive(Debug)]
pub(crate) struct InOrder {
    ids: VecDeque<u16>,
    /// Chains of the batch that were not taken back yet.
    left: usize,
    /// What the device says it wrote to the last of them; all before it were used completely.
    len: u32,
}

impl InOrder {
    pub(crate) fn new(size: u16) -> Self {
        Self {
            ids: VecDeque::with_capacity(usize::from(size)),
            left: 0,
            len: 0,
        }
    }

    pub(crate) fn push(&mut self, id: u16) {
        self.ids.push_back(id);
    }

    /// Whether the rest of a batch is to be taken back before the ring is looked at.
    pub(crate) fn has_more(&self) -> bool {
        self.left > 0
    }

    /// A used entry names `id` and `len`: the batch ends there. False if `id` is not among the first `limit` outstanding.
    pub(crate) fn begin(&mut self, id: u32, len: u32, limit: usize) -> bool {
        let place = self
            .ids
            .iter()
            .take(limit)
            .position(|known| u32::from(*known) == id);
        self.left = place.map_or(0, |place| place + 1);
        self.len = len;
        place.is_some()
    }

    /// The next chain of the batch, and how many bytes were written to it, if it is the last.
    pub(crate) fn next(&mut self) -> Option<(u16, Option<u32>)> {
        self.left = self.left.checked_sub(1)?;
        let id = self.ids.pop_front()?;
        Some((id, (self.left == 0).then_some(self.len)))
    }
}
