//! The interrupts of a device: the guest's wishes on one side, VFIO's eventfds on the other.
//!
//! ```text
//!                      ┌─ MSI-X enabled ──► Msix: each vector armed when first unmasked
//!   guest's registers ─┼─ MSI enabled ────► Msi
//!                      ├─ pin not disabled ► Intx: masked by the kernel at each interrupt, until the guest has served it
//!                      └─ none of them ───► nothing
//! ```
//!
//! One kind is in use at a time, and is taken down before the next. A vector's eventfd is the same whether the guest has it
//! masked or not: what is raised while it is masked shows as pending.

use std::sync::Arc;

use tracing::warn;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::host::{HostDevice, Irq};
use super::registers::Registers;
use crate::board::layout;
use crate::pci::msix::Msix;
use crate::pci::{ConfigSpace, Platform};

mod msi;
#[cfg(test)]
mod tests;

use msi::Msi;

const COMMAND_PIN_DISABLED: u16 = 1 << 10;

/// A pin that is connected.
#[derive(Debug)]
struct Line {
    event: EventFd,
    /// VFIO listens to it for as long as it is open here.
    _served: EventFd,
    gsi: u32,
}

/// The interrupts of one device.
#[derive(Debug)]
pub(super) struct Interrupts {
    device: Arc<dyn HostDevice>,
    platform: Arc<dyn Platform>,
    gsi: Option<u32>,
    msi: Option<Msi>,
    msix: Option<Msix>,
    /// The kind that is in use.
    active: Option<Irq>,
    line: Option<Line>,
    /// MSI-X vectors that signal their eventfd.
    armed: Vec<bool>,
    /// MSI-X vectors that the host has set aside.
    reserved: u16,
}

impl Interrupts {
    pub(super) fn new(
        device: Arc<dyn HostDevice>,
        platform: Arc<dyn Platform>,
        registers: &Registers,
    ) -> Self {
        let msix = registers
            .msix
            .map(|layout| Msix::late(layout.count, Arc::clone(&platform), layout.control));
        let armed = vec![false; msix.as_ref().map_or(0, |msix| msix.len().into())];
        Self {
            gsi: registers.pin.map(|pin| layout::PCI_PIN_GSI + u32::from(pin - 1)),
            msi: registers.msi.map(Msi::new),
            msix,
            active: None,
            line: None,
            armed,
            reserved: 0,
            device,
            platform,
        }
    }

    /// The MSI-X table and pending bits.
    pub(super) fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref()
    }

    /// Writes to the MSI-X table.
    pub(super) fn write_table(&mut self, offset: u64, data: &[u8]) {
        if let Some(msix) = &mut self.msix {
            msix.write_table(offset, data);
        }
        if self.active == Some(Irq::Msix) {
            self.arm_vectors(0);
        }
    }

    /// Follows what the guest wants after a write to configuration space.
    pub(super) fn config_written(&mut self, config: &ConfigSpace) {
        if let Some(msix) = &mut self.msix {
            msix.config_written(config);
        }
        let msi = self.msi.as_ref().is_some_and(|msi| msi.is_enabled(config));
        let wanted = if self.msix.as_ref().is_some_and(Msix::is_enabled) {
            Some(Irq::Msix)
        } else if msi {
            Some(Irq::Msi)
        } else if self.gsi.is_some() && config.command() & COMMAND_PIN_DISABLED == 0 {
            Some(Irq::Intx)
        } else {
            None
        };
        if wanted != self.active {
            self.take_down();
            self.active = wanted;
            if wanted == Some(Irq::Intx) {
                self.connect_pin();
            }
        }
        if wanted == Some(Irq::Msix) {
            let prepared = self.msix.as_ref().map_or(0, Msix::programmed);
            self.arm_vectors(prepared);
        }
        if wanted == Some(Irq::Msi)
            && let Some(msi) = &mut self.msi
            && let Err(error) = msi.settle(config, &*self.device, &*self.platform)
        {
            warn!(%error, "MSI does not do what its driver asked for");
        }
    }

    /// Back to the state after power-on, in which only the pin is in use.
    pub(super) fn reset(&mut self, power_on: &ConfigSpace) {
        self.take_down();
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        self.config_written(power_on);
    }

    /// No interrupt reaches the guest any more.
    pub(super) fn take_down(&mut self) {
        let disabled = match self.active.take() {
            Some(Irq::Msix) if self.reserved > 0 => {
                self.armed.fill(false);
                self.reserved = 0;
                self.device.disable(Irq::Msix)
            }
            Some(Irq::Msi) => {
                let disabled = self.device.disable(Irq::Msi);
                if let Some(msi) = &mut self.msi {
                    msi.take_down();
                }
                disabled
            }
            Some(Irq::Intx) => self.disconnect_pin(),
            _ => Ok(()),
        };
        if let Err(error) = disabled {
            warn!(%error, "interrupts of a device stay on");
        }
    }

    fn connect_pin(&mut self) {
        let Some(gsi) = self.gsi else { return };
        let connect = || -> Result<Line, Box<dyn std::error::Error>> {
            let event = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            let served = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            self.platform.connect_line(&event, &served, gsi)?;
            let wired = self
                .device
                .set_triggers(Irq::Intx, 0, &[Some(&event)])
                .and_then(|()| self.device.set_unmask(&served));
            if let Err(error) = wired {
                // What is left of it is gone with the line.
                let _ = self.device.disable(Irq::Intx);
                self.platform.disconnect_line(&event, gsi)?;
                return Err(error.into());
            }
            Ok(Line {
                event,
                _served: served,
                gsi,
            })
        };
        match connect() {
            Ok(line) => self.line = Some(line),
            Err(error) => warn!(%error, "the interrupt pin of a device is not connected"),
        }
    }

    fn disconnect_pin(&mut self) -> std::io::Result<()> {
        let Some(line) = self.line.take() else {
            return Ok(());
        };
        let disabled = self.device.disable(Irq::Intx);
        if let Err(error) = self.platform.disconnect_line(&line.event, line.gsi) {
            warn!(%error, "an interrupt line stays connected");
        }
        disabled
    }

    /// Has the vectors that are delivered for the first time signal their eventfds, and the device know that MSI-X is on even
    /// where none is. The host sets aside what is needed, and `prepared` vectors at least unless it can add more later.
    fn arm_vectors(&mut self, prepared: u16) {
        let Some(msix) = &self.msix else { return };
        let new: Vec<u16> = (0..msix.len())
            .filter(|vector| msix.is_live(*vector) && !self.armed[usize::from(*vector)])
            .collect();
        let needed = new.last().map_or(1, |last| last + 1);
        let can_add = self.device.can_add_vectors(Irq::Msix);
        let unused = !self.armed.contains(&true);
        let too_few = !can_add && (needed > self.reserved || unused && prepared > self.reserved);
        let result = if self.reserved == 0 || too_few {
            let count = if can_add { needed } else { needed.max(prepared) };
            self.arm_all(&new, count.max(self.reserved))
        } else {
            new.iter().try_for_each(|vector| {
                let event = msix.eventfd(*vector);
                self.device
                    .set_triggers(Irq::Msix, u32::from(*vector), &[event.as_ref()])?;
                self.armed[usize::from(*vector)] = true;
                self.reserved = self.reserved.max(vector + 1);
                Ok(())
            })
        };
        if let Err(error) = result {
            warn!(%error, "MSI-X vectors of a device are not delivered");
        }
    }

    /// Sets `count` vectors at once.
    fn arm_all(&mut self, new: &[u16], count: u16) -> std::io::Result<()> {
        let Some(msix) = &self.msix else { return Ok(()) };
        let again = self.reserved > 0;
        if again {
            self.device.disable(Irq::Msix)?;
            self.reserved = 0;
        }
        let mut armed = std::mem::replace(&mut self.armed, vec![false; msix.len().into()]);
        for vector in new {
            armed[usize::from(*vector)] = true;
        }
        let events: Vec<Option<EventFd>> = (0..count)
            .map(|vector| armed[usize::from(vector)].then(|| msix.eventfd(vector)).flatten())
            .collect();
        let events: Vec<Option<&EventFd>> = events.iter().map(Option::as_ref).collect();
        self.device.set_triggers(Irq::Msix, 0, &events)?;
        if again {
            // What the device raised in between went nowhere; a driver bears an interrupt too many, but not one too few.
            for event in events.iter().flatten() {
                let _ = event.write(1);
            }
        }
        self.armed = armed;
        self.reserved = count;
        Ok(())
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.take_down();
    }
}
