use std::sync::Arc;

use super::{ConfigPorts, Ecam};
use crate::bus::BusDevice;
use crate::pci::root::{Root, Windows};

fn root() -> Arc<Root> {
    Root::new(
        Arc::default(),
        Arc::default(),
        Windows {
            mmio32: 0x1000..0x2000,
            mmio64: 0x1_0000..0x2_0000,
            ports: 0x1000..0x2000,
        },
    )
}

fn read<const N: usize>(device: &dyn BusDevice, offset: u64) -> [u8; N] {
    let mut data = [0x5a; N];
    device.read(0, offset, &mut data);
    data
}

#[test]
fn ecam_reaches_functions_at_any_width() {
    let root = root();
    let ecam = Ecam::new(&root);
    assert_eq!(read(&ecam, 0), [0x36, 0x1b, 8, 0]);
    assert_eq!(read(&ecam, 1), [0x1b, 8, 0]);
    assert_eq!(read(&ecam, 8), [0, 0, 0, 6, 0, 0, 0, 0]);
    assert_eq!(read(&ecam, 0x1000), [0xff; 4], "another function of the slot");
    assert_eq!(read(&ecam, 0x8000), [0xff; 4], "an empty slot");
    assert_eq!(read(&ecam, 0x10_0000), [0xff; 4], "another bus");
    assert_eq!(
        read(&ecam, 0xffc),
        [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        "across the end of a function"
    );
    ecam.write(0, 0x3c, &[7, 7]);
    assert_eq!(read(&ecam, 0x3c), [7, 0], "interrupt line, interrupt pin");
    ecam.write(0, u64::MAX, &[1; 8]);
}

#[test]
fn ports_reach_the_same_registers() {
    let root = root();
    let ports = ConfigPorts::new(&root);
    assert_eq!(read(&ports, 4), [0xff; 4], "not enabled");
    ports.write(0, 0, &0x8000_0000u32.to_le_bytes());
    assert_eq!(read(&ports, 0), 0x8000_0000u32.to_le_bytes());
    assert_eq!(read(&ports, 4), [0x36, 0x1b, 8, 0]);
    assert_eq!(read(&ports, 5), [0x1b, 8]);
    assert_eq!(read(&ports, 7), [0, 0xff], "only four data ports");
    ports.write(0, 1, &[6]);
    assert_eq!(
        read(&ports, 0),
        0x8000_0000u32.to_le_bytes(),
        "another device's port"
    );
    ports.write(0, 0, &0x8000_003cu32.to_le_bytes());
    ports.write(0, 4, &[9]);
    assert_eq!(read(&ports, 4), [9]);
    for nobody in [0x0000_0000u32, 0x8001_0000, 0x8000_0100, 0x8000_0800] {
        ports.write(0, 0, &nobody.to_le_bytes());
        assert_eq!(read(&ports, 4), [0xff; 4], "{nobody:#x}");
    }
    assert_eq!(read(&ports, 2), [0xff; 2]);
}
