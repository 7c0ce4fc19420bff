use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::vfio::testing::{FakeDevice, e1000e, igb, recorded};

fn word(config: &ConfigSpace, at: u16) -> u16 {
    u16::from_le_bytes(config.get(at))
}

/// Offsets and IDs of the capabilities that the guest finds.
fn found(config: &ConfigSpace) -> Vec<(u16, u8)> {
    let mut list = Vec::new();
    let [first] = config.get(CAPABILITIES);
    let mut at = u16::from(first);
    while at != 0 {
        let [id, next] = config.get(at);
        list.push((at, id));
        at = next.into();
        assert!(list.len() < 64, "the list has an end");
    }
    list
}

fn found_extended(config: &ConfigSpace) -> Vec<(u16, u16)> {
    let mut list = Vec::new();
    let mut at = 0x100;
    while at != 0 {
        let header = u32::from_le_bytes(config.get(at));
        if header != 0 {
            list.push((at, word(config, at)));
        }
        at = u16::try_from(header >> 20).unwrap();
        assert!(list.len() < 1024, "the list has an end");
    }
    list
}

/// The offsets of an access that are the device's own.
fn own(registers: &Registers, offset: u16, len: usize) -> Vec<usize> {
    registers.own_parts(offset, len).into_iter().flatten().collect()
}

#[test]
fn an_sr_iov_nic_shows_what_is_its_own_and_hides_what_is_the_hosts() {
    let registers = Registers::read(&igb()).unwrap();
    let config = registers.power_on();
    assert_eq!((word(config, 0), word(config, 2)), (0x8086, 0x10c9));
    assert_eq!(config.get::<4>(8), [1, 0, 0, 2]);
    assert_eq!((word(config, 0x2c), word(config, 0x2e)), (0x1af4, 0x1100));
    assert_eq!(config.get::<1>(INTERRUPT_PIN), [1]);
    assert_eq!(found(config), [(0x40, 1), (0x50, 5), (0x70, 0x11), (0xa0, 0x10)]);
    // ARI and SR-IOV are not for the guest.
    assert_eq!(found_extended(config), [(0x100, 1)]);
    let bars: Vec<_> = config.bars().collect();
    assert_eq!(
        bars,
        [
            (0, BarKind::Memory32, 0x20000),
            (1, BarKind::Memory32, 0x20000),
            (2, BarKind::Ports, 0x20),
            (3, BarKind::Memory64, 0x4000)
        ]
    );
    let msix = MsixLayout {
        control: 0x72,
        count: 10,
        table: (3, 0),
        pending: (3, 0x2000),
    };
    assert_eq!(registers.msix, Some(msix));
    let msi = MsiLayout {
        control: 0x52,
        wide: true,
        maskable: true,
    };
    assert_eq!(registers.msi, Some(msi));
    assert_eq!((registers.reset_byte, registers.pin), (Some(0xa9), Some(1)));
    // An endpoint of the root complex, which has no link.
    assert_eq!(word(config, 0xa2), 0x0092);
    assert!(registers.own_parts(0xac, 8).is_empty());
    assert!(own(&registers, 0xa4, 8).into_iter().eq(0..8));
    // The whole of error reporting up to the next capability is the device's own, and its header is not.
    assert!(own(&registers, 0x100, 0x60).into_iter().eq(4..0x50));
}

#[test]
fn capabilities_keep_their_places_and_order() {
    let registers = Registers::read(&e1000e()).unwrap();
    let config = registers.power_on();
    assert_eq!(found(config), [(0xc8, 1), (0xd0, 5), (0xe0, 0x10), (0xa0, 0x11)]);
    assert_eq!(found_extended(config), [(0x100, 1), (0x140, 3)]);
    assert_eq!(registers.reset_byte, Some(0xe9));
    assert!(
        own(&registers, 0x140, 12).into_iter().eq(4..12),
        "the serial number"
    );
}

#[test]
fn interrupt_kinds_that_the_host_cannot_deliver_are_hidden() {
    let device = FakeDevice {
        irqs: [0, 0, 0],
        ..igb()
    };
    let registers = Registers::read(&device).unwrap();
    assert_eq!(found(registers.power_on()), [(0x40, 1), (0xa0, 0x10)]);
    assert_eq!((registers.msi, registers.msix, registers.pin), (None, None, None));
    assert_eq!(registers.power_on().get::<1>(INTERRUPT_PIN), [0]);
}

#[test]
fn power_states_and_messages_are_ours_and_the_guest_can_change_them_alone() {
    let registers = Registers::read(&igb()).unwrap();
    let mut config = registers.power_on().clone();
    config.write(0x44, &[0xff; 4]);
    assert_eq!(
        config.get::<4>(0x44),
        [0x0b, 0, 0, 0],
        "D3, from which nothing is reset"
    );
    config.write(0x52, &[0xff; 22]);
    let mut expected = [0xff; 22];
    // Enable and multiple message enable; 64 bits and maskable; a message's lowest bits; the word after the data.
    (expected[0], expected[1], expected[2]) = (0xf1, 0x01, 0xfc);
    expected[12] = 0;
    expected[13] = 0;
    // Pending bits and what is behind the capability.
    expected[18..].fill(0);
    assert_eq!(config.get::<22>(0x52), expected);
    config.write(0x72, &[0xff; 10]);
    assert_eq!(config.get::<10>(0x72), [9, 0xc0, 3, 0, 0, 0, 3, 0x20, 0, 0]);
}

#[test]
fn roms_and_small_bars_take_whole_pages() {
    let mut device = igb();
    device.regions = [0x80, 0, 0, 0, 0, 0, 0x1800];
    let registers = Registers::read(&device).unwrap();
    let bars: Vec<_> = registers.power_on().bars().collect();
    assert_eq!(
        bars,
        [(0, BarKind::Memory32, 0x1000), (ROM, BarKind::Rom, 0x2000)]
    );
}

#[test]
fn what_is_no_device_is_refused() {
    let device = |config: Vec<u8>| FakeDevice {
        config: Mutex::new(config),
        ..igb()
    };
    let gone = Registers::read(&device(vec![0xff; 4096])).unwrap_err();
    assert!(gone.contains("does not answer"), "{gone}");
    let bridge = recorded(&[(0, "361b0c00"), (0x0e, "01")]);
    let bridge = Registers::read(&device(bridge)).unwrap_err();
    assert!(bridge.contains("bridge"), "{bridge}");
    Registers::read(&device(vec![0; 64])).unwrap_err();
}

#[test]
fn the_status_register_is_the_devices_but_for_the_list() {
    let registers = Registers::read(&igb()).unwrap();
    let mut data = [0, 0, 0x08, 0x20];
    registers.fix_status(4, &mut data);
    assert_eq!(data, [0, 0, 0x18, 0x20]);
    let mut high = [0x20];
    registers.fix_status(7, &mut high);
    assert_eq!(high, [0x20]);
    assert_eq!(own(&registers, 0, 64), [6, 7]);
}

#[test]
fn lists_that_loop_end() {
    let config = recorded(&[
        (0, "86800100"),
        (0x34, "40"),
        (0x40, "0148"),
        (0x48, "0940"),
        (0x100, "01000110"),
    ]);
    let device = FakeDevice {
        config: Mutex::new(config),
        ..igb()
    };
    let registers = Registers::read(&device).unwrap();
    assert_eq!(found(registers.power_on()), [(0x40, 1), (0x48, 9)]);
    assert_eq!(found_extended(registers.power_on()), [(0x100, 1)]);
}

proptest! {
    /// Whatever a device says of itself, the guest sees lists that end, and nothing panics.
    #[test]
    fn hostile_devices_are_survived(
        mut config in proptest::collection::vec(any::<u8>(), 4096),
        regions in proptest::array::uniform7(prop_oneof![Just(0u64), 1u64..0x10_0000, Just(u64::MAX)]),
        chain in proptest::collection::vec((0usize..256, any::<u8>(), prop_oneof![Just(1u8), Just(5), Just(9), Just(0x10), Just(0x11)]), 0..24),
    ) {
        config[0x0e] &= 0x80;
        for (at, next, id) in chain {
            config[at / 4 * 4] = id;
            config[at / 4 * 4 + 1] = next;
        }
        config[0x0e] &= 0x80;
        let device = FakeDevice { config: Mutex::new(config), regions, ..igb() };
        if let Ok(registers) = Registers::read(&device) {
            let mut config = registers.power_on().clone();
            found(&config);
            found_extended(&config);
            for at in 0..4096 {
                config.write(at, &[0xff; 4]);
                registers.own_parts(at, 8);
            }
            found(&config);
        }
    }
}
