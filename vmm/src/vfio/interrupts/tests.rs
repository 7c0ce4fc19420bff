use std::sync::Arc;

use super::*;
use crate::pci::testing::{Call, FakePlatform};
use crate::vfio::testing::{Asked, FakeDevice, igb};

const COMMAND: u16 = 4;
const MASTER: u16 = 4;
const MSI: u16 = 0x52;
const MSIX: u16 = 0x72;
const ENABLED: [u8; 2] = [9, 0x80];

struct Rig {
    device: Arc<FakeDevice>,
    platform: Arc<FakePlatform>,
    config: ConfigSpace,
    interrupts: Interrupts,
}

impl Rig {
    fn new(device: FakeDevice) -> Self {
        let registers = Registers::read(&device).unwrap();
        let (device, platform) = (Arc::new(device), Arc::new(FakePlatform::default()));
        let interrupts = Interrupts::new(Arc::clone(&device) as _, Arc::clone(&platform) as _, &registers);
        let mut config = registers.power_on().clone();
        config.write(COMMAND, &MASTER.to_le_bytes());
        Self {
            device,
            platform,
            config,
            interrupts,
        }
    }

    fn write(&mut self, at: u16, data: &[u8]) -> Vec<Asked> {
        self.config.write(at, data);
        self.interrupts.config_written(&self.config);
        self.device.take()
    }

    /// Gives a vector a message, and unmasks it.
    fn unmask(&mut self, vector: u64) -> Vec<Asked> {
        self.interrupts
            .write_table(vector * 16, &0xfee0_0000u64.to_le_bytes());
        self.interrupts.write_table(vector * 16 + 12, &[0; 4]);
        self.device.take()
    }
}

fn triggers(start: u32, there: &[u32], count: usize) -> Asked {
    let mut list = vec![false; count];
    for vector in there {
        list[*vector as usize] = true;
    }
    Asked::Triggers(Irq::Msix, start, list)
}

#[test]
fn the_pin_is_masked_at_each_interrupt_until_it_is_served() {
    let mut rig = Rig::new(igb());
    let on = [Asked::Triggers(Irq::Intx, 0, vec![true]), Asked::Unmask];
    assert_eq!(rig.write(COMMAND, &[6, 0]), on);
    assert_eq!(rig.platform.take(), [Call::Line(16)]);
    assert_eq!(rig.write(COMMAND, &[6, 0]), [], "nothing changes");
    assert_eq!(rig.write(COMMAND, &[6, 4]), [Asked::Disable(Irq::Intx)]);
    assert_eq!(rig.platform.take(), [Call::NoLine(16)]);
}

#[test]
fn vectors_are_armed_when_they_are_first_used_with_room_for_those_prepared() {
    let mut rig = Rig::new(igb());
    rig.write(COMMAND, &[6, 4]);
    // Three vectors have messages; none is unmasked yet.
    for vector in 0..3u64 {
        rig.interrupts
            .write_table(vector * 16, &0xfee0_0000u64.to_le_bytes());
    }
    // The device is told at once: some prepare for their interrupts only when they find MSI-X on.
    assert_eq!(rig.write(MSIX, &ENABLED), [triggers(0, &[], 3)]);
    assert_eq!(rig.unmask(1), [triggers(1, &[0], 1)]);
    assert_eq!(rig.unmask(0), [triggers(0, &[0], 1)]);
    // Masking takes nothing down, and unmasking again sets nothing up.
    rig.interrupts.write_table(12, &[1, 0, 0, 0]);
    assert_eq!(rig.unmask(0), []);
    assert_eq!(rig.write(MSIX, &[9, 0]), [Asked::Disable(Irq::Msix)]);
    assert_eq!(rig.write(MSIX, &ENABLED), [triggers(0, &[0, 1], 3)]);
}

#[test]
fn a_host_that_cannot_add_vectors_sets_all_of_them_again_and_loses_none() {
    let mut rig = Rig::new(igb());
    rig.write(COMMAND, &[6, 4]);
    assert_eq!(rig.write(MSIX, &ENABLED), [triggers(0, &[], 1)]);
    assert_eq!(rig.unmask(0), [triggers(0, &[0], 1)]);
    rig.platform.take();
    assert_eq!(
        rig.unmask(5),
        [Asked::Disable(Irq::Msix), triggers(0, &[0, 5], 6)]
    );
    // The first may have been raised while it was down.
    rig.platform.wait_for_interrupt(0);
}

#[test]
fn a_host_that_can_adds_the_vector_alone() {
    let mut rig = Rig::new(FakeDevice {
        can_add: true,
        ..igb()
    });
    rig.write(COMMAND, &[6, 4]);
    rig.write(MSIX, &ENABLED);
    assert_eq!(rig.unmask(0), [triggers(0, &[0], 1)]);
    assert_eq!(rig.unmask(5), [triggers(5, &[0], 1)]);
}

#[test]
fn msi_has_its_message_and_mask_in_configuration_space() {
    let mut rig = Rig::new(igb());
    rig.write(COMMAND, &[6, 4]);
    rig.platform.take();
    rig.write(MSI + 2, &0xfee0_1000u64.to_le_bytes());
    rig.write(MSI + 10, &[0x31, 0]);
    assert_eq!(rig.write(MSI, &[1]), [Asked::Triggers(Irq::Msi, 0, vec![true])]);
    assert_eq!(
        rig.platform.take(),
        [Call::Route(0, 0xfee0_1000, 0x31), Call::Unmask(0)]
    );
    rig.write(MSI + 14, &[1]);
    assert_eq!(
        rig.platform.take(),
        [Call::Route(0, 0xfee0_1000, 0x31), Call::Mask(0)]
    );
    assert_eq!(rig.write(MSI, &[0]), [Asked::Disable(Irq::Msi)]);
}

#[test]
fn one_kind_is_taken_down_before_the_next_and_all_by_a_reset() {
    let mut rig = Rig::new(igb());
    rig.write(COMMAND, &[6, 0]);
    rig.write(MSI, &[1]);
    assert_eq!(
        rig.write(MSIX, &ENABLED),
        [Asked::Disable(Irq::Msi), triggers(0, &[], 1)]
    );
    rig.unmask(0);
    let power_on = Registers::read(&igb()).unwrap().power_on().clone();
    rig.interrupts.reset(&power_on);
    assert_eq!(
        rig.device.take(),
        [
            Asked::Disable(Irq::Msix),
            Asked::Triggers(Irq::Intx, 0, vec![true]),
            Asked::Unmask
        ]
    );
}

#[test]
fn what_is_prepared_while_the_function_is_masked_has_room_before_any_is_used() {
    let mut rig = Rig::new(igb());
    rig.write(COMMAND, &[6, 4]);
    assert_eq!(rig.write(MSIX, &[9, 0xc0]), [triggers(0, &[], 1)]);
    for vector in 0..4u64 {
        rig.interrupts
            .write_table(vector * 16, &0xfee0_0000u64.to_le_bytes());
    }
    assert_eq!(rig.device.take(), []);
    assert_eq!(
        rig.write(MSIX, &ENABLED),
        [Asked::Disable(Irq::Msix), triggers(0, &[], 4)]
    );
    assert_eq!(rig.unmask(3), [triggers(3, &[0], 1)]);
}
