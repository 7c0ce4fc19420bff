use std::sync::{Arc, Mutex};

use super::{PciError, Root, Windows, number};
use crate::bus::Bus;
use crate::hv::HvError;
use crate::pci::config::{BarKind, ConfigSpace, Identity};
use crate::pci::function::Function;

const MMIO32: u64 = 0xc000_0000;
const MMIO64: u64 = 0x40_0000_0000;
const BAR0: u16 = 0x10;

/// A function that writes down what happens to its BARs; it answers a read with the offset's low byte.
#[derive(Debug, Default)]
struct Recorder {
    size: u64,
    events: Mutex<Vec<(&'static str, u64)>>,
    refuse: Mutex<Option<u64>>,
}

impl Recorder {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self {
            size,
            ..Self::default()
        })
    }

    fn take(&self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    fn record(&self, what: &'static str, addr: u64) {
        self.events.lock().unwrap().push((what, addr));
    }
}

fn identity() -> ConfigSpace {
    let identity = Identity {
        vendor: 0x1234,
        device: 1,
        revision: 0,
        class: 0,
        subsystem_vendor: 0,
        subsystem: 0,
    };
    ConfigSpace::new(&identity)
}

impl Function for Recorder {
    fn config_space(&self) -> ConfigSpace {
        let mut config = identity();
        config.add_bar(0, BarKind::Memory64, self.size);
        config
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        assert_eq!(bar, 0);
        data[0] = offset.to_le_bytes()[0];
    }

    fn write_bar(&self, _bar: u8, offset: u64, _data: &[u8]) {
        self.record("write", offset);
    }

    fn map_bar(&self, _bar: u8, addr: u64) -> Result<(), HvError> {
        if *self.refuse.lock().unwrap() == Some(addr) {
            return Err(HvError::Missing("room"));
        }
        self.record("map", addr);
        Ok(())
    }

    fn unmap_bar(&self, _bar: u8, addr: u64) {
        self.record("unmap", addr);
    }

    fn pause(&self) {
        self.record("pause", 0);
    }

    fn resume(&self) {
        self.record("resume", 0);
    }

    fn reset(&self) {
        self.record("reset", 0);
    }
}

fn machine() -> (Arc<Bus>, Arc<Root>) {
    let mmio = Arc::new(Bus::new());
    let windows = Windows {
        mmio32: MMIO32..MMIO32 + 0x20_0000,
        mmio64: MMIO64..MMIO64 + 0x1_0000_0000,
        ports: 0x1000..0x1040,
    };
    let root = Root::new(Arc::clone(&mmio), Arc::default(), windows);
    (mmio, root)
}

fn bar(root: &Root, slot: u8) -> u64 {
    let mut value = [0; 8];
    root.read_config(number(slot, 0), BAR0, &mut value);
    u64::from_le_bytes(value) & !0xf
}

fn answers(mmio: &Bus, addr: u64) -> bool {
    let mut data = [0];
    mmio.read(addr, &mut data) && u64::from(data[0]) == addr & 0xff
}

#[test]
fn functions_get_slots_and_addresses() {
    let (mmio, root) = machine();
    let mut id = [0; 4];
    root.read_config(0, 0, &mut id);
    assert_eq!(id, [0x36, 0x1b, 8, 0], "the host bridge");
    root.read_config(number(1, 0), 0, &mut id);
    assert_eq!(id, [0xff; 4]);
    root.read_config(number(99, 0), 0, &mut id);
    assert_eq!(id, [0xff; 4]);

    assert_eq!(root.add(Recorder::new(0x8000)).unwrap(), 1);
    assert_eq!(root.add(Recorder::new(0x8000)).unwrap(), 2);
    assert_eq!((bar(&root, 1), bar(&root, 2)), (MMIO32, MMIO32 + 0x8000));
    assert!(answers(&mmio, MMIO32 + 0x8001));
    assert_eq!(root.add(Recorder::new(0x20_0000)).unwrap(), 3);
    assert_eq!(bar(&root, 3), MMIO64, "large BARs go above");
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let (mmio, root) = machine();
    let error = root.add(Recorder::new(0x2_0000_0000)).unwrap_err();
    assert!(matches!(error, PciError::NoSpace(0x2_0000_0000)));
    let stubborn = Recorder::new(0x1000);
    *stubborn.refuse.lock().unwrap() = Some(MMIO32);
    assert!(matches!(root.add(stubborn).unwrap_err(), PciError::Hypervisor(_)));
    assert!(!answers(&mmio, MMIO32));
    for slot in 1..32 {
        assert_eq!(root.add(Recorder::new(0x1000)).unwrap(), slot);
    }
    assert!(matches!(
        root.add(Recorder::new(0x1000)).unwrap_err(),
        PciError::NoSlot
    ));
}

#[test]
fn a_bar_moves_and_leaves_nothing_behind() {
    let (mmio, root) = machine();
    let function = Recorder::new(0x1000);
    root.add(Arc::clone(&function) as Arc<dyn Function>).unwrap();
    function.take();
    let to = MMIO64 + 0x5000;
    root.write_config(number(1, 0), BAR0, &to.to_le_bytes());
    assert_eq!(
        function.take(),
        [("unmap", MMIO32), ("map", to)],
        "off the old place before on the new one"
    );
    assert!(answers(&mmio, to + 3) && !answers(&mmio, MMIO32));
    mmio.write(to + 8, &[1]);
    assert_eq!(function.take(), [("write", 8)]);

    // As Linux does it: one half after the other.
    let next = MMIO32 + 0x3000;
    root.write_config(number(1, 0), BAR0, &u32::try_from(next).unwrap().to_le_bytes());
    root.write_config(number(1, 0), BAR0 + 4, &[0; 4]);
    assert_eq!(bar(&root, 1), next);
    assert!(answers(&mmio, next) && !answers(&mmio, to));

    root.write_config(number(1, 0), 4, &[0]);
    assert!(!answers(&mmio, next), "decoding is off");
    root.write_config(number(1, 0), 4, &[2]);
    assert!(answers(&mmio, next));
}

#[test]
fn a_move_that_fails_is_rolled_back() {
    let (mmio, root) = machine();
    let function = Recorder::new(0x1000);
    root.add(Arc::clone(&function) as Arc<dyn Function>).unwrap();
    root.add(Recorder::new(0x1000)).unwrap();
    *function.refuse.lock().unwrap() = Some(MMIO64);
    function.take();
    for (to, why) in [
        (MMIO32 + 0x1000, "taken"),
        (0xfee0_0000, "not in a window"),
        (!0xfff, "a probe"),
        (MMIO64, "the function refuses"),
    ] {
        root.write_config(number(1, 0), BAR0, &to.to_le_bytes());
        assert!(answers(&mmio, MMIO32), "{why}");
        if why != "a probe" {
            assert_eq!(bar(&root, 1), MMIO32, "{why}");
            assert_eq!(function.take(), [("unmap", MMIO32), ("map", MMIO32)], "{why}");
        }
    }
    assert!(answers(&mmio, MMIO32 + 0x1000), "the neighbour is unharmed");
}

#[test]
fn two_functions_can_change_places() {
    let (mmio, root) = machine();
    root.add(Recorder::new(0x1000)).unwrap();
    root.add(Recorder::new(0x1000)).unwrap();
    root.write_config(number(1, 0), 4, &[0]);
    root.write_config(number(1, 0), BAR0, &(MMIO32 + 0x1000).to_le_bytes());
    root.write_config(number(1, 0), 4, &[2]);
    assert!(!answers(&mmio, MMIO32), "the place is taken: it waits");
    root.write_config(number(2, 0), BAR0, &MMIO32.to_le_bytes());
    assert!(
        answers(&mmio, MMIO32) && answers(&mmio, MMIO32 + 0x1000),
        "now it is there"
    );
}

#[test]
fn reset_puts_everything_back() {
    let (mmio, root) = machine();
    let function = Recorder::new(0x1000);
    root.add(Arc::clone(&function) as Arc<dyn Function>).unwrap();
    root.write_config(number(1, 0), BAR0, &(MMIO64 + 0x1000).to_le_bytes());
    root.write_config(number(1, 0), 4, &[0]);
    function.take();
    root.reset();
    assert_eq!(function.take(), [("reset", 0), ("map", MMIO32)]);
    assert_eq!(bar(&root, 1), MMIO32);
    assert!(answers(&mmio, MMIO32));
}

#[test]
fn all_functions_pause_and_resume() {
    let (_, root) = machine();
    let functions = [Recorder::new(0x1000), Recorder::new(0x1000)];
    for function in &functions {
        root.add(Arc::clone(function) as Arc<dyn Function>).unwrap();
        function.take();
    }
    root.pause();
    root.resume();
    for function in &functions {
        assert_eq!(function.take(), [("pause", 0), ("resume", 0)]);
    }
}

#[test]
fn a_slot_can_be_emptied_and_used_again() {
    let (mmio, root) = machine();
    let function = Recorder::new(0x1000);
    root.add(Arc::clone(&function) as Arc<dyn Function>).unwrap();
    function.take();
    root.remove(1).unwrap();
    assert_eq!(function.take(), [("unmap", MMIO32), ("reset", 0)]);
    assert!(!answers(&mmio, MMIO32));
    assert!(matches!(root.remove(1).unwrap_err(), PciError::Empty(1)));
    assert!(matches!(root.remove(200).unwrap_err(), PciError::Empty(200)));
    assert_eq!(root.add(Recorder::new(0x1000)).unwrap(), 1);
    assert_eq!(bar(&root, 1), MMIO32);
}

#[test]
fn functions_of_a_slot_come_and_go_together() {
    let (mmio, root) = machine();
    let functions = [Recorder::new(0x1000), Recorder::new(0x2000)];
    let of = |index: usize| Arc::clone(&functions[index]) as Arc<dyn Function>;
    let slot = root.add_hot_plug(vec![(0, of(0)), (3, of(1))], &[]).unwrap();
    let header = |function: u8, offset: u16| {
        let mut data = [0; 4];
        root.read_config(number(slot, function), offset, &mut data);
        data
    };
    assert_eq!(header(0, 0x0c), [0, 0, 0x80, 0], "there are more functions");
    assert_eq!(header(3, 0x0c), [0, 0, 0x80, 0]);
    assert_eq!(header(1, 0), [0xff; 4]);
    assert!(answers(&mmio, MMIO32) && answers(&mmio, MMIO32 + 0x3fff));
    assert_eq!(
        root.add_hot_plug(vec![(0, Recorder::new(0x1000))], &[]).unwrap(),
        slot + 1
    );
    let mut alone = [0; 1];
    root.read_config(number(slot + 1, 0), 0x0e, &mut alone);
    assert_eq!(alone, [0]);
    functions[1].take();
    root.reset();
    assert_eq!(header(0, 0x0c), [0, 0, 0x80, 0]);
    assert_eq!(
        functions[1].take(),
        [("unmap", MMIO32 + 0x2000), ("reset", 0), ("map", MMIO32 + 0x2000)]
    );
    root.remove(slot).unwrap();
    assert!(!answers(&mmio, MMIO32) && !answers(&mmio, MMIO32 + 0x3fff));
    assert_eq!((header(0, 0), header(3, 0)), ([0xff; 4], [0xff; 4]));
}

#[test]
fn a_slot_that_does_not_get_all_its_functions_stays_empty() {
    let (mmio, root) = machine();
    let stubborn = Recorder::new(0x1000);
    *stubborn.refuse.lock().unwrap() = Some(MMIO32 + 0x1000);
    let refused = root.add_hot_plug(vec![(0, Recorder::new(0x1000)), (1, stubborn)], &[]);
    refused.unwrap_err();
    assert!(!answers(&mmio, MMIO32));
    assert_eq!(
        root.add_hot_plug(vec![(0, Recorder::new(0x1000))], &[]).unwrap(),
        16
    );
}

/// A function with ports and nothing else.
#[derive(Debug)]
struct WithPorts(u64);

impl Function for WithPorts {
    fn config_space(&self) -> ConfigSpace {
        let mut config = identity();
        config.add_bar(2, BarKind::Ports, self.0);
        config
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data[0] = bar << 6 | offset.to_le_bytes()[0];
    }

    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

#[test]
fn ports_answer_among_the_ports_alone() {
    let (mmio, pio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let windows = Windows {
        mmio32: MMIO32..MMIO32 + 0x20_0000,
        mmio64: MMIO64..MMIO64 + 0x1000,
        ports: 0x1000..0x1040,
    };
    let root = Root::new(Arc::clone(&mmio), Arc::clone(&pio), windows);
    let slot = root.add(Arc::new(WithPorts(0x20))).unwrap();
    let at = |port: u64| {
        let mut data = [0];
        pio.read(port, &mut data).then_some(data[0])
    };
    let number = number(slot, 0);
    let register = || {
        let mut data = [0; 4];
        root.read_config(number, 0x18, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((register(), at(0x1004), at(0x1020)), (0x1001, Some(0x84), None));
    assert!(!mmio.read(0x1004, &mut [0]));
    root.write_config(number, 0x18, &u32::MAX.to_le_bytes());
    assert_eq!((register(), at(0x1000)), (0xffff_ffe1, Some(0x80)), "a probe");
    root.write_config(number, 0x18, &0x1020u32.to_le_bytes());
    assert_eq!((register(), at(0x1004), at(0x1024)), (0x1021, None, Some(0x84)));
    root.write_config(number, 4, &[2]);
    assert_eq!(at(0x1024), None, "ports have a bit of their own");
    root.write_config(number, 4, &[1]);
    assert_eq!(at(0x1024), Some(0x84));
    assert!(matches!(
        root.add(Arc::new(WithPorts(0x40))).unwrap_err(),
        PciError::NoPorts(0x40)
    ));
    root.remove(slot).unwrap();
    assert_eq!(at(0x1024), None);
    root.add(Arc::new(WithPorts(0x40))).unwrap();
}
