//! Walking the descriptors of a chain.

use super::ring::Ring;
use crate::collect::{Collector, Table};
use crate::desc::Descriptor;
use crate::queue::{RingError, WalkError};

/// Takes the chain at `head`, whose first descriptor was read already, into the burst. Returns true once the burst should end.
#[cold]
#[inline(never)]
pub(super) fn take_chain(
    ring: &Ring,
    indirect: bool,
    head: u16,
    first: Descriptor,
    mut collector: Collector<'_>,
) -> Result<bool, RingError> {
    let mut walked = 0;
    match walk(ring, indirect, head, first, &mut collector, &mut walked) {
        Ok(()) => Ok(collector.finish(Ok(()), head, walked)),
        Err(WalkError::Chain(e)) => Ok(collector.finish(Err(e), head, walked)),
        Err(WalkError::Ring(e)) => {
            collector.abandon();
            Err(e)
        }
    }
}

fn walk(
    ring: &Ring,
    indirect: bool,
    head: u16,
    first: Descriptor,
    collector: &mut Collector<'_>,
    walked: &mut usize,
) -> Result<(), WalkError> {
    let size = ring.size();
    let (mut desc, mut count) = (first, 1_u16);
    loop {
        *walked += 1;
        if desc.is_indirect() {
            if !indirect {
                return Err(RingError::IndirectNotNegotiated { head }.into());
            }
            if desc.has_next() {
                return Err(RingError::IndirectWithNext { head }.into());
            }
            let table = collector.table(desc, size)?;
            return walk_table(&table, head, collector, walked);
        }
        collector.add(desc)?;
        if !desc.has_next() {
            return Ok(());
        }
        if desc.next >= size {
            return Err(RingError::DescriptorIndex {
                index: desc.next,
                size,
            }
            .into());
        }
        if count == size {
            return Err(RingError::ChainTooLong { head, limit: size }.into());
        }
        count += 1;
        desc = ring.desc(desc.next);
    }
}

fn walk_table(
    table: &Table<'_>,
    head: u16,
    collector: &mut Collector<'_>,
    walked: &mut usize,
) -> Result<(), WalkError> {
    let size = table.entries();
    let (mut index, mut count) = (0, 1);
    loop {
        *walked += 1;
        let entry = Descriptor::from_bytes(&table.entry(index)?);
        if entry.is_indirect() {
            return Err(RingError::NestedIndirect { head }.into());
        }
        collector.add(entry)?;
        if !entry.has_next() {
            return Ok(());
        }
        if entry.next >= size {
            return Err(RingError::DescriptorIndex {
                index: entry.next,
                size,
            }
            .into());
        }
        if count == size {
            return Err(RingError::ChainTooLong { head, limit: size }.into());
        }
        count += 1;
        index = entry.next;
    }
}
