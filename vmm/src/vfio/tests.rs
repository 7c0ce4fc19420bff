use std::sync::Arc;

use super::VfioFunction;
use super::testing::{Asked, FakeDevice, igb};
use crate::bus::Bus;
use crate::pci::root::number;
use crate::pci::testing::{Call, FakePlatform};
use crate::pci::{Function, Root, Windows};

const BASE: u64 = 0xc000_0000;

struct Rig {
    device: Arc<FakeDevice>,
    platform: Arc<FakePlatform>,
    mmio: Arc<Bus>,
    root: Arc<Root>,
    pio: Arc<Bus>,
    number: usize,
}

impl Rig {
    fn new(device: FakeDevice) -> Self {
        let (device, platform) = (Arc::new(device), Arc::new(FakePlatform::default()));
        let mmio = Arc::new(Bus::new());
        let windows = Windows {
            mmio32: BASE..BASE + 0x2000_0000,
            mmio64: 0x40_0000_0000..0x50_0000_0000,
            ports: 0x1000..0x2000,
        };
        let pio = Arc::new(Bus::new());
        let root = Root::new(Arc::clone(&mmio), Arc::clone(&pio), windows);
        let function = VfioFunction::new(Arc::clone(&device) as _, Arc::clone(&platform) as _).unwrap();
        let slot = root
            .add_hot_plug(vec![(0, Arc::new(function) as Arc<dyn Function>)], &[])
            .unwrap();
        Self {
            device,
            platform,
            mmio,
            pio,
            root,
            number: number(slot, 0),
        }
    }

    fn read(&self, at: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.root.read_config(self.number, at, &mut data);
        data
    }

    fn write(&self, at: u16, data: &[u8]) -> Vec<Asked> {
        self.root.write_config(self.number, at, data);
        self.device.take()
    }
}

/// The command register is written with ports on; the host has the device report errors.
fn command(value: u8) -> Asked {
    Asked::Write(7, 4, vec![value | 1, 1])
}

#[test]
fn bars_are_mapped_into_the_guest_but_for_the_msix_pages() {
    let rig = Rig::new(igb());
    assert_eq!(rig.number, number(16, 0));
    let maps: Vec<_> = rig
        .platform
        .take()
        .into_iter()
        .filter(|call| matches!(call, Call::Map(..)))
        .collect();
    // BAR 3 has its table in the first page and the pending bits in the third.
    let bar3 = BASE + 0x4_0000;
    assert_eq!(
        maps,
        [
            Call::Map(BASE, 0x20000),
            Call::Map(BASE + 0x2_0000, 0x20000),
            Call::Map(bar3 + 0x1000, 0x1000),
            Call::Map(bar3 + 0x3000, 0x1000)
        ]
    );
    // Table and pending bits are ours; what shares a page with them is the device's.
    rig.device.take();
    let mut data = [0; 4];
    rig.mmio.read(bar3 + 12, &mut data);
    assert_eq!(data, [1, 0, 0, 0], "masked");
    rig.mmio.write(bar3, &[0x10, 0, 0, 0]);
    rig.mmio.read(bar3, &mut data);
    assert_eq!((data, rig.device.take()), ([0x10, 0, 0, 0], vec![]));
    rig.mmio.read(bar3 + 0x2000, &mut data);
    assert_eq!(data, [0; 4], "nothing is pending");
    rig.mmio.write(bar3 + 0x2000, &[1; 4]);
    assert_eq!(rig.device.take(), []);
    // The last bytes of the table, and those behind it.
    rig.mmio.write(bar3 + 0x9c, &[0, 0, 0, 0, 7, 8, 9, 10]);
    assert_eq!(rig.device.take(), [Asked::Write(3, 0xa0, vec![7, 8, 9, 10])]);
    rig.mmio.read(bar3 + 0xa0, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn ports_are_passed_on() {
    let rig = Rig::new(igb());
    assert_eq!(rig.read(0x18, 4), [1, 0x10, 0, 0]);
    rig.device.take();
    rig.pio.write(0x1004, &[1, 2, 3, 4]);
    assert_eq!(rig.device.take(), [Asked::Write(2, 4, vec![1, 2, 3, 4])]);
    let mut data = [0; 4];
    assert!(rig.pio.read(0x101c, &mut data) && data == [0xff; 4]);
    assert!(!rig.pio.read(0x1020, &mut data));
    // The guest's bit has ours answer or not, and the device's stays on.
    assert_eq!(rig.write(4, &[2]), [command(3)]);
    assert!(!rig.pio.read(0x1004, &mut data));
}

#[test]
fn a_bar_that_moves_takes_its_memory_along() {
    let rig = Rig::new(igb());
    rig.platform.take();
    rig.write(0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!(
        rig.platform.take(),
        [Call::Unmap(BASE), Call::Map(0xd000_0000, 0x20000)]
    );
    // Finding out the size moves nothing.
    rig.write(0x10, &[0xff; 4]);
    assert_eq!(rig.read(0x10, 4), 0xfffe_0000u32.to_le_bytes());
    assert_eq!(rig.platform.take(), []);
    rig.write(0x10, &0xd000_0000u32.to_le_bytes());
    rig.write(4, &[0, 4]);
    let calls = rig.platform.take();
    assert!(calls.contains(&Call::Unmap(0xd000_0000)), "{calls:?}");
}

#[test]
fn the_guests_bus_master_bit_reaches_the_device_and_memory_decoding_stays_on() {
    let rig = Rig::new(igb());
    rig.device.take();
    assert!(
        rig.write(4, &[0x06, 0x04])
            .contains(&Asked::Write(7, 4, vec![0x07, 0x05]))
    );
    assert_eq!(rig.write(4, &[0]), [Asked::Write(7, 4, vec![0x03, 0x05])]);
    assert_eq!(rig.read(4, 2), [0, 4], "the guest reads its own");
    // The upper half alone, and across the register's border.
    assert!(rig.write(5, &[0]).contains(&command(2)));
}

#[test]
fn a_pause_leaves_the_device_alone() {
    let rig = Rig::new(igb());
    rig.write(4, &[0x06, 0x04]);
    rig.root.pause();
    rig.root.resume();
    assert_eq!(rig.device.take(), []);
}

#[test]
fn registers_of_any_width_go_to_their_owners_byte_by_byte() {
    let rig = Rig::new(igb());
    rig.device.take();
    // The last byte of the capability's flags is ours, the device capabilities are not, nor is device control.
    assert_eq!(
        rig.write(0xa3, &[1, 2, 3, 4, 5, 6]),
        [Asked::Write(7, 0xa4, vec![2, 3, 4, 5, 0])]
    );
    assert_eq!(rig.read(0xa2, 3), [0x92, 0, 2]);
    assert_eq!(rig.read(0xfff, 1), [0]);
    assert_eq!(
        rig.read(0x100, 4),
        [1, 0, 1, 0],
        "error reporting is the last of its list"
    );
}

#[test]
fn what_a_device_reports_is_for_the_host_to_say() {
    let rig = Rig::new(igb());
    rig.device.config.lock().unwrap()[0xa8] = 0x2b;
    rig.device.take();
    // Parity and SERR# in the command register.
    assert_eq!(rig.write(4, &[0x46, 0]), [command(6)]);
    // Device control, whose upper half is the guest's.
    assert_eq!(
        rig.write(0xa8, &[0x14, 0x20]),
        [Asked::Write(7, 0xa8, vec![0x1b, 0x20])]
    );
    // Masks and severities of errors.
    rig.device.config.lock().unwrap()[0x108] = 0x55;
    assert_eq!(rig.write(0x108, &[0xff; 8]), []);
    assert_eq!(rig.read(0x108, 1), [0x55]);
}

#[test]
fn a_reset_by_the_guest_resets_the_function_and_what_is_remembered_of_it() {
    let rig = Rig::new(igb());
    rig.write(4, &[0x06, 0x04]);
    rig.write(0x72, &[9, 0x80]);
    rig.platform.take();
    // Device control, with the bit that resets and another one.
    let asked = rig.write(0xa8, &[0x10, 0x80]);
    assert!(asked.contains(&Asked::Write(7, 0xa8, vec![0x10, 0])), "{asked:?}");
    assert!(asked.contains(&Asked::Reset), "{asked:?}");
    assert_eq!(rig.read(4, 2), [0, 0]);
    assert_eq!(rig.read(0x72, 2), [9, 0]);
    assert_eq!(rig.read(0x10, 4), [0; 4]);
    assert!(rig.platform.take().contains(&Call::Unmap(BASE)));
}

#[test]
fn a_reset_of_the_machine_stops_the_device_first() {
    let rig = Rig::new(igb());
    rig.write(4, &[0x06, 0x04]);
    rig.root.reset();
    let asked = rig.device.take();
    let reset = asked.iter().position(|asked| *asked == Asked::Reset).unwrap();
    assert!(asked[..reset].contains(&command(2)), "{asked:?}");
    assert_eq!(rig.read(4, 1), [3], "BARs are where they were at power-on");
    let removed = rig.root.remove(16);
    assert!(removed.is_ok() && rig.device.take().contains(&Asked::Reset));
    assert_eq!(rig.read(0, 2), [0xff, 0xff]);
}

#[test]
fn a_device_that_was_pulled_out_does_not_answer() {
    let device = Arc::new(igb());
    let platform = Arc::new(FakePlatform::default());
    let function = VfioFunction::new(Arc::clone(&device) as _, platform as _).unwrap();
    assert!(function.answers());
    device.config.lock().unwrap().fill(0xff);
    assert!(!function.answers());
}

#[test]
fn a_slot_that_the_guest_has_not_let_go_is_left_out() {
    let rig = Rig::new(igb());
    rig.root.remove(16).unwrap();
    let another = || {
        let function = VfioFunction::new(Arc::new(igb()) as _, Arc::clone(&rig.platform) as _).unwrap();
        vec![(0, Arc::new(function) as Arc<dyn Function>)]
    };
    assert_eq!(rig.root.add_hot_plug(another(), &[16, 18]).unwrap(), 17);
    assert_eq!(rig.root.add_hot_plug(another(), &[]).unwrap(), 16);
}

#[test]
fn a_rom_answers_when_it_is_switched_on() {
    let mut device = igb();
    device.regions[6] = 0x1000;
    let rig = Rig::new(device);
    let mut data = [0; 4];
    assert_eq!(rig.read(0x30, 4), [0; 4]);
    rig.write(0x30, &[0xfe, 0xff, 0xff, 0xff]);
    assert_eq!(rig.read(0x30, 4), 0xffff_f000u32.to_le_bytes());
    rig.write(0x30, &0xd800_0000u32.to_le_bytes());
    assert!(!rig.mmio.read(0xd800_0000, &mut data), "it is off");
    rig.write(0x30, &0xd800_0001u32.to_le_bytes());
    assert!(rig.mmio.read(0xd800_0000, &mut data));
    rig.write(0x30, &0xd800_0000u32.to_le_bytes());
    assert!(!rig.mmio.read(0xd800_0000, &mut data));
}
