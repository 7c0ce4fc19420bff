//! `VIRTIO_F_RING_RESET`: a driver takes single queues back from a device that runs.

use std::sync::{Arc, Mutex};

use super::{DRIVER_OK, FakeDevice, Guest, NEEDS_RESET, NO_VECTOR, Seen, VERSION_1};
use crate::pci::Function;

const RING_RESET: u64 = 1 << 40;
const SIZE: u64 = 24;
const VECTOR: u64 = 26;
const ENABLE: u64 = 28;
const RESET: u64 = 58;

fn running(features: u64) -> (Guest, Arc<Mutex<Seen>>) {
    let (device, seen) = FakeDevice::boxed(&[256, 64], RING_RESET);
    let guest = Guest::new(device);
    assert!(guest.negotiate(VERSION_1 | features));
    guest.set_up_queue(0, 128, 0x1_0000);
    guest.set_up_queue(1, 64, 0x2_0000);
    guest.driver_ok();
    (guest, seen)
}

/// The queues that the device has, and their sizes.
fn queues(seen: &Mutex<Seen>) -> Vec<(u16, u16)> {
    let seen = seen.lock().unwrap();
    let queues = &seen.active.as_ref().unwrap().queues;
    queues.iter().map(|queue| (queue.index, queue.size)).collect()
}

fn reset(guest: &Guest, index: u16) {
    guest.write16(22, index);
    guest.write16(RESET, 1);
    assert_eq!(
        (guest.read16(RESET), guest.read16(ENABLE)),
        (0, 0),
        "done when the write returns"
    );
}

#[test]
fn a_queue_is_taken_back_and_given_again() {
    let (guest, seen) = running(RING_RESET);
    guest.kick(0);
    let kick = seen.lock().unwrap().active.as_ref().unwrap().queues[0]
        .kick
        .try_clone()
        .unwrap();
    reset(&guest, 0);
    assert_eq!(queues(&seen), [(1, 64)], "the other one stays");
    assert!(kick.read().is_err(), "no old notification");
    assert_eq!(
        (guest.read16(SIZE), guest.read16(VECTOR)),
        (256, NO_VECTOR),
        "as after a reset of the device"
    );
    assert_eq!(guest.read::<24>(32), [0; 24]);
    let again = guest.set_up_queue(0, 32, 0x3_0000);
    assert_eq!(guest.read16(ENABLE), 1);
    assert_eq!(queues(&seen), [(1, 64), (0, 32)]);
    {
        let seen = seen.lock().unwrap();
        let queue = &seen.active.as_ref().unwrap().queues[1];
        assert_eq!(
            (queue.desc, queue.avail, queue.used),
            (again.desc, again.avail, again.used)
        );
        guest.kick(0);
        assert_eq!(queue.kick.read().unwrap(), 1);
        queue.irq.notify();
    }
    guest.write16(SIZE, 16);
    assert_eq!(guest.read16(SIZE), 32, "frozen again");
    assert_eq!(seen.lock().unwrap().queue_resets, [0]);
}

#[test]
fn only_a_driver_that_negotiated_it_resets_a_queue_and_only_one_that_is_enabled() {
    let (guest, seen) = running(0);
    guest.write16(RESET, 1);
    assert_eq!(guest.read16(ENABLE), 1);
    let (guest, seen_too) = running(RING_RESET);
    for (select, value) in [(0, 0), (0, 2), (2, 1), (0xffff, 1)] {
        guest.write16(22, select);
        guest.write16(RESET, value);
    }
    reset(&guest, 1);
    reset(&guest, 1);
    assert_eq!(seen_too.lock().unwrap().queue_resets, [1], "once");
    assert!(seen.lock().unwrap().queue_resets.is_empty());
}

#[test]
fn a_queue_given_to_a_paused_device_waits_until_it_goes_on() {
    let (guest, seen) = running(RING_RESET);
    guest.function.pause();
    reset(&guest, 0);
    guest.set_up_queue(0, 32, 0x3_0000);
    assert_eq!(queues(&seen), [(1, 64)]);
    reset(&guest, 0);
    guest.set_up_queue(0, 16, 0x3_0000);
    guest.function.resume();
    assert_eq!(queues(&seen), [(1, 64), (0, 16)], "what it was last");
    assert_eq!(
        seen.lock().unwrap().queue_resets,
        [0],
        "the device never had the other one"
    );
}

#[test]
fn a_queue_that_does_not_start_fails_the_device() {
    let (guest, seen) = running(RING_RESET);
    reset(&guest, 0);
    seen.lock().unwrap().refuse_start = true;
    guest.set_up_queue(0, 32, 0x3_0000);
    assert_eq!(
        guest.status() & (NEEDS_RESET | DRIVER_OK),
        NEEDS_RESET | DRIVER_OK
    );
    assert!(seen.lock().unwrap().active.is_none());
}
