//! MSI-X: the capability, the table and the pending bits of a function.
//!
//! A vector is delivered while MSI-X is enabled, the function is a bus master, and neither it nor the vector is masked:
//!
//! ```text
//!   masked, disabled, no master  ──► Vector::mask          (signals become pending)
//!   none of these                ──► Vector::set_route, Vector::unmask
//!   message changed while clear  ──► Vector::set_route     (KVM goes on with the new one)
//! ```

use std::sync::Arc;

use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

use super::config::ConfigSpace;
use super::platform::{Platform, Vector};
use crate::hv::HvError;

#[cfg(test)]
mod tests;

/// Capability ID.
const CAPABILITY: u8 = 0x11;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const ENTRY_LEN: u64 = 16;
/// More than that the capability cannot say.
const MAX_VECTORS: u16 = 2048;

/// The vectors of a function.
#[derive(Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    control: u16,
    /// The function may send messages.
    bus_master: bool,
    /// Offset of the control word in configuration space.
    control_at: Option<u16>,
    /// Where vectors come from that are made when they are first used.
    platform: Option<Arc<dyn Platform>>,
}

#[derive(Debug)]
struct Entry {
    addr: u64,
    data: u32,
    masked: bool,
    /// `None` until it is used, where vectors are made late.
    vector: Option<Box<dyn Vector>>,
    /// Delivery is on.
    live: bool,
}

impl Entry {
    const RESET_MASKED: bool = true;

    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12] = u8::from(self.masked);
        bytes
    }

    /// Takes over the registers from their bytes; true if the message changed.
    fn load(&mut self, bytes: &[u8; 16]) -> bool {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        // The two lowest bits of the address are reserved, as are all but the lowest of the control word.
        let addr = u64::from(word(4)) << 32 | u64::from(word(0) & !0b11);
        let data = word(8);
        let changed = (addr, data) != (self.addr, self.data);
        (self.addr, self.data, self.masked) = (addr, data, word(12) & 1 != 0);
        changed
    }

    fn settle(&mut self, deliver: bool, message_changed: bool) -> Result<(), HvError> {
        let Some(vector) = &self.vector else {
            return Ok(());
        };
        if deliver {
            if !self.live || message_changed {
                vector.set_route(self.addr, self.data)?;
            }
            if !self.live {
                vector.unmask()?;
            }
        } else if self.live {
            vector.mask()?;
        }
        self.live = deliver;
        Ok(())
    }
}

impl Msix {
    /// `count` vectors, all masked.
    pub fn new(count: u16, platform: &dyn Platform) -> Result<Self, HvError> {
        let mut msix = Self::empty(count);
        for entry in &mut msix.entries {
            entry.vector = Some(platform.new_vector()?);
        }
        Ok(msix)
    }

    /// `count` vectors, each made when it is first delivered, for a capability whose control word is at `control_at`.
    pub fn late(count: u16, platform: Arc<dyn Platform>, control_at: u16) -> Self {
        Self {
            platform: Some(platform),
            control_at: Some(control_at),
            ..Self::empty(count)
        }
    }

    fn empty(count: u16) -> Self {
        let entry = || Entry {
            addr: 0,
            data: 0,
            masked: Entry::RESET_MASKED,
            vector: None,
            live: false,
        };
        Self {
            entries: std::iter::repeat_with(entry)
                .take(count.clamp(1, MAX_VECTORS).into())
                .collect(),
            control: 0,
            bus_master: false,
            control_at: None,
            platform: None,
        }
    }

    /// The driver has MSI-X switched on.
    pub fn is_enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    /// `vector` is delivered: nothing masks it.
    pub fn is_live(&self, vector: u16) -> bool {
        self.entries
            .get(usize::from(vector))
            .is_some_and(|entry| entry.live)
    }

    /// How many vectors there are up to the last that the driver has given a message.
    pub fn programmed(&self) -> u16 {
        let last = self.entries.iter().rposition(|entry| entry.addr != 0);
        last.and_then(|last| u16::try_from(last + 1).ok()).unwrap_or(0)
    }

    /// Number of vectors.
    pub fn len(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(MAX_VECTORS)
    }

    /// True without vectors, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds the capability, with table and pending bits at these offsets of `bar`.
    pub fn add_capability(&mut self, config: &mut ConfigSpace, bar: u8, table: u32, pending: u32) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.len() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        let mut writable = [0; 10];
        writable[..2].copy_from_slice(&(CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes());
        self.control_at = Some(config.add_capability(CAPABILITY, &body, &writable) + 2);
    }

    /// Follows the control word and the bus master bit after a write to configuration space.
    pub fn config_written(&mut self, config: &ConfigSpace) {
        let Some(at) = self.control_at else { return };
        let control = u16::from_le_bytes(config.get(at)) & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        let bus_master = config.bus_master();
        if (control, bus_master) != (self.control, self.bus_master) {
            (self.control, self.bus_master) = (control, bus_master);
            for index in 0..self.entries.len() {
                self.settle(index, false);
            }
        }
    }

    /// The eventfd that raises `vector`; `None` if there is no such vector or no descriptor to be had.
    pub fn eventfd(&self, vector: u16) -> Option<EventFd> {
        let entry = self.entries.get(usize::from(vector))?;
        entry
            .vector
            .as_ref()?
            .irqfd()
            .try_clone()
            .inspect_err(|error| warn!(%error, "interrupt vector"))
            .ok()
    }

    /// Reads from the table. Any width and alignment.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= self.table_len() {
            return;
        }
        for (at, byte) in (offset..).zip(data) {
            let entry = usize::try_from(at / ENTRY_LEN)
                .ok()
                .and_then(|index| self.entries.get(index));
            *byte = entry.map_or(0, |entry| entry.bytes()[within(at)]);
        }
    }

    /// Writes to the table. Any width and alignment; the registers that an access covers change together.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if offset >= self.table_len() {
            return;
        }
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let start = within(at);
            let len = rest.len().min(16 - start);
            let (now, later) = rest.split_at(len);
            if let Ok(index) = usize::try_from(at / ENTRY_LEN)
                && let Some(entry) = self.entries.get_mut(index)
            {
                let mut bytes = entry.bytes();
                bytes[start..start + len].copy_from_slice(now);
                let message_changed = entry.load(&bytes);
                self.settle(index, message_changed);
            }
            at += len as u64;
            rest = later;
        }
    }

    /// Reads the pending bits. They cannot be written.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= self.table_len() {
            return;
        }
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let bits = self.entries.iter().skip(first).take(8).enumerate();
            *byte = bits.fold(0, |bits, (bit, entry)| bits | u8::from(entry.is_pending()) << bit);
        }
    }

    /// Back to the state after power-on: disabled, all vectors masked, nothing pending.
    pub fn reset(&mut self) {
        self.control = 0;
        self.bus_master = false;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            (entry.addr, entry.data, entry.masked) = (0, 0, Entry::RESET_MASKED);
            entry.live = false;
            if let Some(vector) = &entry.vector
                && let Err(error) = vector.reset()
            {
                warn!(index, %error, "MSI-X vector could not be reset");
            }
        }
    }

    /// Length of the table.
    pub fn table_len(&self) -> u64 {
        u64::from(self.len()) * ENTRY_LEN
    }

    fn settle(&mut self, index: usize, message_changed: bool) {
        let enabled = self.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) == CONTROL_ENABLE;
        let function_on = enabled && self.bus_master;
        let entry = &mut self.entries[index];
        let deliver = function_on && !entry.masked;
        if deliver
            && entry.vector.is_none()
            && let Some(platform) = &self.platform
        {
            match platform.new_vector() {
                Ok(vector) => entry.vector = Some(vector),
                Err(error) => warn!(index, %error, "no MSI-X vector to be had"),
            }
        }
        if let Err(error) = entry.settle(deliver, message_changed) {
            warn!(index, deliver, %error, "MSI-X vector does not do what its driver asked for");
        }
    }
}

impl Entry {
    /// Pending bits exist for what a mask holds back; nothing is held back from a vector that is delivered.
    fn is_pending(&self) -> bool {
        !self.live && self.vector.as_ref().is_some_and(|vector| vector.is_pending())
    }
}

fn within(at: u64) -> usize {
    usize::try_from(at % ENTRY_LEN).expect("below 16")
}
