//! A device of the host as a function on the guest's PCI bus.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::host::{CONFIG, HostDevice};
use super::hot_reset::ResetError;
use super::interrupts::Interrupts;
use super::regions::Region;
use super::registers::{COMMAND, MsixLayout, Registers, STATUS};
use crate::hv::HvError;
use crate::pci::{BarKind, BarMove, ConfigSpace, Function, Platform};

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_PORTS: u16 = 1;
/// Parity errors are noticed, and errors reported as `SERR#` is.
const COMMAND_REPORTS: u16 = 1 << 6 | 1 << 8;
/// Bus mastering, and the pin that is not used.
const COMMAND_GUESTS: u16 = 1 << 2 | 1 << 10;
const FUNCTION_LEVEL_RESET: u8 = 1 << 7;
const MSIX_ENTRY: u64 = 16;

/// A device of the host.
#[derive(Debug)]
pub struct VfioFunction {
    device: Arc<dyn HostDevice>,
    platform: Arc<dyn Platform>,
    registers: Registers,
    /// The bits of the command register that are as the host has set them.
    command: u16,
    regions: Vec<Region>,
    interrupts: Mutex<Interrupts>,
}

/// Which part of a BAR an access hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Table,
    Pending,
    Device,
}

impl VfioFunction {
    /// Puts `device` before a guest, in the state after a reset.
    pub fn new(device: Arc<dyn HostDevice>, platform: Arc<dyn Platform>) -> Result<Self, String> {
        let registers = Registers::read(&*device)?;
        let trapped = |bar: u8| -> Vec<Range<u64>> {
            let msix = registers.msix.as_ref().map(msix_ranges).into_iter().flatten();
            msix.filter(|(_, at, _)| *at == bar)
                .map(|(_, _, range)| range)
                .collect()
        };
        let mut command = [0; 2];
        device.read(CONFIG, COMMAND.into(), &mut command);
        let mut command = u16::from_le_bytes(command) & COMMAND_REPORTS | COMMAND_MEMORY;
        if registers.power_on().bars().any(|bar| bar.1 == BarKind::Ports) {
            command |= COMMAND_PORTS;
        }
        // The registers answer, and can be mapped, from here on.
        device.write(CONFIG, COMMAND.into(), &command.to_le_bytes());
        reset(&*device);
        device.write(CONFIG, COMMAND.into(), &command.to_le_bytes());
        let bars = registers.power_on().bars();
        let regions = bars
            .filter(|(_, kind, _)| matches!(kind, BarKind::Memory32 | BarKind::Memory64))
            .map(|(bar, ..)| Region::new(&*device, bar, &trapped(bar)))
            .collect();
        let mut interrupts = Interrupts::new(Arc::clone(&device), Arc::clone(&platform), &registers);
        interrupts.reset(registers.power_on());
        Ok(Self {
            device,
            platform,
            registers,
            command,
            regions,
            interrupts: Mutex::new(interrupts),
        })
    }

    fn interrupts(&self) -> MutexGuard<'_, Interrupts> {
        self.interrupts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False once the device does not answer: it was pulled out, or its link is down. Reads give ones then, and no device has
    /// all bits of its status register set.
    pub fn answers(&self) -> bool {
        let mut status = [0; 2];
        self.device.read(CONFIG, STATUS.into(), &mut status);
        status != [0xff; 2]
    }

    /// The device stops reaching guest memory and interrupting.
    pub fn quiesce(&self) {
        self.write_command(0);
        self.interrupts().take_down();
    }

    /// Decoding stays on, whatever the guest says: an access to a register that does not answer would end the process.
    /// Whether the guest reaches the registers is a matter of our bus. Errors are reported to the host, which tells us.
    fn write_command(&self, command: u16) {
        let command = command & COMMAND_GUESTS | self.command;
        self.device.write(CONFIG, COMMAND.into(), &command.to_le_bytes());
    }

    /// Writes to the device's own registers what of it is the guest's.
    fn write_own(&self, at: u64, bytes: &mut [u8]) {
        let hosts: Vec<u8> = (at..)
            .zip(&*bytes)
            .map(|(at, _)| self.registers.hosts_bits(at))
            .collect();
        let mut start = 0;
        for run in hosts.chunk_by(|one, other| (*one == 0xff) == (*other == 0xff)) {
            let (range, first) = (start..start + run.len(), at + start as u64);
            start = range.end;
            if run[0] == 0xff {
                continue;
            }
            if run.iter().any(|bits| *bits != 0) {
                let mut now = vec![0; run.len()];
                self.device.read(CONFIG, first, &mut now);
                for ((byte, now), hosts) in bytes[range.clone()].iter_mut().zip(now).zip(run) {
                    *byte = *byte & !hosts | now & hosts;
                }
            }
            self.device.write(CONFIG, first, &bytes[range]);
        }
    }

    fn power_on(&self) {
        // In this order: nothing reaches guest memory any more before interrupts are taken down.
        self.write_command(0);
        self.interrupts().take_down();
        reset(&*self.device);
        self.write_command(0);
        self.interrupts().reset(self.registers.power_on());
    }

    /// Cuts an access into what belongs to the MSI-X table, to the pending bits and to the device.
    fn cut(&self, bar: u8, offset: u64, len: usize) -> Vec<(Part, u64, Range<usize>)> {
        let ranges = self.registers.msix.as_ref().map(msix_ranges);
        let part_at = |at: u64| {
            let hit = ranges.iter().flatten().find_map(|(part, of, range)| {
                (*of == bar && range.contains(&at)).then(|| (*part, at - range.start))
            });
            hit.unwrap_or((Part::Device, at))
        };
        let mut cut: Vec<(Part, u64, Range<usize>)> = Vec::new();
        for (index, at) in (0..len).zip(offset..) {
            let (part, inside) = part_at(at);
            match cut.last_mut() {
                Some((last, _, range)) if *last == part => range.end = index + 1,
                _ => cut.push((part, inside, index..index + 1)),
            }
        }
        cut
    }
}

fn reset(device: &dyn HostDevice) {
    match device.reset() {
        Ok(()) => {}
        // The last of them that is reset resets all.
        Err(error @ ResetError::InUse(_)) => tracing::debug!(%error, "a device is stopped, not reset"),
        Err(error) => tracing::warn!(%error, "a device is stopped, not reset"),
    }
}

/// Table and pending bits, with their BARs and ranges.
fn msix_ranges(layout: &MsixLayout) -> [(Part, u8, Range<u64>); 2] {
    let (table, pending) = (layout.table, layout.pending);
    let table_len = u64::from(layout.count) * MSIX_ENTRY;
    let pending_len = u64::from(layout.count).div_ceil(64) * 8;
    [
        (Part::Table, table.0, table.1..table.1 + table_len),
        (Part::Pending, pending.0, pending.1..pending.1 + pending_len),
    ]
}

impl Function for VfioFunction {
    fn config_space(&self) -> ConfigSpace {
        self.registers.power_on().clone()
    }

    fn read_config(&self, config: &mut ConfigSpace, offset: u16, data: &mut [u8]) {
        config.read(offset, data);
        for part in self.registers.own_parts(offset, data.len()) {
            let at = u64::from(offset) + part.start as u64;
            self.device.read(CONFIG, at, &mut data[part]);
        }
        self.registers.fix_status(offset, data);
    }

    fn write_config(&self, config: &mut ConfigSpace, offset: u16, data: &[u8]) -> Vec<BarMove> {
        let mut moves = config.write(offset, data);
        let mut wants_reset = false;
        for part in self.registers.own_parts(offset, data.len()) {
            let at = u64::from(offset) + part.start as u64;
            let mut bytes = data[part].to_vec();
            let reset_at = self.registers.reset_byte.map(u64::from);
            if let Some(byte) = reset_at
                .and_then(|reset| reset.checked_sub(at))
                .and_then(|index| bytes.get_mut(usize::try_from(index).ok()?))
            {
                wants_reset |= *byte & FUNCTION_LEVEL_RESET != 0;
                *byte &= !FUNCTION_LEVEL_RESET;
            }
            self.write_own(at, &mut bytes);
        }
        if wants_reset {
            self.power_on();
            moves = config.revert(self.registers.power_on());
        } else if usize::from(offset) < usize::from(COMMAND) + 2
            && usize::from(offset) + data.len() > usize::from(COMMAND)
        {
            self.write_command(config.command());
        }
        self.interrupts().config_written(config);
        moves
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        for (part, at, range) in self.cut(bar, offset, data.len()) {
            let data = &mut data[range];
            match part {
                Part::Device => self.device.read(bar.into(), at, data),
                Part::Table | Part::Pending => {
                    let interrupts = self.interrupts();
                    let Some(msix) = interrupts.msix() else { continue };
                    if part == Part::Table {
                        msix.read_table(at, data);
                    } else {
                        msix.read_pending(at, data);
                    }
                }
            }
        }
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        for (part, at, range) in self.cut(bar, offset, data.len()) {
            match part {
                Part::Device => self.device.write(bar.into(), at, &data[range]),
                Part::Table => self.interrupts().write_table(at, &data[range]),
                Part::Pending => {}
            }
        }
    }

    fn map_bar(&self, bar: u8, addr: u64) -> Result<(), HvError> {
        match self.regions.iter().find(|region| region.bar() == bar) {
            Some(region) => region.enter(&*self.platform, addr),
            None => Ok(()),
        }
    }

    fn unmap_bar(&self, bar: u8, addr: u64) {
        if let Some(region) = self.regions.iter().find(|region| region.bar() == bar) {
            region.leave(&*self.platform, addr);
        }
    }

    // A pause leaves the device alone. Only its own driver can stop it so that it goes on afterwards: with bus mastering taken
    // away, what it writes is lost, and its rings and the driver's idea of them part.

    fn reset(&self) {
        self.power_on();
    }
}
