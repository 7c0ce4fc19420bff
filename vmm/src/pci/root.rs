//! Bus 0: the slots, and where in memory their functions answer.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{debug, warn};

use super::allocator::AddressAllocator;
use super::config::{BarKind, BarMove, ConfigSpace};
use super::function::Function;
use super::host_bridge::HostBridge;
use crate::bus::{Bus, BusDevice, BusError};
use crate::hv::HvError;

#[cfg(test)]
mod tests;

/// Slots of a bus.
const SLOTS: usize = 32;
/// The slots whose functions come and go while the guest runs.
pub const HOT_PLUG_SLOTS: Range<u8> = 16..32;
/// 64-bit BARs up to this size go below 4 GiB first: there every guest reaches them, whatever its address width.
const SMALL_BAR: u64 = 1 << 20;

/// The addresses that BARs may answer at. The guest's firmware tables have to say the same.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Below 4 GiB.
    pub mmio32: Range<u64>,
    /// Above.
    pub mmio64: Range<u64>,
}

/// Why a function could not be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// All slots are taken.
    #[error("PCI device refused: all {SLOTS} slots of the bus are taken; remove a device")]
    NoSlot,
    /// All slots for hot-plug are taken.
    #[error("PCI device refused: all {n} slots for hot-plug are taken; remove a device", n = HOT_PLUG_SLOTS.len())]
    NoHotPlugSlot,
    /// A window has no room for a BAR.
    #[error("PCI device refused: no free {0:#x} bytes in the PCI memory windows; remove a device")]
    NoSpace(u64),
    /// There is nothing in the slot.
    #[error("PCI slot {0} is empty; look the device up again")]
    Empty(u8),
    /// The memory bus refused a range.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// KVM refused something.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    /// Software asked for an address that is taken or not in a window.
    #[error("BAR at {0:#x}+{1:#x} refused: not free, or not in a PCI memory window")]
    Unusable(u64, u64),
}

#[derive(Debug)]
struct Slot {
    function: Arc<dyn Function>,
    config: ConfigSpace,
    /// Where the BARs were put at power-on.
    homes: Vec<(u8, u64)>,
}

#[derive(Debug)]
struct Inner {
    /// One for each slot of the bus.
    slots: Vec<Option<Slot>>,
    space: AddressAllocator,
}

/// The root of the PCI bus.
#[derive(Debug)]
pub struct Root {
    mmio: Arc<Bus>,
    windows: Windows,
    inner: Mutex<Inner>,
}

impl Root {
    /// A bus with nothing but the host bridge on it. BARs answer on `mmio`, inside `windows`.
    pub fn new(mmio: Arc<Bus>, windows: Windows) -> Arc<Self> {
        let space = AddressAllocator::new(vec![windows.mmio32.clone(), windows.mmio64.clone()]);
        let mut slots: Vec<Option<Slot>> = std::iter::repeat_with(|| None).take(SLOTS).collect();
        let bridge: Arc<dyn Function> = Arc::new(HostBridge);
        slots[0] = Some(Slot {
            config: bridge.config_space(),
            function: bridge,
            homes: Vec::new(),
        });
        Arc::new(Self {
            mmio,
            windows,
            inner: Mutex::new(Inner { slots, space }),
        })
    }

    /// Puts `function` into the first free slot, places its BARs and switches them on. Returns the slot. The guest
    /// sees the function only when all is in place.
    pub fn add(&self, function: Arc<dyn Function>) -> Result<u8, PciError> {
        self.add_from(0, function, &[]).map_err(|error| match error {
            PciError::NoHotPlugSlot => PciError::NoSlot,
            other => other,
        })
    }

    /// Like `add`, into a slot whose function can be taken out and put in while the guest runs, and none of `but`.
    pub fn add_hot_plug(&self, function: Arc<dyn Function>, but: &[u8]) -> Result<u8, PciError> {
        self.add_from(usize::from(HOT_PLUG_SLOTS.start), function, but)
    }

    fn add_from(&self, first: usize, function: Arc<dyn Function>, but: &[u8]) -> Result<u8, PciError> {
        let mut inner = self.lock();
        let number = (first..SLOTS)
            .find(|slot| inner.slots[*slot].is_none() && but.iter().all(|but| usize::from(*but) != *slot))
            .ok_or(PciError::NoHotPlugSlot)?;
        let config = function.config_space();
        let mut slot = Slot {
            function,
            config,
            homes: Vec::new(),
        };
        // A ROM is off until software gives it an address.
        let bars: Vec<_> = slot.config.bars().filter(|bar| bar.1 != BarKind::Rom).collect();
        for (bar, kind, size) in bars {
            if let Err(error) = self.place(&mut inner, &mut slot, bar, kind, size) {
                self.unmap(&mut inner, &mut slot);
                return Err(error);
            }
        }
        inner.slots[number] = Some(slot);
        Ok(u8::try_from(number).expect("32 slots"))
    }

    /// Takes the function out of `slot`. When this returns, the guest does not reach it any more.
    pub fn remove(&self, slot: u8) -> Result<Arc<dyn Function>, PciError> {
        let mut inner = self.lock();
        let taken = inner.slots.get_mut(usize::from(slot)).and_then(Option::take);
        let mut taken = taken.ok_or(PciError::Empty(slot))?;
        self.unmap(&mut inner, &mut taken);
        taken.function.reset();
        Ok(taken.function)
    }

    /// Resets all functions and puts their BARs where they were at power-on.
    pub fn reset(&self) {
        let mut inner = self.lock();
        let mut slots = std::mem::take(&mut inner.slots);
        for slot in slots.iter_mut().flatten() {
            self.unmap(&mut inner, slot);
            slot.function.reset();
            slot.config = slot.function.config_space();
        }
        for slot in slots.iter_mut().flatten() {
            for &(bar, addr) in &slot.homes {
                slot.config.set_bar(bar, addr);
            }
            for step in slot.config.enable_memory() {
                self.try_move(&mut inner, slot, &step);
            }
        }
        inner.slots = slots;
    }

    /// Has every function keep away from guest memory. The guest does not run meanwhile.
    pub fn pause(&self) {
        self.each(|function| function.pause());
    }

    /// Lets every function go on.
    pub fn resume(&self) {
        self.each(|function| function.resume());
    }

    fn each(&self, act: impl Fn(&dyn Function)) {
        for slot in self.lock().slots.iter().flatten() {
            act(&*slot.function);
        }
    }

    /// Reads configuration space of the function in `slot`; ones if there is none.
    pub fn read_config(&self, slot: usize, offset: u16, data: &mut [u8]) {
        match self.lock().slots.get_mut(slot) {
            Some(Some(slot)) => slot.function.read_config(&mut slot.config, offset, data),
            _ => data.fill(0xff),
        }
    }

    /// Writes configuration space of the function in `slot`, and does what that asks for.
    pub fn write_config(&self, number: usize, offset: u16, data: &[u8]) {
        let mut inner = self.lock();
        let Some(mut slot) = inner.slots.get_mut(number).and_then(Option::take) else {
            return;
        };
        let moves = slot.function.write_config(&mut slot.config, offset, data);
        let freed = moves.iter().any(|step| step.from.is_some());
        for step in &moves {
            self.try_move(&mut inner, &mut slot, step);
        }
        inner.slots[number] = Some(slot);
        if freed {
            self.retry_waiting(&mut inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(
        &self,
        inner: &mut Inner,
        slot: &mut Slot,
        bar: u8,
        kind: BarKind,
        size: u64,
    ) -> Result<(), PciError> {
        let addr = match kind {
            BarKind::Memory64 if size > SMALL_BAR => inner
                .space
                .find_above(self.windows.mmio64.start, size)
                .or_else(|| inner.space.find(size)),
            BarKind::Memory64 => inner.space.find(size),
            BarKind::Memory32 | BarKind::Rom => inner
                .space
                .find(size)
                .filter(|addr| self.windows.mmio32.contains(addr)),
        };
        let addr = addr.ok_or(PciError::NoSpace(size))?;
        slot.config.set_bar(bar, addr);
        slot.homes.push((bar, addr));
        for step in slot.config.enable_memory() {
            if step.bar == bar {
                self.attach(inner, slot, &step)?;
                slot.config.commit(&step);
            }
        }
        Ok(())
    }

    fn unmap(&self, inner: &mut Inner, slot: &mut Slot) {
        for step in slot.config.unmap_moves() {
            self.detach(inner, slot, &step);
            slot.config.commit(&step);
        }
    }

    /// Carries `step` out, or leaves everything as it was.
    fn try_move(&self, inner: &mut Inner, slot: &mut Slot, step: &BarMove) {
        self.detach(inner, slot, step);
        let Err(error) = self.attach(inner, slot, step) else {
            slot.config.commit(step);
            return;
        };
        if step.partial {
            debug!(?step, %error, "BAR waits for the rest of its address");
        } else {
            debug!(?step, %error, "BAR does not go where software wants it");
        }
        slot.config.roll_back(step);
        let back = BarMove {
            to: step.from,
            ..*step
        };
        if let Err(error) = self.attach(inner, slot, &back) {
            warn!(?back, %error, "BAR cannot go back either");
            slot.config.commit(&BarMove { to: None, ..*step });
        }
    }

    /// A place became free: BARs that wait for one get another chance.
    fn retry_waiting(&self, inner: &mut Inner) {
        for number in 0..SLOTS {
            let Some(mut slot) = inner.slots[number].take() else {
                continue;
            };
            for step in slot.config.waiting_moves() {
                self.try_move(inner, &mut slot, &step);
            }
            inner.slots[number] = Some(slot);
        }
    }

    /// The old range is free for others only when nothing bypasses the bus there any more.
    fn detach(&self, inner: &mut Inner, slot: &Slot, step: &BarMove) {
        if let Some(from) = step.from {
            slot.function.unmap_bar(step.bar, from);
            self.mmio.remove(&(from..from.saturating_add(step.size)));
            inner.space.free(from);
        }
    }

    fn attach(&self, inner: &mut Inner, slot: &Slot, step: &BarMove) -> Result<(), PciError> {
        let Some(to) = step.to else { return Ok(()) };
        if !inner.space.reserve(to, step.size) {
            return Err(PciError::Unusable(to, step.size));
        }
        let range = to..to.saturating_add(step.size);
        let answering = Arc::new(BarRange {
            function: Arc::clone(&slot.function),
            bar: step.bar,
        });
        if let Err(error) = self.mmio.insert(range.clone(), answering) {
            inner.space.free(to);
            return Err(error.into());
        }
        if let Err(error) = slot.function.map_bar(step.bar, to) {
            self.mmio.remove(&range);
            inner.space.free(to);
            return Err(error.into());
        }
        Ok(())
    }
}

/// A BAR on the memory bus.
struct BarRange {
    function: Arc<dyn Function>,
    bar: u8,
}

impl BusDevice for BarRange {
    fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.function.read_bar(self.bar, offset, data);
    }

    fn write(&self, _base: u64, offset: u64, data: &[u8]) {
        self.function.write_bar(self.bar, offset, data);
    }
}
