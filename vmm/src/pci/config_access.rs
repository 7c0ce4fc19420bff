//! How the guest reaches configuration space: memory-mapped (ECAM), or through the ports 0xCF8 and 0xCFC.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::root::Root;
use crate::bus::BusDevice;

#[cfg(test)]
mod tests;

/// First port of the two registers.
pub const PORTS_BASE: u64 = 0xcf8;
/// Length of the two registers.
pub const PORTS_LEN: u64 = 8;

const FUNCTION_LEN: u64 = 4096;
const BUS_LEN: u64 = 256 * FUNCTION_LEN;

/// Memory-mapped configuration space: 4 KiB for each function, 1 MiB for each bus.
///
/// The root has the bus that this is on, and not the other way round, lest they keep each other alive.
#[derive(Debug)]
pub struct Ecam(Weak<Root>);

impl Ecam {
    /// The window onto `root`.
    pub fn new(root: &Arc<Root>) -> Self {
        Self(Arc::downgrade(root))
    }
}

/// Function and register at `offset`, if a function can be there: on bus 0.
fn locate(offset: u64) -> Option<(usize, u16)> {
    let register = u16::try_from(offset % FUNCTION_LEN).ok()?;
    let function = usize::try_from(offset / FUNCTION_LEN).ok()?;
    (offset < BUS_LEN).then_some((function, register))
}

/// How many of `len` bytes belong to the function at `offset`.
fn clip(offset: u64, len: usize) -> usize {
    usize::try_from(FUNCTION_LEN - offset % FUNCTION_LEN).map_or(len, |room| len.min(room))
}

impl BusDevice for Ecam {
    fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let len = clip(offset, data.len());
        if let (Some((function, register)), Some(root)) = (locate(offset), self.0.upgrade()) {
            root.read_config(function, register, &mut data[..len]);
        }
    }

    fn write(&self, _base: u64, offset: u64, data: &[u8]) {
        let len = clip(offset, data.len());
        if let (Some((function, register)), Some(root)) = (locate(offset), self.0.upgrade()) {
            root.write_config(function, register, &data[..len]);
        }
    }
}

const ENABLE: u32 = 1 << 31;
const DATA: u64 = 4;

/// The address port 0xCF8 and the data ports 0xCFC to 0xCFF.
///
/// The address register takes accesses of four bytes only: other ports live at the same numbers on a PC.
#[derive(Debug)]
pub struct ConfigPorts {
    root: Weak<Root>,
    address: Mutex<u32>,
}

impl ConfigPorts {
    /// The ports of `root`.
    pub fn new(root: &Arc<Root>) -> Self {
        Self {
            root: Arc::downgrade(root),
            address: Mutex::new(0),
        }
    }

    /// The function and register that the address register and `offset` select, and the bytes that are theirs.
    fn select(&self, offset: u64, len: usize) -> Option<(usize, u16, usize)> {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let in_data = offset.checked_sub(DATA).filter(|at| *at < 4)?;
        let bus = address >> 16 & 0xff;
        if address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let function = usize::try_from(address >> 8 & 0xff).ok()?;
        let register = u16::try_from(u64::from(address & 0xfc) + in_data).ok()?;
        let room = usize::try_from(4 - in_data).ok()?;
        Some((function, register, len.min(room)))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0
            && let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data)
        {
            *data = self
                .address
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .to_le_bytes();
        } else if let Some((function, register, len)) = self.select(offset, data.len())
            && let Some(root) = self.root.upgrade()
        {
            root.read_config(function, register, &mut data[..len]);
        }
    }

    fn write(&self, _base: u64, offset: u64, data: &[u8]) {
        if offset == 0
            && let Ok(&data) = <&[u8; 4]>::try_from(data)
        {
            *self.address.lock().unwrap_or_else(PoisonError::into_inner) = u32::from_le_bytes(data);
        } else if let Some((function, register, len)) = self.select(offset, data.len())
            && let Some(root) = self.root.upgrade()
        {
            root.write_config(function, register, &data[..len]);
        }
    }
}
