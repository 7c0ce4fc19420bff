//! The board's switches: sleep and reset registers, power button, keyboard controller's reset, panic device.
//!
//! ```text
//! port 0x600  sleep control (ACPI): S5 powers off      port 0x604  events (GED), cleared by reading
//! port 0x601  sleep status (ACPI)                      port 0x064  keyboard controller: command 0xFE resets
//! port 0x602  reset (ACPI): 1 resets                   port 0x505  pvpanic
//! ```

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::{I8042Device, Trigger};

use crate::bus::{Bus, BusDevice, BusError};
use crate::hv::irq::LegacyIrq;

#[cfg(test)]
mod tests;

/// First port of the ACPI registers.
pub const ACPI_PORT: u16 = 0x600;
/// Sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = ACPI_PORT;
/// Sleep status register.
pub const SLEEP_STATUS_PORT: u16 = ACPI_PORT + 1;
/// Reset register.
pub const RESET_PORT: u16 = ACPI_PORT + 2;
/// What to write to the reset register.
pub const RESET_VALUE: u8 = 1;
/// Which events have happened.
pub const EVENT_PORT: u16 = ACPI_PORT + 4;
/// Length of the ACPI registers.
const ACPI_LEN: u16 = 8;
/// The event register's bit of the power button.
pub const EVENT_POWER_BUTTON: u8 = 1;
/// The event register's bit of the slots for hot-plug.
pub const EVENT_PCI: u8 = 2;
/// The interrupt line of the events.
pub const EVENT_GSI: u32 = 5;
/// Sleep type of S5 in the sleep control register.
pub const S5: u8 = 5;
/// The panic device.
pub const PANIC_PORT: u16 = 0x505;

const SLEEP_ENABLE: u8 = 1 << 5;
const I8042_DATA: u64 = 0x60;
const I8042_COMMAND: u64 = 0x64;
/// The guest has panicked, and nobody in it takes over.
const PANIC_PANICKED: u8 = 1 << 0;
/// The guest has panicked and starts its crash kernel.
const PANIC_CRASH_LOADED: u8 = 1 << 1;

/// What a guest does to its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestAction {
    /// It has powered off.
    PowerOff,
    /// It wants to be reset.
    Reset,
    /// It has panicked.
    Panic,
}

/// Hands on the first action of a guest; the others of the same life are of no use, however many there are.
pub struct ActionSink {
    taken: AtomicBool,
    deliver: Box<dyn Fn(GuestAction) + Send + Sync>,
}

impl std::fmt::Debug for ActionSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActionSink")
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

impl ActionSink {
    /// Actions go to `deliver`.
    pub fn new(deliver: impl Fn(GuestAction) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicBool::new(false),
            deliver: Box::new(deliver),
        })
    }

    /// Hands on `action` if it is the first since the start or the last reset.
    pub fn act(&self, action: GuestAction) {
        if !self.taken.swap(true, Ordering::AcqRel) {
            (self.deliver)(action);
        }
    }

    /// The guest begins another life.
    pub fn reset(&self) {
        self.taken.store(false, Ordering::Release);
    }
}

/// The devices of this module.
#[derive(Debug)]
pub struct Power {
    sink: Arc<ActionSink>,
    events: AtomicU8,
    event_irq: LegacyIrq,
}

impl Power {
    /// Puts the devices on the bus of ports.
    pub fn install(pio: &Bus, sink: Arc<ActionSink>, event_irq: LegacyIrq) -> Result<Arc<Self>, BusError> {
        let power = Arc::new(Self {
            sink: Arc::clone(&sink),
            events: AtomicU8::new(0),
            event_irq,
        });
        pio.insert(
            ports(ACPI_PORT, ACPI_LEN),
            Arc::new(AcpiPorts(Arc::clone(&power))),
        )?;
        let keyboard = Arc::new(Keyboard(Mutex::new(I8042Device::new(ResetLine {
            sink: Arc::clone(&sink),
        }))));
        pio.insert(
            I8042_DATA..I8042_DATA + 1,
            Arc::clone(&keyboard) as Arc<dyn BusDevice>,
        )?;
        pio.insert(I8042_COMMAND..I8042_COMMAND + 1, keyboard)?;
        pio.insert(ports(PANIC_PORT, 1), Arc::new(PanicPort(sink)))?;
        Ok(power)
    }

    /// Presses the power button: asks the guest to power off.
    pub fn press_button(&self) {
        self.raise(EVENT_POWER_BUTTON);
    }

    /// Reports an event.
    pub(super) fn raise(&self, event: u8) {
        self.events.fetch_or(event, Ordering::AcqRel);
        self.event_irq.pulse();
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        self.events.store(0, Ordering::Release);
        self.sink.reset();
    }
}

fn ports(first: u16, len: u16) -> std::ops::Range<u64> {
    u64::from(first)..u64::from(first) + u64::from(len)
}

struct AcpiPorts(Arc<Power>);

impl BusDevice for AcpiPorts {
    fn read(&self, base: u64, offset: u64, data: &mut [u8]) {
        for (port, byte) in (base + offset..).zip(data) {
            *byte = if port == u64::from(EVENT_PORT) {
                self.0.events.swap(0, Ordering::AcqRel)
            } else {
                0
            };
        }
    }

    fn write(&self, base: u64, offset: u64, data: &[u8]) {
        for (port, byte) in (base + offset..).zip(data) {
            if port == u64::from(SLEEP_CONTROL_PORT) && *byte == S5 << 2 | SLEEP_ENABLE {
                self.0.sink.act(GuestAction::PowerOff);
            } else if port == u64::from(RESET_PORT) && *byte == RESET_VALUE {
                self.0.sink.act(GuestAction::Reset);
            }
        }
    }
}

struct ResetLine {
    sink: Arc<ActionSink>,
}

impl Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.sink.act(GuestAction::Reset);
        Ok(())
    }
}

struct Keyboard(Mutex<I8042Device<ResetLine>>);

impl BusDevice for Keyboard {
    fn read(&self, base: u64, _offset: u64, data: &mut [u8]) {
        // The register numbers of the device are those of its ports.
        let register = u8::try_from(base - I8042_DATA).unwrap_or(0);
        data[0] = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(register);
    }

    fn write(&self, base: u64, _offset: u64, data: &[u8]) {
        let register = u8::try_from(base - I8042_DATA).unwrap_or(0);
        let Ok(()) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(register, data[0]);
    }
}

struct PanicPort(Arc<ActionSink>);

impl BusDevice for PanicPort {
    fn read(&self, _base: u64, _offset: u64, data: &mut [u8]) {
        data[0] = PANIC_PANICKED | PANIC_CRASH_LOADED;
    }

    fn write(&self, _base: u64, _offset: u64, data: &[u8]) {
        if data[0] & PANIC_PANICKED != 0 {
            self.0.act(GuestAction::Panic);
        } else if data[0] & PANIC_CRASH_LOADED != 0 {
            tracing::warn!("the guest has panicked and starts its crash kernel");
        }
    }
}
