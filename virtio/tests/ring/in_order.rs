//! A driver end whose device uses buffers in order, and names only the last chain of a batch.

use std::sync::Arc;

use virtio::burst::Burst;
use virtio::packed::WRAP;
use virtio::queue::{DriverQueue, Queue, RingError};
use virtio::split::QueueConfig;
use virtio::split::driver::Buffer;

use crate::rig::{BUFFERS, Rig};

const SIZE: u16 = 8;
/// Both flags of a packed descriptor that was used in the first round.
const USED: u16 = 0x8080;

fn driver(rig: &mut Rig, packed: bool) -> DriverQueue {
    if packed {
        rig.config = QueueConfig {
            next_avail: WRAP,
            used_idx: WRAP,
            ..rig.config
        };
    }
    let mut driver = DriverQueue::new(Arc::clone(&rig.mem), &rig.config, None, packed).unwrap();
    driver.set_in_order();
    driver
}

/// Makes chains of these lengths available, whose tokens are their numbers; each has 100 bytes to be written.
fn push(driver: &mut DriverQueue, chains: &[usize]) {
    for (token, len) in (0..).zip(chains) {
        let readable = vec![
            Buffer {
                addr: BUFFERS,
                len: 10
            };
            len - 1
        ];
        let writable = Buffer {
            addr: BUFFERS + 100,
            len: 100,
        };
        driver.push(&readable, &[writable], token).unwrap();
    }
    driver.publish();
}

/// Writes a used entry as a device does, for the batch that begins at `at` and ends with the chain that the driver knows by
/// `id`; a split ring's used index becomes `index`.
fn used(rig: &Rig, packed: bool, at: u16, id: u16, len: u32, index: u16) {
    if packed {
        let desc = rig.config.desc + 16 * u64::from(at);
        rig.write(desc + 8, &len.to_le_bytes());
        rig.write(desc + 12, &id.to_le_bytes());
        rig.write(desc + 14, &USED.to_le_bytes());
    } else {
        let entry = rig.config.used + 4 + 8 * u64::from(at);
        rig.write(entry, &u32::from(id).to_le_bytes());
        rig.write(entry + 4, &len.to_le_bytes());
        rig.write(rig.config.used + 2, &index.to_le_bytes());
    }
}

#[test]
fn one_entry_brings_a_batch_back() {
    for packed in [false, true] {
        let mut rig = Rig::new(SIZE);
        let mut driver = driver(&mut rig, packed);
        push(&mut driver, &[1, 2, 1, 1]);
        assert_eq!(driver.pop_used(), Ok(None));
        // The third chain: behind four descriptors in a split ring; ids of a packed ring are numbered as they come.
        used(&rig, packed, 0, if packed { 2 } else { 3 }, 7, 3);
        for (token, len) in [(0, 100), (1, 100), (2, 7)] {
            assert_eq!(driver.pop_used(), Ok(Some((token, len))), "packed: {packed}");
        }
        assert_eq!(driver.pop_used(), Ok(None));
        assert!(!driver.enable_interrupts());
        let at = if packed { 4 } else { 3 };
        used(&rig, packed, at, if packed { 3 } else { 4 }, 1000, 4);
        assert!(driver.enable_interrupts());
        assert_eq!(
            driver.pop_used(),
            Ok(Some((3, 100))),
            "never more than there was room for"
        );
        assert_eq!(driver.free_descriptors(), SIZE);
        assert_eq!(driver.in_flight(), 0);
    }
}

#[test]
fn a_batch_can_only_end_with_what_was_given() {
    for packed in [false, true] {
        for id in [3_u16, 5, 8, 0xffff] {
            let mut rig = Rig::new(SIZE);
            let mut driver = driver(&mut rig, packed);
            push(&mut driver, &[1, 1, 1]);
            used(&rig, packed, 0, id, 0, 3);
            let error = Err(RingError::UsedId { id: u32::from(id) });
            assert_eq!(driver.pop_used(), error, "packed: {packed}");
        }
    }
    // In a split ring the index says how long a batch can be.
    let mut rig = Rig::new(SIZE);
    let mut driver = driver(&mut rig, false);
    push(&mut driver, &[1, 1, 1]);
    used(&rig, false, 0, 2, 0, 2);
    assert_eq!(driver.pop_used(), Err(RingError::UsedId { id: 2 }));
}

#[test]
fn our_own_device_end_gets_along_with_it() {
    for packed in [false, true] {
        let mut rig = Rig::new(SIZE);
        let mut driver = driver(&mut rig, packed);
        let mut device = Queue::new(Arc::clone(&rig.mem), &rig.config, packed).unwrap();
        let mut burst = Burst::new();
        for round in 0..20 {
            push(&mut driver, &[1, 2, 1]);
            device.pop_burst(&mut burst, 8).unwrap();
            device.add_used(burst.chains().map(|chain| (chain.head, round)));
            device.publish();
            for token in 0..3 {
                assert_eq!(driver.pop_used(), Ok(Some((token, round))));
            }
            assert_eq!(driver.pop_used(), Ok(None));
        }
    }
}
