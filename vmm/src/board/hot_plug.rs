//! Hot-plug of PCI functions, the ACPI way: the operating system is told that a slot has changed, and ejects what it has let go.
//!
//! ```text
//! port 0x610  slots with something new in them, a bit each; cleared by reading
//! port 0x614  slots that shall become empty; cleared by reading
//! port 0x618  written by the guest: the slots that it has let go
//! ```
//!
//! The namespace has an object for each slot of [`HOT_PLUG_SLOTS`](crate::pci::root::HOT_PLUG_SLOTS). The event device tells
//! that there is something to read; the registers have four bytes each and take accesses of that width alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::power::{EVENT_PCI, Power};
use crate::bus::{Bus, BusDevice, BusError};

/// First port.
pub const PORT: u16 = 0x610;
/// Length of the registers.
pub const LEN: u16 = 12;
const UP: u64 = 0;
const DOWN: u64 = 4;
const EJECT: u64 = 8;

/// What the guest is told, until it reads it.
#[derive(Debug)]
pub struct HotPlug {
    power: Arc<Power>,
    up: AtomicU32,
    down: AtomicU32,
}

impl HotPlug {
    /// Events go through `power`'s event device.
    pub fn new(power: Arc<Power>) -> Arc<Self> {
        Arc::new(Self {
            power,
            up: AtomicU32::new(0),
            down: AtomicU32::new(0),
        })
    }

    /// Puts the registers on the bus of ports; `ejected` hears of each slot that the guest has let go.
    pub fn install(
        self: &Arc<Self>,
        pio: &Bus,
        ejected: impl Fn(u8) + Send + Sync + 'static,
    ) -> Result<(), BusError> {
        let registers = Registers {
            state: Arc::clone(self),
            ejected: Box::new(ejected),
        };
        pio.insert(u64::from(PORT)..u64::from(PORT + LEN), Arc::new(registers))
    }

    /// There is something new in `slot`.
    pub fn plugged(&self, slot: u8) {
        self.up.fetch_or(bit(slot), Ordering::AcqRel);
        self.power.raise(EVENT_PCI);
    }

    /// `slot` shall become empty.
    pub fn ask_for(&self, slot: u8) {
        self.down.fetch_or(bit(slot), Ordering::AcqRel);
        self.power.raise(EVENT_PCI);
    }

    /// A new life of the guest finds everything by looking.
    pub fn reset(&self) {
        self.up.store(0, Ordering::Release);
        self.down.store(0, Ordering::Release);
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

struct Registers {
    state: Arc<HotPlug>,
    ejected: Box<dyn Fn(u8) + Send + Sync>,
}

impl BusDevice for Registers {
    fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
        let value = match (offset, data.len()) {
            (UP, 4) => self.state.up.swap(0, Ordering::AcqRel),
            (DOWN, 4) => self.state.down.swap(0, Ordering::AcqRel),
            _ => 0,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&self, _base: u64, offset: u64, data: &[u8]) {
        if let (EJECT, Ok(bytes)) = (offset, data.try_into()) {
            let slots = u32::from_le_bytes(bytes);
            for slot in (0u8..32).filter(|slot| slots & bit(*slot) != 0) {
                (self.ejected)(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::board::power::{self, ActionSink};
    use crate::hv::Vm;
    use crate::hv::irq::LegacyIrq;

    #[test]
    fn the_guest_reads_what_is_new_once_and_ejects_slots() {
        let Ok(vm) = Vm::new() else {
            eprintln!("nothing tested: no KVM");
            return;
        };
        let bus = Bus::new();
        let line = LegacyIrq::new(vm.fd(), power::EVENT_GSI).unwrap();
        let power = Power::install(&bus, ActionSink::new(|_| {}), line).unwrap();
        let hot_plug = HotPlug::new(power);
        let gone = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&gone);
        hot_plug
            .install(&bus, move |slot| heard.lock().unwrap().push(slot))
            .unwrap();
        let read = |offset: u64, len: usize| {
            let mut data = [0; 8];
            bus.read(u64::from(PORT) + offset, &mut data[..len]);
            u64::from_le_bytes(data)
        };
        hot_plug.plugged(31);
        hot_plug.ask_for(16);
        let mut events = [0];
        bus.read(power::EVENT_PORT.into(), &mut events);
        assert_eq!(events, [EVENT_PCI]);
        assert_eq!((read(UP, 1), read(UP, 4), read(UP, 4)), (0, 1 << 31, 0));
        assert_eq!((read(DOWN, 4), read(DOWN, 4)), (1 << 16, 0));
        bus.write(u64::from(PORT) + EJECT, &[1]);
        bus.write(u64::from(PORT) + EJECT, &(1u32 << 31 | 1 << 16).to_le_bytes());
        assert_eq!(*gone.lock().unwrap(), [16, 31]);
        hot_plug.ask_for(16);
        hot_plug.reset();
        assert_eq!(read(DOWN, 4), 0);
    }
}
