use super::Msix;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::testing::{Call, FakePlatform};

const IDENTITY: Identity = Identity {
    vendor: 1,
    device: 2,
    revision: 0,
    class: 0,
    subsystem_vendor: 0,
    subsystem: 0,
};
const COMMAND: u16 = 4;
const BUS_MASTER: u8 = 4;
/// The control word: the capability is the first one.
const CONTROL: u16 = 0x42;
const ENABLE: u8 = 0x80;
const FUNCTION_MASK: u8 = 0x40;

struct Rig {
    platform: FakePlatform,
    config: ConfigSpace,
    msix: Msix,
}

impl Rig {
    fn new(count: u16) -> Self {
        let platform = FakePlatform::default();
        let mut msix = Msix::new(count, &platform).unwrap();
        let mut config = ConfigSpace::new(&IDENTITY);
        config.write(COMMAND, &[BUS_MASTER]);
        msix.add_capability(&mut config, 0, 0x4000, 0x5000);
        Self {
            platform,
            config,
            msix,
        }
    }

    fn control(&mut self, high: u8) -> Vec<Call> {
        self.config.write(CONTROL + 1, &[high]);
        self.msix.config_written(&self.config);
        self.platform.take()
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Call> {
        self.msix.write_table(offset, data);
        self.platform.take()
    }

    fn pending(&self, byte: u64) -> u8 {
        let mut bits = [0];
        self.msix.read_pending(byte, &mut bits);
        bits[0]
    }
}

#[test]
fn capability_says_where_everything_is() {
    let rig = Rig::new(3);
    assert_eq!(
        rig.config.get::<12>(0x40),
        [0x11, 0, 2, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0]
    );
}

#[test]
fn all_vectors_start_masked() {
    let mut rig = Rig::new(2);
    let mut entry = [0; 16];
    rig.msix.read_table(16, &mut entry);
    assert_eq!(entry[12..], [1, 0, 0, 0]);
    assert_eq!(rig.control(ENABLE), []);
}

#[test]
fn delivery_needs_enable_and_no_mask() {
    let mut rig = Rig::new(2);
    assert_eq!(rig.write(16, &0xfee0_1004u64.to_le_bytes()), []);
    assert_eq!(
        rig.write(24, &[0x21, 0, 0, 0, 0, 0, 0, 0]),
        [],
        "unmasked, but MSI-X is off"
    );
    assert_eq!(rig.control(ENABLE | FUNCTION_MASK), []);
    assert_eq!(
        rig.control(ENABLE),
        [Call::Route(1, 0xfee0_1004, 0x21), Call::Unmask(1)]
    );
    assert_eq!(rig.control(ENABLE), [], "nothing new");
    assert_eq!(rig.control(ENABLE | FUNCTION_MASK), [Call::Mask(1)]);
    assert_eq!(rig.control(0), []);
    assert_eq!(
        rig.control(ENABLE),
        [Call::Route(1, 0xfee0_1004, 0x21), Call::Unmask(1)]
    );
    assert_eq!(rig.write(28, &[1, 0, 0, 0]), [Call::Mask(1)]);
    assert_eq!(
        rig.write(28, &[0]),
        [Call::Route(1, 0xfee0_1004, 0x21), Call::Unmask(1)],
        "one byte is enough"
    );
}

#[test]
fn a_message_that_changes_while_unmasked_is_rerouted() {
    let mut rig = Rig::new(1);
    rig.control(ENABLE);
    rig.write(0, &0xfee0_0000u64.to_le_bytes());
    rig.write(8, &[0x30, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        rig.write(0, &0xfee0_2000u32.to_le_bytes()),
        [Call::Route(0, 0xfee0_2000, 0x30)]
    );
    assert_eq!(rig.write(8, &[0x31]), [Call::Route(0, 0xfee0_2000, 0x31)]);
    assert_eq!(rig.write(8, &[0x31]), [], "the same message");
    assert_eq!(
        rig.write(4, &[0, 0, 0, 0, 0x32, 0, 0, 0]),
        [Call::Route(0, 0xfee0_2000, 0x32)],
        "one access, one route"
    );
}

#[test]
fn odd_accesses_reach_the_right_vectors() {
    let mut rig = Rig::new(2);
    rig.control(ENABLE);
    // Across the end of the first entry: its mask bit, then the address of the second.
    let calls = rig.write(12, &[0, 0, 0, 0, 0x78, 0x56, 0x34, 0x12]);
    assert_eq!(calls, [Call::Route(0, 0, 0), Call::Unmask(0)]);
    let mut got = [0; 5];
    rig.msix.read_table(15, &mut got);
    assert_eq!(got, [0, 0x78, 0x56, 0x34, 0x12]);
    assert_eq!(rig.write(17, &[0x99]), []);
    rig.msix.read_table(15, &mut got);
    assert_eq!(got, [0, 0x78, 0x99, 0x34, 0x12]);
    assert_eq!(rig.write(29, &[0xff, 0xff, 0xff]), [], "reserved bits");
    rig.msix.read_table(28, &mut got);
    assert_eq!(got, [1, 0, 0, 0, 0], "reserved bits, and the end of the table");
    assert_eq!(rig.write(32, &[0xff; 8]), []);
    assert_eq!(rig.write(u64::MAX - 3, &[0xff; 4]), [], "far outside");
}

#[test]
fn what_is_masked_is_pending() {
    let mut rig = Rig::new(10);
    rig.control(ENABLE);
    rig.msix.eventfd(9).unwrap().write(1).unwrap();
    rig.msix.eventfd(2).unwrap().write(1).unwrap();
    assert_eq!((rig.pending(0), rig.pending(1), rig.pending(2)), (4, 2, 0));
    assert_eq!(rig.pending(u64::MAX), 0);
    let mut odd = [0xff; 3];
    rig.msix.read_pending(1, &mut odd);
    assert_eq!(odd, [2, 0, 0]);
    rig.write(2 * 16 + 12, &[0]);
    assert_eq!(rig.pending(0), 0, "delivered from here on");
    rig.control(ENABLE | FUNCTION_MASK);
    assert_eq!(rig.pending(0), 4);
    rig.msix.reset();
    assert_eq!((rig.pending(0), rig.pending(1)), (0, 0));
    assert!(rig.platform.take().contains(&Call::Reset(9)));
}

#[test]
fn a_function_that_is_no_bus_master_sends_nothing_until_it_is() {
    let mut rig = Rig::new(1);
    rig.control(ENABLE);
    rig.write(12, &[0]);
    rig.config.write(COMMAND, &[0]);
    assert_eq!(rig.control(ENABLE), [Call::Mask(0)]);
    rig.msix.eventfd(0).unwrap().write(1).unwrap();
    assert_eq!(rig.pending(0), 1);
    rig.config.write(COMMAND, &[BUS_MASTER]);
    assert_eq!(rig.control(ENABLE), [Call::Route(0, 0, 0), Call::Unmask(0)]);
}

#[test]
fn there_are_no_other_vectors() {
    let rig = Rig::new(2);
    assert!(rig.msix.eventfd(1).is_some());
    assert!(rig.msix.eventfd(2).is_none());
    assert!(rig.msix.eventfd(u16::MAX).is_none());
}
