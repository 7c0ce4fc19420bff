//! Bus 0: the slots, the functions in them, and where in memory and among the ports these answer.

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
/// Functions of a slot.
const FUNCTIONS: usize = 8;
/// Offset of the header type, and its bit that says that there are more functions than the first.
const HEADER_TYPE: u16 = 0x0e;
const MULTI_FUNCTION: u8 = 1 << 7;
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
    /// I/O ports.
    pub ports: Range<u64>,
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
    /// The window of ports has no room for a BAR.
    #[error("PCI device refused: no {0:#x} free I/O ports; remove a device")]
    NoPorts(u64),
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
    #[error("BAR at {0:#x}+{1:#x} refused: not free, or not in a PCI window")]
    Unusable(u64, u64),
}

#[derive(Debug)]
struct Place {
    function: Arc<dyn Function>,
    config: ConfigSpace,
    /// Where the BARs were put at power-on.
    homes: Vec<(u8, u64)>,
}

/// What can be had at an address: one kind of address, who has which, and where in that the guest is heard.
#[derive(Debug)]
struct Space {
    taken: AddressAllocator,
    bus: Arc<Bus>,
}

#[derive(Debug)]
struct Inner {
    /// One for each function of the bus, by slot and function.
    places: Vec<Option<Place>>,
    memory: Space,
    ports: Space,
}

impl Inner {
    fn space(&mut self, kind: BarKind) -> &mut Space {
        match kind {
            BarKind::Ports => &mut self.ports,
            BarKind::Memory32 | BarKind::Memory64 | BarKind::Rom => &mut self.memory,
        }
    }

    fn slot(&self, slot: usize) -> &[Option<Place>] {
        let first = slot * FUNCTIONS;
        self.places.get(first..first + FUNCTIONS).unwrap_or_default()
    }
}

/// The number of a function on the bus.
pub fn number(slot: u8, function: u8) -> usize {
    usize::from(slot) * FUNCTIONS + usize::from(function)
}

/// The root of the PCI bus.
#[derive(Debug)]
pub struct Root {
    windows: Windows,
    inner: Mutex<Inner>,
}

impl Root {
    /// A bus with nothing but the host bridge on it. BARs answer on `mmio` and `pio`, inside `windows`.
    pub fn new(mmio: Arc<Bus>, pio: Arc<Bus>, windows: Windows) -> Arc<Self> {
        let memory = Space {
            taken: AddressAllocator::new(vec![windows.mmio32.clone(), windows.mmio64.clone()]),
            bus: mmio,
        };
        let ports = Space {
            taken: AddressAllocator::new(vec![windows.ports.clone()]),
            bus: pio,
        };
        let all = SLOTS * FUNCTIONS;
        let mut places: Vec<Option<Place>> = std::iter::repeat_with(|| None).take(all).collect();
        let bridge: Arc<dyn Function> = Arc::new(HostBridge);
        places[0] = Some(Place {
            config: bridge.config_space(),
            function: bridge,
            homes: Vec::new(),
        });
        Arc::new(Self {
            windows,
            inner: Mutex::new(Inner {
                places,
                memory,
                ports,
            }),
        })
    }

    /// Puts `function` into the first free slot, places its BARs and switches them on. Returns the slot. The guest
    /// sees the function only when all is in place.
    pub fn add(&self, function: Arc<dyn Function>) -> Result<u8, PciError> {
        self.add_from(0, vec![(0, function)], &[])
            .map_err(|error| match error {
                PciError::NoHotPlugSlot => PciError::NoSlot,
                other => other,
            })
    }

    /// Like `add`, into a slot whose functions can be taken out and put in while the guest runs, and none of `but`. The
    /// functions come with their numbers, of which 0 is one.
    pub fn add_hot_plug(&self, functions: Vec<(u8, Arc<dyn Function>)>, but: &[u8]) -> Result<u8, PciError> {
        self.add_from(usize::from(HOT_PLUG_SLOTS.start), functions, but)
    }

    fn add_from(
        &self,
        first: usize,
        functions: Vec<(u8, Arc<dyn Function>)>,
        but: &[u8],
    ) -> Result<u8, PciError> {
        let mut inner = self.lock();
        let is_free = |slot: &usize| {
            inner.slot(*slot).iter().all(Option::is_none) && but.iter().all(|but| usize::from(*but) != *slot)
        };
        let slot = (first..SLOTS).find(is_free).ok_or(PciError::NoHotPlugSlot)?;
        let slot = u8::try_from(slot).expect("32 slots");
        let mut placed = Vec::new();
        for (function_number, function) in functions {
            let (place, result) = Self::power_on(&self.windows, &mut inner, function);
            placed.push((number(slot, function_number), place));
            if let Err(error) = result {
                for (_, mut place) in placed {
                    Self::unmap(&mut inner, &mut place);
                }
                return Err(error);
            }
        }
        for (number, place) in placed {
            inner.places[number] = Some(place);
        }
        Ok(slot)
    }

    /// Puts the BARs of a function in place.
    fn power_on(
        windows: &Windows,
        inner: &mut Inner,
        function: Arc<dyn Function>,
    ) -> (Place, Result<(), PciError>) {
        let config = function.config_space();
        let mut place = Place {
            function,
            config,
            homes: Vec::new(),
        };
        // A ROM is off until software gives it an address.
        let mut bars: Vec<_> = place.config.bars().collect();
        bars.retain(|bar| bar.1 != BarKind::Rom);
        let result = bars
            .into_iter()
            .try_for_each(|(bar, kind, size)| Self::place(windows, inner, &mut place, bar, kind, size));
        (place, result)
    }

    /// Takes all functions out of `slot`. When this returns, the guest does not reach them any more.
    pub fn remove(&self, slot: u8) -> Result<(), PciError> {
        let mut inner = self.lock();
        let first = number(slot, 0);
        let places = inner.places.get_mut(first..first + FUNCTIONS).unwrap_or_default();
        let mut taken: Vec<Place> = places.iter_mut().filter_map(Option::take).collect();
        for place in &mut taken {
            Self::unmap(&mut inner, place);
            place.function.reset();
        }
        if taken.is_empty() {
            return Err(PciError::Empty(slot));
        }
        Ok(())
    }

    /// Resets all functions and puts their BARs where they were at power-on.
    pub fn reset(&self) {
        let mut inner = self.lock();
        let mut places = std::mem::take(&mut inner.places);
        for place in places.iter_mut().flatten() {
            Self::unmap(&mut inner, place);
            place.function.reset();
            place.config = place.function.config_space();
        }
        for place in places.iter_mut().flatten() {
            for &(bar, addr) in &place.homes {
                place.config.set_bar(bar, addr);
            }
            for step in place.config.enable_bars() {
                Self::try_move(&mut inner, place, &step);
            }
        }
        inner.places = places;
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
        for place in self.lock().places.iter().flatten() {
            act(&*place.function);
        }
    }

    /// Reads configuration space of the function with this [`number`]; ones if there is none.
    pub fn read_config(&self, number: usize, offset: u16, data: &mut [u8]) {
        let mut inner = self.lock();
        let Some(Some(place)) = inner.places.get_mut(number) else {
            data.fill(0xff);
            return;
        };
        place.function.read_config(&mut place.config, offset, data);
        let others = inner.slot(number / FUNCTIONS).iter().flatten().count();
        if let Some(byte) = HEADER_TYPE
            .checked_sub(offset)
            .and_then(|at| data.get_mut(usize::from(at)))
            && others > 1
        {
            *byte |= MULTI_FUNCTION;
        }
    }

    /// Writes configuration space of the function with this [`number`], and does what that asks for.
    pub fn write_config(&self, number: usize, offset: u16, data: &[u8]) {
        let mut inner = self.lock();
        let Some(mut place) = inner.places.get_mut(number).and_then(Option::take) else {
            return;
        };
        let moves = place.function.write_config(&mut place.config, offset, data);
        let freed = moves.iter().any(|step| step.from.is_some());
        for step in &moves {
            Self::try_move(&mut inner, &mut place, step);
        }
        inner.places[number] = Some(place);
        if freed {
            Self::retry_waiting(&mut inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(
        windows: &Windows,
        inner: &mut Inner,
        place: &mut Place,
        bar: u8,
        kind: BarKind,
        size: u64,
    ) -> Result<(), PciError> {
        let taken = &inner.space(kind).taken;
        let (addr, none) = match kind {
            BarKind::Memory64 if size > SMALL_BAR => {
                let high = taken.find_above(windows.mmio64.start, size);
                (high.or_else(|| taken.find(size)), PciError::NoSpace(size))
            }
            BarKind::Memory64 => (taken.find(size), PciError::NoSpace(size)),
            BarKind::Ports => (taken.find(size), PciError::NoPorts(size)),
            BarKind::Memory32 | BarKind::Rom => {
                let low = taken.find(size).filter(|addr| windows.mmio32.contains(addr));
                (low, PciError::NoSpace(size))
            }
        };
        let addr = addr.ok_or(none)?;
        place.config.set_bar(bar, addr);
        place.homes.push((bar, addr));
        for step in place.config.enable_bars() {
            if step.bar == bar {
                Self::attach(inner, place, &step)?;
                place.config.commit(&step);
            }
        }
        Ok(())
    }

    fn unmap(inner: &mut Inner, place: &mut Place) {
        for step in place.config.unmap_moves() {
            Self::detach(inner, place, &step);
            place.config.commit(&step);
        }
    }

    /// Carries `step` out, or leaves everything as it was.
    fn try_move(inner: &mut Inner, place: &mut Place, step: &BarMove) {
        Self::detach(inner, place, step);
        let Err(error) = Self::attach(inner, place, step) else {
            place.config.commit(step);
            return;
        };
        if step.partial {
            debug!(?step, %error, "BAR waits for the rest of its address");
        } else {
            debug!(?step, %error, "BAR does not go where software wants it");
        }
        place.config.roll_back(step);
        let back = BarMove {
            to: step.from,
            ..*step
        };
        if let Err(error) = Self::attach(inner, place, &back) {
            warn!(?back, %error, "BAR cannot go back either");
            place.config.commit(&BarMove { to: None, ..*step });
        }
    }

    /// A place became free: BARs that wait for one get another chance.
    fn retry_waiting(inner: &mut Inner) {
        for number in 0..inner.places.len() {
            let Some(mut place) = inner.places[number].take() else {
                continue;
            };
            for step in place.config.waiting_moves() {
                Self::try_move(inner, &mut place, &step);
            }
            inner.places[number] = Some(place);
        }
    }

    /// The old range is free for others only when nothing bypasses the bus there any more.
    fn detach(inner: &mut Inner, place: &Place, step: &BarMove) {
        if let Some(from) = step.from {
            place.function.unmap_bar(step.bar, from);
            let space = inner.space(step.kind);
            space.bus.remove(&(from..from.saturating_add(step.size)));
            space.taken.free(from);
        }
    }

    fn attach(inner: &mut Inner, place: &Place, step: &BarMove) -> Result<(), PciError> {
        let Some(to) = step.to else { return Ok(()) };
        let space = inner.space(step.kind);
        if !space.taken.reserve(to, step.size) {
            return Err(PciError::Unusable(to, step.size));
        }
        let range = to..to.saturating_add(step.size);
        let answering = Arc::new(BarRange {
            function: Arc::clone(&place.function),
            bar: step.bar,
        });
        if let Err(error) = space.bus.insert(range.clone(), answering) {
            space.taken.free(to);
            return Err(error.into());
        }
        if let Err(error) = place.function.map_bar(step.bar, to) {
            space.bus.remove(&range);
            space.taken.free(to);
            return Err(error.into());
        }
        Ok(())
    }
}

/// A BAR on its bus.
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
