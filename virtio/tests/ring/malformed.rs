//! Every way in which a chain can be wrong, and those that look wrong but are not.

use virtio::burst::{Burst, ChainError};
use virtio::memory::{chain_len, read_chain};
use virtio::split::{QueueError, RingError};

use crate::rig::{BASE, BUFFERS, FAR, HOLE, INDIRECT, NEXT, NEXT_FLAG, REGION, Rig, TABLES, WRITE};

/// What popping gives when descriptor 0 is the only head: the chain's error, or how many bytes it has (read, written).
type Popped = Result<Result<(u32, u32), ChainError>, RingError>;

fn pop(rig: &Rig) -> Popped {
    let mut device = rig.device();
    rig.make_available(0, &[0]);
    let mut burst = Burst::new();
    let n = device.pop_burst(&mut burst, 64)?;
    assert_eq!(n, 1);
    let chain = burst.get(0).expect("one chain");
    assert_eq!(chain.head, 0);
    assert_eq!(chain_len(chain.readable), chain.readable_len as usize);
    assert_eq!(chain_len(chain.writable), chain.writable_len as usize);
    if let Some(error) = chain.error() {
        assert!(chain.readable.is_empty() && chain.writable.is_empty());
        assert_eq!(device.next_avail(), 1, "the chain was taken");
        return Ok(Err(error));
    }
    Ok(Ok((chain.readable_len, chain.writable_len)))
}

fn ring_error(rig: &Rig) -> RingError {
    pop(rig).expect_err("the ring must stop")
}

fn chain_error(rig: &Rig) -> ChainError {
    pop(rig)
        .expect("the ring goes on")
        .expect_err("the chain can't be used")
}

#[test]
fn loops_are_found() {
    let rig = Rig::new(4);
    rig.desc(0, BUFFERS, 1, NEXT_FLAG, 0);
    assert_eq!(ring_error(&rig), RingError::ChainTooLong { head: 0, limit: 4 });
    rig.desc(0, BUFFERS, 1, NEXT_FLAG, 1);
    rig.desc(1, BUFFERS, 1, NEXT_FLAG, 0);
    assert_eq!(ring_error(&rig), RingError::ChainTooLong { head: 0, limit: 4 });
    // Zero-length descriptors don't make a loop endless either.
    rig.desc(0, BUFFERS, 0, NEXT_FLAG, 0);
    assert_eq!(ring_error(&rig), RingError::ChainTooLong { head: 0, limit: 4 });
}

#[test]
fn a_chain_as_long_as_the_queue_is_accepted() {
    let rig = Rig::new(8);
    for i in 0..8 {
        rig.desc(i, BUFFERS, 3, if i < 7 { NEXT_FLAG } else { WRITE }, i + 1);
    }
    assert_eq!(pop(&rig), Ok(Ok((21, 3))));
}

#[test]
fn indexes_outside_the_table_are_found() {
    let rig = Rig::new(4);
    rig.desc(0, BUFFERS, 1, NEXT_FLAG, 4);
    assert_eq!(ring_error(&rig), RingError::DescriptorIndex { index: 4, size: 4 });
    let mut device = rig.device();
    rig.make_available(0, &[4]);
    let got = device.pop_burst(&mut Burst::new(), 64);
    assert_eq!(got, Err(RingError::DescriptorIndex { index: 4, size: 4 }));
}

#[test]
fn chains_before_a_broken_one_are_popped_first() {
    let rig = Rig::new(4);
    rig.desc(0, BUFFERS, 1, 0, 0);
    rig.desc(1, BUFFERS, 1, NEXT_FLAG, 1);
    let mut device = rig.device();
    rig.make_available(0, &[0, 0, 1]);
    let mut burst = Burst::new();
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(2));
    let broken = Err(RingError::ChainTooLong { head: 1, limit: 4 });
    assert_eq!(device.pop_burst(&mut burst, 64), broken);
    assert_eq!(device.pop_burst(&mut burst, 64), broken, "and again");
    assert!(burst.is_empty());
    assert_eq!(device.next_avail(), 2);
}

#[test]
fn the_available_index_may_not_jump() {
    let rig = Rig::new(4);
    let mut device = rig.device();
    for idx in [5, 0x8000, 0xffff] {
        rig.set_avail_idx(idx);
        let got = device.pop_burst(&mut Burst::new(), 64);
        assert_eq!(
            got,
            Err(RingError::AvailIndex {
                avail: idx,
                next: 0,
                size: 4
            })
        );
        assert!(device.pending() <= 4);
    }
    rig.set_avail_idx(4);
    assert_eq!(device.pop_burst(&mut Burst::new(), 64), Ok(4));
    rig.set_avail_idx(3);
    assert!(device.pop_burst(&mut Burst::new(), 64).is_err(), "nor go back");
}

#[test]
fn indirect_tables_are_followed() {
    let rig = Rig::new(4);
    rig.desc(0, TABLES, 48, INDIRECT | WRITE, 0);
    rig.table_desc(TABLES, 0, BUFFERS, 5, NEXT_FLAG, 2);
    rig.table_desc(TABLES, 2, BUFFERS, 7, NEXT_FLAG, 1);
    rig.table_desc(TABLES, 1, BUFFERS, 9, WRITE, 0);
    assert_eq!(pop(&rig), Ok(Ok((12, 9))));
    // After direct descriptors, too.
    rig.desc(0, BUFFERS, 1, NEXT_FLAG, 1);
    rig.desc(1, TABLES, 48, INDIRECT, 0);
    assert_eq!(pop(&rig), Ok(Ok((13, 9))));
}

#[test]
fn broken_indirect_descriptors_are_found() {
    let mut rig = Rig::new(4);
    rig.table_desc(TABLES, 0, BUFFERS, 5, 0, 0);
    for len in [0, 8, 17, 16 * 1025, 0xffff_fff0] {
        rig.desc(0, TABLES, len, INDIRECT, 0);
        assert_eq!(
            ring_error(&rig),
            RingError::IndirectLength {
                head: 0,
                len,
                limit: 1024
            }
        );
    }
    rig.desc(0, TABLES, 16, INDIRECT | NEXT_FLAG, 1);
    assert_eq!(ring_error(&rig), RingError::IndirectWithNext { head: 0 });
    rig.desc(0, TABLES, 16, INDIRECT, 0);
    rig.table_desc(TABLES, 0, TABLES, 16, INDIRECT, 0);
    assert_eq!(ring_error(&rig), RingError::NestedIndirect { head: 0 });
    rig.table_desc(TABLES, 0, BUFFERS, 5, NEXT_FLAG, 1);
    assert_eq!(ring_error(&rig), RingError::DescriptorIndex { index: 1, size: 1 });
    rig.table_desc(TABLES, 0, BUFFERS, 5, NEXT_FLAG, 0);
    assert_eq!(ring_error(&rig), RingError::ChainTooLong { head: 0, limit: 1 });
    for at in [HOLE, HOLE - 16, 0, u64::MAX - 63] {
        rig.desc(0, at, 32, INDIRECT, 0);
        if at == HOLE - 16 {
            rig.table_desc(at, 0, BUFFERS, 5, NEXT_FLAG, 1);
        }
        assert_eq!(chain_error(&rig), ChainError::TableUnmapped);
    }
    rig.desc(0, u64::MAX - 15, 32, INDIRECT, 0);
    assert_eq!(chain_error(&rig), ChainError::AddressWraps);
    rig.config.indirect = false;
    rig.desc(0, TABLES, 16, INDIRECT, 0);
    assert_eq!(ring_error(&rig), RingError::IndirectNotNegotiated { head: 0 });
}

#[test]
fn an_indirect_table_may_cross_adjacent_regions() {
    let rig = Rig::new(4);
    // Not even descriptors need to lie in one region.
    let table = NEXT - 24;
    rig.desc(0, table, 48, INDIRECT, 0);
    rig.table_desc(table, 0, BUFFERS, 5, NEXT_FLAG, 1);
    rig.table_desc(table, 1, BUFFERS, 6, NEXT_FLAG, 2);
    rig.table_desc(table, 2, BUFFERS, 7, WRITE, 0);
    assert_eq!(pop(&rig), Ok(Ok((11, 7))));
}

#[test]
fn buffers_must_be_memory() {
    let rig = Rig::new(4);
    for (addr, len) in [
        (0, 1),
        (BASE - 1, 1),
        (BASE - 1, 2),
        (HOLE, 1),
        (HOLE - 1, 2),
        (FAR + REGION - 1, 2),
        (u64::MAX - 1, 1),
    ] {
        rig.desc(0, addr, len, 0, 0);
        assert_eq!(chain_error(&rig), ChainError::BufferUnmapped, "{addr:#x}");
    }
    for (addr, len) in [
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 10, 100),
        (1 << 63, 1),
    ] {
        rig.desc(0, addr, len, 0, 0);
        let wanted = if addr == 1 << 63 {
            ChainError::BufferUnmapped
        } else {
            ChainError::AddressWraps
        };
        assert_eq!(chain_error(&rig), wanted, "{addr:#x}");
    }
}

#[test]
fn a_buffer_may_cross_adjacent_regions() {
    let rig = Rig::new(4);
    rig.write(NEXT - 3, b"abcdef");
    rig.desc(0, NEXT - 3, 6, 0, 0);
    let mut device = rig.device();
    rig.make_available(0, &[0]);
    let mut burst = Burst::new();
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(1));
    let chain = burst.get(0).expect("one chain");
    assert_eq!(
        (chain.error(), chain.readable.len(), chain.readable_len),
        (None, 2, 6)
    );
    let mut got = [0; 6];
    assert_eq!(read_chain(chain.readable, 0, &mut got), 6);
    assert_eq!(&got, b"abcdef");
    // Over three regions up to the hole.
    let len = u32::try_from(HOLE - BASE).expect("fits");
    rig.desc(0, BASE, len, WRITE, 0);
    assert_eq!(pop(&rig), Ok(Ok((0, len))));
}

#[test]
fn empty_descriptors_are_skipped() {
    let rig = Rig::new(4);
    rig.desc(0, 0, 0, NEXT_FLAG, 1);
    rig.desc(1, BUFFERS, 4, NEXT_FLAG, 2);
    rig.desc(2, u64::MAX, 0, WRITE, 0);
    assert_eq!(pop(&rig), Ok(Ok((4, 0))));
    rig.desc(0, 0, 0, 0, 0);
    assert_eq!(pop(&rig), Ok(Ok((0, 0))));
}

#[test]
fn four_gibibytes_are_too_much() {
    let rig = Rig::new(4096);
    let table = NEXT;
    rig.desc(0, table, 16 * 4096, INDIRECT, 0);
    let fill = |len: u64, last: u64| {
        for i in 0..4096 {
            let (len, flags) = if i < 4095 { (len, NEXT_FLAG) } else { (last, 0) };
            rig.table_desc(table, i, BASE, u32::try_from(len).expect("fits"), flags, i + 1);
        }
    };
    fill(REGION, REGION - 1);
    assert_eq!(pop(&rig), Ok(Ok((u32::MAX, 0))));
    fill(REGION, REGION);
    assert_eq!(chain_error(&rig), ChainError::TooLarge);
    fill(2 * REGION, 1);
    assert_eq!(chain_error(&rig), ChainError::TooManyPieces);
    rig.desc(0, BASE, u32::MAX, NEXT_FLAG, 1);
    assert_eq!(chain_error(&rig), ChainError::BufferUnmapped);
}

#[test]
fn readable_buffers_come_first() {
    let rig = Rig::new(4);
    rig.desc(0, BUFFERS, 4, WRITE | NEXT_FLAG, 1);
    rig.desc(1, BUFFERS, 4, 0, 0);
    assert_eq!(chain_error(&rig), ChainError::ReadableAfterWritable);
}

#[test]
fn a_bad_chain_does_not_disturb_its_neighbours() {
    let rig = Rig::new(8);
    rig.desc(0, BUFFERS, 4, 0, 0);
    rig.desc(1, BUFFERS, 4, NEXT_FLAG, 2);
    rig.desc(2, HOLE, 4, 0, 0);
    rig.desc(3, BUFFERS + 64, 5, WRITE, 0);
    let mut device = rig.device();
    rig.make_available(0, &[0, 1, 3, 3]);
    let mut burst = Burst::new();
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(4));
    let got: Vec<_> = burst
        .chains()
        .map(|c| (c.head, c.readable_len, c.writable_len, c.error()))
        .collect();
    assert_eq!(
        got,
        [
            (0, 4, 0, None),
            (1, 0, 0, Some(ChainError::BufferUnmapped)),
            (3, 0, 5, None),
            (3, 0, 5, None), // the same head twice: each handled once
        ]
    );
    assert!(burst.writable_run(2, 2).is_some_and(|run| chain_len(run) == 10));
    assert!(burst.writable_run(1, 2).is_none(), "malformed");
    assert!(burst.writable_run(0, 1).is_none(), "readable");
    assert!(burst.writable_run(3, 2).is_none(), "out of range");
    assert!(burst.writable_run(0, usize::MAX).is_none());
}

#[test]
fn long_chains_end_a_burst() {
    let rig = Rig::new(1024);
    for i in 0..1024 {
        rig.desc(i, BUFFERS, 1, if i < 1023 { NEXT_FLAG } else { 0 }, i + 1);
    }
    let mut device = rig.device();
    rig.make_available(0, &[0; 64]);
    let mut burst = Burst::new();
    let mut all = 0;
    while all < 64 {
        let n = device.pop_burst(&mut burst, 64).expect("a sane ring");
        assert!(
            (1..=8).contains(&n),
            "64 chains of 1024 descriptors are too much for one burst"
        );
        all += n;
    }
    assert_eq!(all, 64);
}

#[test]
fn queues_must_be_where_memory_is() {
    let rig = Rig::new(8);
    let new = |change: &dyn Fn(&mut virtio::split::QueueConfig)| {
        let mut config = rig.config;
        change(&mut config);
        virtio::split::device::DeviceQueue::new(rig.mem.clone(), &config)
            .map(|_| ())
            .unwrap_err()
    };
    for size in [0, 3, 40_000, u16::MAX] {
        assert_eq!(new(&|c| c.size = size), QueueError::Size(size));
    }
    let (part, align) = ("descriptor table", 16);
    assert_eq!(
        new(&|c| c.desc = BASE + 8),
        QueueError::Misaligned {
            part,
            addr: BASE + 8,
            align
        }
    );
    for addr in [0, HOLE, NEXT - 16, u64::MAX - 7] {
        assert_eq!(new(&|c| c.desc = addr), QueueError::Unmapped { part, addr });
        let part = "used ring";
        assert_eq!(new(&|c| c.used = addr), QueueError::Unmapped { part, addr });
        let part = "available ring";
        assert_eq!(new(&|c| c.avail = addr), QueueError::Unmapped { part, addr });
    }
    let part = "used ring";
    assert_eq!(
        new(&|c| c.used += 2),
        QueueError::Misaligned {
            part,
            addr: rig.config.used + 2,
            align: 4
        }
    );
    let part = "available ring";
    assert_eq!(
        new(&|c| c.avail += 1),
        QueueError::Misaligned {
            part,
            addr: rig.config.avail + 1,
            align: 2
        }
    );
}
