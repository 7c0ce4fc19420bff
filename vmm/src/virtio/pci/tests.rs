use std::sync::{Arc, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;

use super::BAR_SIZE;
use crate::pci::Function;
use crate::pci::testing::Call;
use crate::virtio::device::ConfigIrq;
use crate::virtio::testing::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FakeDevice, Guest, NEEDS_RESET, NO_VECTOR, Seen, VERSION_1,
};

const OFFERED: u64 = 1 << 28 | 1 << 40 | 1;

fn guest() -> (Guest, Arc<Mutex<Seen>>) {
    let (device, seen) = FakeDevice::boxed(&[256, 64], OFFERED);
    (Guest::new(device), seen)
}

/// A guest whose device runs, with both queues enabled.
fn running() -> (Guest, Arc<Mutex<Seen>>) {
    let (guest, seen) = guest();
    assert!(guest.negotiate(VERSION_1));
    guest.set_up_queue(0, 128, 0x1_0000);
    guest.set_up_queue(1, 64, 0x2_0000);
    assert_eq!(guest.driver_ok(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    (guest, seen)
}

#[test]
fn a_function_that_is_no_bus_master_starts_no_device() {
    let (mut guest, seen) = guest();
    guest.set_bus_master(false);
    assert!(guest.negotiate(VERSION_1));
    guest.set_up_queue(0, 128, 0x1_0000);
    assert_eq!(guest.driver_ok() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
    assert!(seen.lock().unwrap().active.is_none());
    // Held at the same time: both have to let it go.
    guest.function.pause();
    guest.set_bus_master(true);
    assert!(seen.lock().unwrap().active.is_none());
    guest.function.resume();
    assert!(seen.lock().unwrap().active.is_some());
    guest.function.pause();
    guest.set_bus_master(false);
    guest.function.resume();
    assert!(seen.lock().unwrap().paused);
    guest.set_bus_master(true);
    assert!(!seen.lock().unwrap().paused);
    guest.function.reset();
    assert!(guest.negotiate(VERSION_1));
    guest.driver_ok();
    assert!(
        seen.lock().unwrap().active.is_none(),
        "after power-on it is no bus master"
    );
}

/// Offsets of the capabilities with this vendor type.
fn capability(guest: &Guest, kind: u8) -> u16 {
    let [mut at] = guest.config.get::<1>(0x34);
    while at != 0 {
        let [id, next, _len, this] = guest.config.get(u16::from(at));
        if id == 9 && this == kind {
            return u16::from(at);
        }
        at = next;
    }
    panic!("no capability of type {kind}");
}

#[test]
fn configuration_space_leads_to_every_part() {
    let (guest, _) = guest();
    assert_eq!(guest.config.get(0), [0xf4, 0x1a, 0x41, 0x10]);
    assert_eq!(guest.config.get(8), [1, 0, 0, 2]);
    for (kind, len, offset) in [
        (1, 16, 0u32),
        (2, 20, 0x3000),
        (3, 16, 0x1000),
        (4, 16, 0x2000),
        (5, 20, 0),
    ] {
        let at = capability(&guest, kind);
        let [_, _, whole, this, bar] = guest.config.get(at);
        assert_eq!((whole, this, bar), (len, kind, 0));
        assert_eq!(guest.config.get(at + 8), offset.to_le_bytes());
    }
    assert_eq!(guest.config.get(capability(&guest, 2) + 16), 4u32.to_le_bytes());
    let [length] = guest.config.get::<1>(capability(&guest, 1) + 12);
    assert_eq!(length, 60);
}

#[test]
fn features_are_offered_in_windows() {
    let (guest, _) = guest();
    assert_eq!(guest.offered(), OFFERED | VERSION_1);
    guest.write32(0, 2);
    assert_eq!(guest.read32(4), 0, "there is no third window");
    guest.write32(8, 2);
    guest.write32(12, u32::MAX);
    assert_eq!(guest.read32(12), 0);
}

#[test]
fn only_sensible_features_are_accepted() {
    let (guest, seen) = guest();
    assert!(!guest.negotiate(OFFERED), "without VERSION_1");
    assert!(!guest.negotiate(VERSION_1 | 1 << 5), "not offered");
    assert!(
        seen.lock().unwrap().acked.is_empty(),
        "the device is not even asked"
    );
    seen.lock().unwrap().refuse_features = true;
    assert!(!guest.negotiate(VERSION_1 | 1), "the device refuses");
    assert_eq!(guest.driver_ok() & DRIVER_OK, 0, "and does not start without");
    seen.lock().unwrap().refuse_features = false;
    assert!(guest.negotiate(VERSION_1 | 1));
    guest.write32(8, 0);
    guest.write32(12, 0);
    assert_eq!(guest.read32(12), 1, "frozen by FEATURES_OK");
    assert!(
        guest.negotiate(VERSION_1 | 1),
        "the same set again, after a reset"
    );
}

#[test]
fn status_follows_the_rules() {
    let (guest, seen) = guest();
    assert_eq!(
        guest.set_status(FEATURES_OK | DRIVER_OK),
        0,
        "not before ACKNOWLEDGE and DRIVER"
    );
    assert_eq!(guest.set_status(NEEDS_RESET), 0, "not the driver's to set");
    assert!(guest.negotiate(VERSION_1));
    assert_eq!(
        guest.set_status(ACKNOWLEDGE),
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        "bits only come"
    );
    assert_eq!(guest.set_status(128), 128 | ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(guest.driver_ok() & DRIVER_OK, 0, "not after FAILED");
    assert!(seen.lock().unwrap().active.is_none());
}

#[test]
fn a_running_device_has_what_the_driver_set_up() {
    let (guest, seen) = running();
    let seen = seen.lock().unwrap();
    let active = seen.active.as_ref().unwrap();
    assert_eq!(active.features, VERSION_1);
    let queue = &active.queues[0];
    assert_eq!((queue.index, queue.size, queue.desc), (0, 128, 0x1_0000));
    assert_eq!((queue.avail, queue.used), (0x1_0800, 0x1_0908));
    assert_eq!(active.queues[1].size, 64);
    guest.kick(1);
    assert_eq!(active.queues[1].kick.read().unwrap(), 1);
    assert!(
        active.queues[0].kick.read().is_err(),
        "the other queue was not notified"
    );
    guest.write16(0x3000 + 8, 0);
    guest.write(0x3001, &[0]);
}

#[test]
fn queues_that_are_not_enabled_are_left_out() {
    let (guest, seen) = guest();
    assert!(guest.negotiate(VERSION_1));
    guest.set_up_queue(1, 64, 0x2_0000);
    guest.driver_ok();
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen.active
            .as_ref()
            .unwrap()
            .queues
            .iter()
            .map(|q| q.index)
            .collect::<Vec<_>>(),
        [1]
    );
}

#[test]
fn a_queue_is_frozen_once_enabled() {
    let (guest, _) = guest();
    assert!(guest.negotiate(VERSION_1));
    guest.set_up_queue(0, 128, 0x1_0000);
    let before = guest.read::<24>(32);
    guest.write16(24, 256);
    guest.write(32, &[0xff; 24]);
    guest.write16(28, 0);
    assert_eq!((guest.read16(24), guest.read16(28)), (128, 1));
    assert_eq!(guest.read::<24>(32), before);
    guest.write16(22, 1);
    guest.driver_ok();
    guest.write16(24, 32);
    guest.write(32, &[0x10; 24]);
    guest.write16(28, 1);
    assert_eq!(
        (guest.read16(24), guest.read16(28)),
        (64, 0),
        "nor does another one start with DRIVER_OK set"
    );
}

#[test]
fn sizes_and_addresses_are_checked() {
    let (guest, _) = guest();
    assert!(guest.negotiate(VERSION_1));
    for size in [0, 3, 100, 512, 0x8000, 0xffff] {
        guest.write16(24, size);
        assert_eq!(guest.read16(24), 256, "{size}");
    }
    let end = 4 << 20;
    for (desc, avail, used) in [
        (0x1_0008, 0x2_0000, 0x3_0000),
        (0x1_0000, 0x2_0001, 0x3_0000),
        (0x1_0000, 0x2_0000, 0x3_0002),
        (end, 0x2_0000, 0x3_0000),
        (end - 0x800, 0x2_0000, 0x3_0000),
        (0x1_0000, end - 2, 0x3_0000),
        (0x1_0000, 0x2_0000, u64::MAX - 3),
    ] {
        for (offset, value) in [(32, desc), (40, avail), (48, used)] {
            guest.write(offset, &u64::to_le_bytes(value));
        }
        guest.write16(28, 1);
        assert_eq!(guest.read16(28), 0, "{desc:#x} {avail:#x} {used:#x}");
    }
    guest.write16(28, 2);
    assert_eq!(guest.read16(28), 0);
}

#[test]
fn a_queue_that_does_not_exist_is_harmless() {
    let (guest, _) = running();
    for select in [2, 0x8000, 0xffff] {
        guest.write16(22, select);
        guest.write(24, &[1, 0, 0, 0, 1, 0]);
        guest.write(32, &[0xee; 24]);
        assert_eq!(
            (
                guest.read16(24),
                guest.read16(26),
                guest.read16(28),
                guest.read16(30)
            ),
            (0, NO_VECTOR, 0, 0)
        );
        assert_eq!(guest.read::<24>(32), [0; 24]);
    }
}

#[test]
fn vectors_map_or_read_back_as_none() {
    let (guest, seen) = running();
    assert_eq!(guest.read16(26), 1, "the queue selected last");
    for bogus in [3, 0x7ff, NO_VECTOR] {
        guest.write16(26, bogus);
        assert_eq!(guest.read16(26), NO_VECTOR);
        guest.write16(16, bogus);
        assert_eq!(guest.read16(16), NO_VECTOR);
    }
    assert_eq!(
        seen.lock().unwrap().irq_changes,
        [1],
        "the device hears of it once"
    );
    seen.lock().unwrap().active.as_ref().unwrap().queues[1]
        .irq
        .notify();
    guest.write16(26, 2);
    let irq = seen.lock().unwrap().active.as_ref().unwrap().queues[1]
        .irq
        .clone();
    irq.as_irqfd().unwrap().write(1).unwrap();
    assert_eq!(guest.read::<1>(0x5000), [0b100], "pending on vector 2");
    irq.notify();
    assert_eq!(seen.lock().unwrap().irq_changes, [1, 1]);
}

#[test]
fn configuration_changes_are_announced() {
    let (guest, seen) = running();
    guest.write16(16, 0);
    let irq = seen.lock().unwrap().active.as_ref().unwrap().config_irq.clone();
    let [before] = guest.read(21);
    seen.lock().unwrap().config[3] = 9;
    irq.notify();
    assert_ne!(guest.read(21), [before]);
    assert_eq!(guest.read::<1>(0x5000), [1]);
    assert_eq!(guest.read(0x1000), [2], "ISR");
    assert_eq!(guest.read(0x1000), [0], "cleared by reading");
    assert_eq!(guest.read::<6>(0x2002), [0, 9, 0, 0, 0, 0]);
    guest.write(0x2006, &[1, 2, 3]);
    assert_eq!(seen.lock().unwrap().config, [0, 0, 0, 9, 0, 0, 1, 2]);
}

#[test]
fn a_failed_device_asks_for_a_reset() {
    let (guest, seen) = guest();
    seen.lock().unwrap().refuse_start = true;
    assert!(guest.negotiate(VERSION_1));
    guest.write16(16, 0);
    assert_eq!(
        guest.driver_ok() & (NEEDS_RESET | DRIVER_OK),
        NEEDS_RESET | DRIVER_OK
    );
    assert_eq!(guest.read::<1>(0x5000), [1], "and says so");
    seen.lock().unwrap().refuse_start = false;
    assert!(guest.negotiate(VERSION_1));
    assert_eq!(guest.driver_ok() & (NEEDS_RESET | DRIVER_OK), DRIVER_OK);
    let irq: ConfigIrq = seen.lock().unwrap().active.as_ref().unwrap().config_irq.clone();
    irq.needs_reset();
    assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn reset_forgets_everything() {
    let (guest, seen) = running();
    guest.write16(16, 2);
    guest.kick(0);
    guest.write32(0, 1);
    guest.write16(22, 0);
    let kick = seen.lock().unwrap().active.as_ref().unwrap().queues[0]
        .kick
        .try_clone()
        .unwrap();
    assert_eq!(guest.set_status(0), 0);
    assert!(seen.lock().unwrap().active.is_none());
    assert!(kick.read().is_err(), "no old notification");
    assert_eq!((guest.read32(0), guest.read16(16)), (0, NO_VECTOR));
    assert_eq!(
        (guest.read16(24), guest.read16(26), guest.read16(28)),
        (256, NO_VECTOR, 0)
    );
    assert_eq!(guest.read::<24>(32), [0; 24]);
    guest.function.reset();
    assert!(
        guest.platform.take().contains(&Call::Reset(2)),
        "a reset of the machine takes the vectors, too"
    );
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let (mut guest, seen) = guest();
    let at = capability(&guest, 5);
    let aim = |guest: &mut Guest, bar: u8, offset: u32, len: u32| {
        guest.function.write_config(&mut guest.config, at + 4, &[bar]);
        guest
            .function
            .write_config(&mut guest.config, at + 8, &offset.to_le_bytes());
        guest
            .function
            .write_config(&mut guest.config, at + 12, &len.to_le_bytes());
    };
    aim(&mut guest, 0, 20, 1);
    guest
        .function
        .write_config(&mut guest.config, at + 16, &[ACKNOWLEDGE]);
    assert_eq!(guest.status(), ACKNOWLEDGE);
    let mut data = [0; 4];
    guest
        .function
        .read_config(&mut guest.config, at + 16, &mut data[..1]);
    assert_eq!(data[0], ACKNOWLEDGE);

    seen.lock().unwrap().config = *b"abcdefgh";
    aim(&mut guest, 0, 0x2004, 4);
    guest.function.read_config(&mut guest.config, at + 16, &mut data);
    assert_eq!(&data, b"efgh");

    let size = u32::try_from(BAR_SIZE).unwrap();
    for (bar, offset, len) in [
        (0, size, 4),
        (0, size - 2, 4),
        (0, u32::MAX, 1),
        (0, 0x2001, 2),
        (0, 0x2000, 3),
        (0, 0x2000, 0),
        (0, 0x2000, u32::MAX),
        (1, 0x2000, 4),
        (255, 0x2000, 4),
    ] {
        aim(&mut guest, bar, offset, len);
        guest
            .function
            .write_config(&mut guest.config, at + 16, &[0xee; 4]);
        guest.function.read_config(&mut guest.config, at + 16, &mut data);
    }
    assert_eq!(&seen.lock().unwrap().config, b"abcdefgh");
    assert_eq!(guest.status(), ACKNOWLEDGE);
}

#[test]
fn notification_addresses_follow_the_bar() {
    let (guest, _) = guest();
    guest.function.map_bar(0, 0xc000_0000).unwrap();
    assert_eq!(
        guest.platform.take(),
        [Call::Ioeventfd(0xc000_3000), Call::Ioeventfd(0xc000_3004)]
    );
    guest.function.unmap_bar(0, 0xc000_0000);
    assert_eq!(
        guest.platform.take(),
        [Call::NoIoeventfd(0xc000_3000), Call::NoIoeventfd(0xc000_3004)]
    );
    guest.platform.refused.lock().unwrap().push(0xd000_3004);
    guest.function.map_bar(0, 0xd000_0000).unwrap_err();
    assert_eq!(
        guest.platform.take(),
        [Call::Ioeventfd(0xd000_3000), Call::NoIoeventfd(0xd000_3000)]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A driver without any manners never gets a running queue changed, nor anything that was not offered.
    #[test]
    fn hostile_register_writes_are_survived(
        accesses in vec((0u64..64, vec(any::<u8>(), 1..=8)), 1..200),
        wild in vec((0..BAR_SIZE + 0x100, vec(any::<u8>(), 1..=8)), 0..50),
    ) {
        let (guest, seen) = guest();
        guest.negotiate(VERSION_1);
        guest.set_up_queue(0, 64, 0x1_0000);
        for (offset, data) in accesses.into_iter().chain(wild) {
            guest.write(offset, &data);
            let mut back = vec![0; data.len()];
            guest.function.read_bar(0, offset, &mut back);
            let seen = seen.lock().unwrap();
            if let Some(active) = &seen.active {
                prop_assert_eq!(active.features & !(OFFERED | VERSION_1), 0);
                for queue in &active.queues {
                    prop_assert!(queue.size.is_power_of_two() && queue.size <= 256);
                    prop_assert!(queue.desc + 16 * u64::from(queue.size) <= 4 << 20);
                }
            }
        }
    }
}

mod on_kvm;
mod ring_reset;
