//! Notifications and positions: who is told when, and where a queue goes on.

use std::sync::Arc;

use virtio::burst::Burst;
use virtio::memory::MemoryMap;
use virtio::split::RingError;
use virtio::split::driver::Buffer;

use crate::rig::{BUFFERS, Rig};

const BUFFER: Buffer = Buffer {
    addr: BUFFERS,
    len: 64,
};

#[test]
fn without_event_idx_flags_decide() {
    let rig = Rig::new(8);
    let mut device = rig.device();
    rig.desc(0, BUFFERS, 4, 0, 0);
    assert!(!device.publish(), "nothing to tell");
    device.add_used(0, 0);
    assert_eq!(rig.used_idx(), 0, "not before it is published");
    assert!(device.publish());
    assert_eq!(rig.used_idx(), 1);
    rig.set_avail_flags(1);
    device.add_used(0, 0);
    assert!(!device.publish());
    assert_eq!(rig.used_idx(), 2, "published all the same");
    device.disable_notification();
    assert_eq!(rig.used_flags(), 1);
    assert!(!device.enable_notification());
    assert_eq!(rig.used_flags(), 0);
    rig.make_available(0, &[0]);
    assert!(device.enable_notification(), "work came meanwhile");
}

#[test]
fn with_event_idx_the_event_decides() {
    let mut rig = Rig::new(8);
    rig.config.event_idx = true;
    let mut device = rig.device();
    let mut publish = |n: u16, event: u16| {
        rig.set_used_event(event);
        for _ in 0..n {
            device.add_used(0, 0);
        }
        device.publish()
    };
    assert!(
        publish(1, 1000),
        "the first time always: the event may be an earlier life's"
    );
    assert!(!publish(1, 2), "1 to 2: doesn't pass 2");
    assert!(publish(1, 2), "2 to 3: passes 2");
    assert!(publish(5, 7), "3 to 8: passes 7");
    assert!(!publish(5, 20), "8 to 13");
    assert!(publish(3, 13), "13 to 16");
    rig.set_avail_flags(1);
    assert!(publish(1, 16), "flags don't count");
    device.disable_notification();
    assert_eq!(rig.used_flags(), 0, "flags stay 0 under EVENT_IDX");
    rig.set_avail_idx(5);
    let mut burst = Burst::new();
    rig.desc(0, BUFFERS, 4, 0, 0);
    assert_eq!(device.pop_burst(&mut burst, 3), Ok(3));
    assert_eq!(device.pending(), 2);
    assert!(device.enable_notification());
    assert_eq!(rig.avail_event(), 3);
}

#[test]
fn the_driver_end_kicks_when_asked_to() {
    let mut rig = Rig::new(8);
    for event_idx in [false, true] {
        rig.config.event_idx = event_idx;
        let (mut device, mut driver) = (rig.device(), rig.driver());
        let mut burst = Burst::new();
        driver.push(&[BUFFER], &[], 0).expect("room");
        assert!(driver.publish());
        assert!(!driver.publish(), "once");
        device.disable_notification();
        assert_eq!(device.pop_burst(&mut burst, 8), Ok(1));
        driver.push(&[BUFFER], &[], 0).expect("room");
        assert!(!driver.publish(), "event_idx {event_idx}");
        assert!(device.enable_notification());
        assert_eq!(device.pop_burst(&mut burst, 8), Ok(1));
        assert!(!device.enable_notification());
        driver.push(&[BUFFER], &[], 0).expect("room");
        assert!(driver.publish());
        // And the other way.
        driver.disable_interrupts();
        device.add_used(burst.get(0).expect("one").head, 0);
        let told = device.publish();
        assert_eq!(told, event_idx, "the first time is always told under EVENT_IDX");
        assert!(driver.enable_interrupts(), "one came meanwhile");
        driver.disable_interrupts();
        assert!(driver.pop_used().expect("sane").is_some());
        device.add_used(0, 0);
        assert!(!device.publish());
    }
}

#[test]
fn positions_wrap() {
    let mut rig = Rig::new(8);
    rig.config.event_idx = true;
    rig.config.next_avail = 65_530;
    rig.config.used_idx = 65_530;
    let (mut device, mut driver) = (rig.device(), rig.driver());
    let mut burst = Burst::new();
    for round in 0..40_000_u64 {
        driver.push(&[], &[BUFFER], round).expect("room");
        driver.publish();
        assert_eq!(device.pop_burst(&mut burst, 64), Ok(1));
        device.add_used(burst.get(0).expect("one").head, 7);
        assert!(device.publish(), "the driver waits for every one");
        assert_eq!(driver.pop_used(), Ok(Some((round, 7))));
    }
    assert_eq!(device.next_avail(), 65_530_u16.wrapping_add(40_000));
    assert_eq!(device.used_idx(), device.next_avail());
}

#[test]
fn what_is_put_back_is_popped_again() {
    let rig = Rig::new(8);
    let (mut device, mut driver) = (rig.device(), rig.driver());
    for token in 0..6 {
        driver.push(&[], &[BUFFER], token).expect("room");
    }
    driver.publish();
    let mut burst = Burst::with_capacity(4);
    assert_eq!(
        device.pop_burst(&mut burst, 64),
        Ok(4),
        "no more than the burst holds"
    );
    let heads: Vec<u16> = burst.chains().map(|c| c.head).collect();
    device.unpop(3);
    assert_eq!(device.next_avail(), 1);
    assert_eq!(device.pending(), 5);
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(4));
    let again: Vec<u16> = burst.chains().map(|c| c.head).collect();
    assert_eq!(again[..3], heads[1..]);
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(1));
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(0));
}

#[test]
fn a_queue_goes_on_where_another_stopped() {
    let rig = Rig::new(8);
    let (mut device, mut driver) = (rig.device(), rig.driver());
    let mut burst = Burst::new();
    for token in 0..5 {
        driver.push(&[], &[BUFFER], token).expect("room");
    }
    driver.publish();
    assert_eq!(device.pop_burst(&mut burst, 3), Ok(3));
    for chain in burst.chains().take(2) {
        device.add_used(chain.head, 1);
    }
    device.publish();
    // A back-end that dies here has used two; one popped chain is lost unless the next one starts at the used index.
    let mut config = rig.config;
    config.next_avail = rig.used_idx();
    config.used_idx = rig.used_idx();
    drop(device);
    let mut device =
        virtio::split::device::DeviceQueue::new(Arc::clone(&rig.mem), &config).expect("a device end");
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(3));
    for chain in burst.chains() {
        device.add_used(chain.head, 2);
    }
    assert!(device.publish());
    let mut tokens = Vec::new();
    while let Some((token, _)) = driver.pop_used().expect("sane") {
        tokens.push(token);
    }
    assert_eq!(tokens, [0, 1, 2, 3, 4]);
}

#[test]
fn memory_can_change_under_a_queue() {
    let rig = Rig::new(8);
    let (mut device, mut driver) = (rig.device(), rig.driver());
    let mut burst = Burst::new();
    driver.push(&[BUFFER], &[], 1).expect("room");
    driver.publish();
    // Fewer regions, the rings' one among them.
    let less = Arc::new(MemoryMap::new(vec![Arc::clone(rig.shared[0].region())]).expect("a map"));
    device
        .set_memory(Arc::clone(&less))
        .expect("the rings are still there");
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(1));
    assert!(burst.get(0).is_some_and(|c| c.error().is_none()));
    let none = Arc::new(MemoryMap::new(vec![Arc::clone(rig.shared[1].region())]).expect("a map"));
    assert!(device.set_memory(none).is_err());
    assert_eq!(
        device.pop_burst(&mut burst, 64),
        Ok(0),
        "the old map still serves"
    );
    let held = Arc::strong_count(&less);
    burst.release();
    assert_eq!(
        Arc::strong_count(&less),
        held - 1,
        "a released burst holds no memory"
    );
}

#[test]
fn a_device_that_lies_is_found_out() {
    let rig = Rig::new(8);
    let mut driver = rig.driver();
    driver.push(&[], &[BUFFER], 1).expect("room");
    driver.publish();
    rig.write(rig.config.used + 2, &2_u16.to_le_bytes());
    let error = RingError::UsedIndex {
        used: 2,
        next: 0,
        in_flight: 1,
    };
    assert_eq!(driver.pop_used(), Err(error));
    rig.write(rig.config.used + 2, &1_u16.to_le_bytes());
    for id in [1_u32, 8, u32::MAX] {
        rig.write(rig.config.used + 4, &id.to_le_bytes());
        assert_eq!(driver.pop_used(), Err(RingError::UsedId { id }));
    }
    rig.write(rig.config.used + 4, &0_u32.to_le_bytes());
    rig.write(rig.config.used + 8, &u32::MAX.to_le_bytes());
    assert_eq!(
        driver.pop_used(),
        Ok(Some((1, 64))),
        "no more than there was room for"
    );
    assert_eq!(driver.pop_used(), Ok(None));
}
