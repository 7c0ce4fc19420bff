//! The host bridge at 00:00.0. It is there because operating systems expect one; it does nothing.

use super::config::{ConfigSpace, Identity};
use super::function::Function;

/// The bridge between processors and bus 0.
#[derive(Debug, Default)]
pub struct HostBridge;

const IDENTITY: Identity = Identity {
    // The virtual PCIe host bridge that operating systems know to need no work-around.
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

impl Function for HostBridge {
    fn config_space(&self) -> ConfigSpace {
        ConfigSpace::new(&IDENTITY)
    }

    fn read_bar(&self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}
