//! Packed queues: malformed chains, hostile drivers, lying devices, and who is told when.

use std::sync::Arc;

use proptest::prelude::*;
use virtio::burst::{Burst, ChainError};
use virtio::packed::{DESC_F_AVAIL, WRAP, device::DeviceQueue, driver::DriverQueue};
use virtio::queue::{QueueError, RingError};
use virtio::split::driver::Buffer;

use crate::either::make_packed;
use crate::rig::{BASE, BUFFERS, HOLE, INDIRECT, NEXT, NEXT_FLAG, Rig, TABLES, WRITE};

fn rig(size: u16) -> Rig {
    let mut rig = Rig::new(16);
    rig.config.size = size;
    make_packed(&mut rig, WRAP, WRAP);
    rig
}

fn device(rig: &Rig) -> DeviceQueue {
    DeviceQueue::new(Arc::clone(&rig.mem), &rig.config).expect("a device end")
}

/// Writes descriptor `i`; its last two fields are (id, flags) where a split one has (flags, next).
fn desc(rig: &Rig, i: u16, addr: u64, len: u32, flags: u16, id: u16) {
    rig.table_desc(rig.config.desc, i, addr, len, id, flags | DESC_F_AVAIL);
}

/// Pops the first chain: its error, or its lengths.
fn pop(rig: &Rig) -> Result<Result<(u16, u32, u32), ChainError>, RingError> {
    let mut burst = Burst::new();
    assert_eq!(device(rig).pop_burst(&mut burst, 1)?, 1);
    let chain = burst.get(0).expect("one chain");
    Ok(match chain.error() {
        Some(e) => Err(e),
        None => Ok((chain.head, chain.readable_len, chain.writable_len)),
    })
}

#[test]
fn chains_are_followed_in_ring_order() {
    let rig = rig(4);
    desc(&rig, 0, BUFFERS, 5, NEXT_FLAG, 0);
    desc(&rig, 1, BUFFERS, 0, NEXT_FLAG, 0);
    desc(&rig, 2, BUFFERS, 7, WRITE | NEXT_FLAG, 0);
    desc(&rig, 3, NEXT - 2, 9, WRITE, 3);
    assert_eq!(pop(&rig), Ok(Ok((3, 5, 16))));
    desc(&rig, 0, TABLES, 32, INDIRECT | WRITE, 2);
    rig.table_desc(TABLES, 0, BUFFERS, 4, 9999, 0);
    rig.table_desc(TABLES, 1, BUFFERS, 6, 9999, WRITE);
    assert_eq!(pop(&rig), Ok(Ok((2, 4, 6))), "ids in tables mean nothing");
}

#[test]
fn malformed_chains_are_found() {
    let mut rig = rig(4);
    for i in 0..4 {
        desc(&rig, i, BUFFERS, 1, NEXT_FLAG, 0);
    }
    assert_eq!(pop(&rig), Err(RingError::ChainTooLong { head: 0, limit: 4 }));
    desc(&rig, 0, BUFFERS, 1, 0, 4);
    assert_eq!(pop(&rig), Err(RingError::DescriptorIndex { index: 4, size: 4 }));
    desc(&rig, 0, TABLES, 16, INDIRECT | NEXT_FLAG, 0);
    assert_eq!(pop(&rig), Err(RingError::IndirectWithNext { head: 0 }));
    desc(&rig, 0, BUFFERS, 1, NEXT_FLAG, 0);
    desc(&rig, 1, TABLES, 16, INDIRECT, 0);
    assert_eq!(
        pop(&rig),
        Err(RingError::IndirectWithNext { head: 0 }),
        "nor at a chain's end"
    );
    for len in [0, 15, 16 * 1025] {
        desc(&rig, 0, TABLES, len, INDIRECT, 1);
        assert_eq!(
            pop(&rig),
            Err(RingError::IndirectLength {
                head: 1,
                len,
                limit: 1024
            })
        );
    }
    desc(&rig, 0, TABLES, 16, INDIRECT, 1);
    rig.table_desc(TABLES, 0, TABLES, 16, 0, INDIRECT);
    assert_eq!(pop(&rig), Err(RingError::NestedIndirect { head: 1 }));
    rig.config.indirect = false;
    assert_eq!(pop(&rig), Err(RingError::IndirectNotNegotiated { head: 1 }));

    for (addr, error) in [
        (HOLE, ChainError::BufferUnmapped),
        (u64::MAX, ChainError::AddressWraps),
    ] {
        desc(&rig, 0, addr, 4, 0, 0);
        assert_eq!(pop(&rig), Ok(Err(error)));
    }
    desc(&rig, 0, BUFFERS, 4, WRITE | NEXT_FLAG, 0);
    desc(&rig, 1, BUFFERS, 4, 0, 0);
    assert_eq!(pop(&rig), Ok(Err(ChainError::ReadableAfterWritable)));
}

#[test]
fn a_bad_chain_is_returned_whole() {
    let rig = rig(8);
    desc(&rig, 0, HOLE, 4, NEXT_FLAG, 0);
    desc(&rig, 1, BUFFERS, 4, NEXT_FLAG, 0);
    desc(&rig, 2, BUFFERS, 4, 0, 5);
    desc(&rig, 3, BUFFERS, 6, 0, 6);
    let mut device = device(&rig);
    let mut burst = Burst::new();
    assert_eq!(device.pop_burst(&mut burst, 8), Ok(2));
    let got: Vec<_> = burst
        .chains()
        .map(|c| (c.head, c.readable_len, c.error()))
        .collect();
    assert_eq!(got, [(5, 0, Some(ChainError::BufferUnmapped)), (6, 6, None)]);
    for chain in burst.chains() {
        device.add_used(chain.head, 0);
    }
    device.publish();
    assert_eq!(device.used_idx(), 4 | WRAP, "three descriptors and one");
    assert_eq!(device.next_avail(), 4 | WRAP);
}

#[test]
fn descriptors_made_available_twice_stop_the_ring() {
    let rig = rig(2);
    let mut device = device(&rig);
    let mut burst = Burst::new();
    desc(&rig, 0, BUFFERS, 4, 0, 0);
    desc(&rig, 1, BUFFERS, 4, 0, 1);
    assert_eq!(device.pop_burst(&mut burst, 8), Ok(2));
    // The next round's flags, although nothing was used.
    rig.table_desc(rig.config.desc, 0, BUFFERS, 4, 0, 1 << 15);
    assert_eq!(
        device.pop_burst(&mut burst, 8),
        Err(RingError::TooManyAvailable { size: 2 })
    );
}

#[test]
fn places_must_be_inside() {
    let mut rig = rig(5);
    rig.config.next_avail = 5;
    let error = DeviceQueue::new(Arc::clone(&rig.mem), &rig.config).map(|_| ());
    assert_eq!(error, Err(QueueError::Position { position: 5, size: 5 }));
    rig.config.next_avail = WRAP | 4;
    assert!(DeviceQueue::new(Arc::clone(&rig.mem), &rig.config).is_ok());
    rig.config.size = 0;
    let error = DriverQueue::new(Arc::clone(&rig.mem), &rig.config, None).map(|_| ());
    assert_eq!(error, Err(QueueError::Size(0)));
    rig.config.size = 8;
    rig.config.used = HOLE;
    let error = DeviceQueue::new(Arc::clone(&rig.mem), &rig.config).map(|_| ());
    assert_eq!(
        error,
        Err(QueueError::Unmapped {
            part: "device event suppression area",
            addr: HOLE
        })
    );
}

#[test]
fn ends_are_told_when_they_ask() {
    for event_idx in [false, true] {
        let mut rig = rig(4);
        rig.config.event_idx = event_idx;
        let mut driver = DriverQueue::new(Arc::clone(&rig.mem), &rig.config, None).expect("a driver end");
        let mut device = device(&rig);
        let mut burst = Burst::new();
        let buffer = Buffer {
            addr: BUFFERS,
            len: 64,
        };
        let mut told = 0;
        // Often enough to wrap several times.
        for round in 0..50 {
            let silent = round % 3 == 1;
            if silent {
                device.disable_notification();
                driver.disable_interrupts();
            } else {
                assert!(!device.enable_notification());
                assert!(!driver.enable_interrupts());
            }
            driver.push(&[], &[buffer], round).expect("room");
            if driver.publish() {
                told += 1;
                assert!(!silent);
            } else {
                assert!(silent, "round {round}");
            }
            assert_eq!(device.pop_burst(&mut burst, 8), Ok(1));
            device.add_used(burst.get(0).expect("one").head, 9);
            assert!(!device.publish() || !silent);
            assert_eq!(driver.pop_used(), Ok(Some((round, 9))));
        }
        assert_eq!(told, 33);
    }
}

#[test]
fn an_event_is_reached_once() {
    let mut rig = rig(4);
    rig.config.event_idx = true;
    let mut driver = DriverQueue::new(Arc::clone(&rig.mem), &rig.config, None).expect("a driver end");
    let mut device = device(&rig);
    let mut burst = Burst::new();
    let buffer = Buffer {
        addr: BUFFERS,
        len: 64,
    };
    let mut published = Vec::new();
    device.enable_notification();
    for _ in 0..4 {
        driver.push(&[], &[buffer], 0).expect("room");
        published.push(driver.publish());
    }
    assert_eq!(published, [true, false, false, false]);
    driver.disable_interrupts();
    assert_eq!(device.pop_burst(&mut burst, 8), Ok(4));
    let heads: Vec<u16> = burst.chains().map(|c| c.head).collect();
    device.add_used(heads[0], 0);
    assert!(device.publish(), "the first time always");
    device.add_used(heads[1], 0);
    assert!(!device.publish(), "disabled");
    assert!(driver.enable_interrupts(), "used ones wait");
    assert!(driver.pop_used().expect("sane").is_some());
    assert!(driver.pop_used().expect("sane").is_some());
    for head in &heads[2..] {
        device.add_used(*head, 0);
    }
    assert!(device.publish(), "a burst passes the event");
}

#[test]
fn a_device_that_lies_is_found_out() {
    let rig = rig(4);
    let mut driver = DriverQueue::new(Arc::clone(&rig.mem), &rig.config, None).expect("a driver end");
    let used = |id: u16| {
        rig.table_desc(
            rig.config.desc,
            0,
            0,
            u32::MAX,
            id,
            WRITE | DESC_F_AVAIL | 1 << 15,
        );
    };
    used(0);
    assert_eq!(driver.pop_used(), Ok(None), "nothing is outstanding");
    driver
        .push(
            &[],
            &[Buffer {
                addr: BUFFERS,
                len: 64,
            }],
            7,
        )
        .expect("room");
    driver.publish();
    for id in [1, 4, u16::MAX] {
        used(id);
        assert_eq!(driver.pop_used(), Err(RingError::UsedId { id: u32::from(id) }));
    }
    used(0);
    assert_eq!(
        driver.pop_used(),
        Ok(Some((7, 64))),
        "no more than there was room for"
    );
}

proptest! {
    #[test]
    fn random_rings_never_panic(
        size in 1u16..17,
        bytes in prop::collection::vec(any::<u8>(), 16 * 16),
        table in prop::collection::vec(any::<u8>(), 64),
        available in prop::collection::vec((0u16..16, 0u16..8, 0u16..20, 0u64..0x2000, 0u32..80), 0..16),
        unpop in 0u16..70,
    ) {
        let rig = rig(size);
        rig.write(rig.config.desc, &bytes);
        rig.write(TABLES, &table);
        for (i, flags, id, off, len) in available {
            desc(&rig, i, BASE + 0x4_0000 + off, len, flags, id);
        }
        let mut device = device(&rig);
        let mut burst = Burst::new();
        for _ in 0..40 {
            let Ok(n) = device.pop_burst(&mut burst, 64) else { break };
            device.unpop(unpop);
            for chain in burst.chains() {
                for segment in chain.readable.iter().chain(chain.writable) {
                    rig.guest_addr(segment.as_ptr());
                    rig.guest_addr(segment.skip(segment.len() - 1).as_ptr());
                }
                device.add_used(chain.head, chain.writable_len);
            }
            device.publish();
            if n == 0 {
                break;
            }
        }
    }
}
