//! A packed ring tells the next device end where the last one died.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;
use virtio::burst::Burst;
use virtio::packed::{DESC_F_AVAIL, DESC_F_USED, WRAP, device::DeviceQueue, driver::DriverQueue};
use virtio::split::driver::Buffer;

use crate::either::make_packed;
use crate::rig::{BUFFERS, NEXT_FLAG, Rig};

/// A rig whose ring starts at `start`, and is always said to.
fn rig(size: u16, start: u16) -> Rig {
    let mut rig = Rig::new(16);
    rig.config.size = size;
    make_packed(&mut rig, start, start);
    rig
}

fn driver(rig: &Rig) -> DriverQueue {
    DriverQueue::new(Arc::clone(&rig.mem), &rig.config, None).expect("a driver end")
}

/// The device end after one that died.
fn next_device(rig: &Rig) -> DeviceQueue {
    let mut device = DeviceQueue::new(Arc::clone(&rig.mem), &rig.config).expect("a device end");
    device.recover();
    device
}

/// Buffers that are told apart by their lengths.
fn chain(number: u64, buffers: u16) -> Vec<Buffer> {
    let len = 1 + u32::try_from(number % 1000).expect("small");
    vec![Buffer { addr: BUFFERS, len }; usize::from(buffers)]
}

proptest! {
    /// Whatever it was about when it died, the next one goes on behind what was used, and the driver gets all back in order.
    #[test]
    fn a_device_end_goes_on_where_the_last_one_died(
        size in 3_u16..20,
        start in (0_u16..20, any::<bool>()),
        steps in prop::collection::vec((0_usize..8, 1_u16..5, 0_usize..8, 0_usize..8, 0_u8..4), 1..60),
    ) {
        let start = (start.0 % size) | if start.1 { WRAP } else { 0 };
        let rig = rig(size, start);
        let (mut driver, mut device) = (driver(&rig), next_device(&rig));
        prop_assert_eq!(device.next_avail(), start);
        let mut burst = Burst::new();
        let (mut pushed, mut returned) = (0_u64, 0_u64);
        // Chains that the driver has published, and the next that the device has to do.
        let (mut published, mut next) = (VecDeque::new(), 0_u64);
        for (push, buffers, pop, done, end) in steps {
            for _ in 0..push {
                if driver.push(&chain(pushed, buffers), &[], pushed).is_err() {
                    break;
                }
                published.push_back(buffers);
                pushed += 1;
            }
            if end == 0 {
                // Dead while the driver is filling the ring.
                device = next_device(&rig);
            }
            driver.publish();
            let popped = device.pop_burst(&mut burst, pop).expect("a sane ring");
            let mut used = 0;
            let slots = |number: u64| published[usize::try_from(number - returned).expect("small")];
            for (number, chain) in (next..).zip(burst.chains()) {
                prop_assert_eq!(chain.error(), None);
                prop_assert_eq!(chain.readable_len, u32::from(slots(number)) * (1 + u32::try_from(number % 1000).expect("small")));
                if used < done as u64 {
                    device.add_used(chain.head, 0);
                    used += 1;
                }
            }
            // One that is alone in its burst is nowhere until it is published.
            let written = if used > 1 || used > 0 && slots(next) > 1 { used } else { 0 };
            match end {
                1 | 2 => {
                    device.unpop(u16::try_from(popped as u64 - used).expect("small"));
                    device.publish();
                    next += used;
                }
                _ => {}
            }
            if end != 1 {
                // Dead with a burst published, or with what was used of it unpublished: that is not done again.
                if end != 2 {
                    next += written;
                }
                device = next_device(&rig);
            }
            burst.release();
            while let Some((number, _)) = driver.pop_used().expect("a sane device") {
                prop_assert_eq!(number, returned);
                published.pop_front();
                returned += 1;
            }
            prop_assert_eq!(returned, next);
        }
    }

    /// What a hostile driver wrote costs it its own ring at most.
    #[test]
    fn rubbish_is_survived(size in 1_u16..17, bytes in prop::collection::vec(any::<u8>(), 16 * 16)) {
        let rig = rig(size, WRAP);
        rig.write(rig.config.desc, &bytes);
        let device = next_device(&rig);
        prop_assert!(device.next_avail() & !WRAP < size);
        prop_assert_eq!(device.next_avail(), device.used_idx());
    }
}

#[test]
fn chains_are_told_from_the_rest_of_used_ones() {
    let rig = rig(8, WRAP);
    let (mut driver, mut device) = (driver(&rig), next_device(&rig));
    let mut burst = Burst::new();
    driver.push(&chain(0, 3), &[], 0).expect("room");
    driver.push(&chain(1, 1), &[], 1).expect("room");
    driver.publish();
    assert_eq!(device.pop_burst(&mut burst, 1), Ok(1));
    device.add_used(burst.get(0).expect("one").head, 0);
    device.publish();
    // The driver may put the next chain under the same id: nothing but the device's own marks tells the old one's end.
    assert_eq!(next_device(&rig).next_avail(), 3 | WRAP);
}

#[test]
fn buffers_that_nobody_was_told_of_come_back_empty() {
    let rig = rig(8, WRAP);
    let (mut driver, mut device) = (driver(&rig), next_device(&rig));
    let mut burst = Burst::new();
    for number in 0..8 {
        driver.push(&[], &chain(number, 1), number).expect("room");
    }
    driver.publish();
    assert_eq!(device.pop_burst(&mut burst, 5), Ok(5));
    let heads: Vec<u16> = burst.chains().map(|chain| chain.head).collect();
    device.add_used(heads[0], 1);
    device.publish();
    // A frame in three buffers, of which the first was not shown yet.
    for head in &heads[1..4] {
        device.add_used(*head, 1);
    }
    assert_eq!(next_device(&rig).next_avail(), 4 | WRAP);
    let back: Vec<_> = std::iter::from_fn(|| driver.pop_used().expect("a sane device")).collect();
    assert_eq!(back, [(0, 1), (1, 0), (2, 0), (3, 0)]);
}

#[test]
fn a_chain_of_which_only_the_end_was_marked_is_given_back_whole() {
    // Three chains of three, one and one; the marks of the first have come as far as its last descriptor but one.
    for marked in 1..3 {
        let rig = rig(8, WRAP);
        let mut driver = driver(&rig);
        for (number, buffers) in [3, 1, 1].into_iter().enumerate() {
            driver
                .push(&chain(number as u64, buffers), &[], number as u64)
                .expect("room");
        }
        driver.publish();
        for at in (3 - marked)..3 {
            let more = if at < 2 { NEXT_FLAG } else { 0 };
            let flags = DESC_F_AVAIL | DESC_F_USED | more;
            rig.table_desc(rig.config.desc, at, BUFFERS, 1, 0, flags);
        }
        let mut device = next_device(&rig);
        assert_eq!(device.next_avail(), 3 | WRAP);
        assert_eq!(driver.pop_used(), Ok(Some((0, 0))));
        assert_eq!(driver.pop_used(), Ok(None));
        let mut burst = Burst::new();
        assert_eq!(device.pop_burst(&mut burst, 8), Ok(2));
        // And the marks are all there now.
        assert_eq!(next_device(&rig).next_avail(), 3 | WRAP);
    }
}
