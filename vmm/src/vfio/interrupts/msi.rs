//! The MSI capability: up to 32 vectors with one message, of which each vector changes the lowest bits.

use std::io;

use super::super::host::{HostDevice, Irq};
use super::super::registers::MsiLayout;
use crate::pci::platform::Vector;
use crate::pci::{ConfigSpace, Platform};

const ENABLE: u8 = 1;

/// The vectors of a device with MSI.
#[derive(Debug)]
pub(super) struct Msi {
    layout: MsiLayout,
    vectors: Vec<Box<dyn Vector>>,
    state: Option<State>,
}

/// What the registers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    addr: u64,
    data: u32,
    masked: u32,
}

impl Msi {
    pub(super) fn new(layout: MsiLayout) -> Self {
        Self {
            layout,
            vectors: Vec::new(),
            state: None,
        }
    }

    pub(super) fn is_enabled(&self, config: &ConfigSpace) -> bool {
        let [control] = config.get(self.layout.control);
        control & ENABLE != 0
    }

    /// The driver may use as many vectors as it has enabled, and no more than the device has.
    fn count(&self, config: &ConfigSpace) -> u32 {
        let [control] = config.get(self.layout.control);
        let (capable, enabled) = (control >> 1 & 7, control >> 4 & 7);
        1 << enabled.min(capable).min(5)
    }

    fn read(&self, config: &ConfigSpace) -> State {
        let at = self.layout.control + 2;
        let low = u32::from_le_bytes(config.get(at));
        let (high, data_at) = if self.layout.wide {
            (u32::from_le_bytes(config.get(at + 4)), at + 8)
        } else {
            (0, at + 4)
        };
        let masked = if self.layout.maskable {
            u32::from_le_bytes(config.get(data_at + 4))
        } else {
            0
        };
        State {
            addr: u64::from(high) << 32 | u64::from(low),
            data: u16::from_le_bytes(config.get(data_at)).into(),
            masked,
        }
    }

    /// Does what the registers of an enabled capability say.
    pub(super) fn settle(
        &mut self,
        config: &ConfigSpace,
        device: &dyn HostDevice,
        platform: &dyn Platform,
    ) -> io::Result<()> {
        let state = self.read(config);
        if self.state == Some(state) {
            return Ok(());
        }
        if self.vectors.is_empty() {
            let count = self.count(config).min(device.irq_count(Irq::Msi));
            let vectors: Result<Vec<_>, _> = (0..count).map(|_| platform.new_vector()).collect();
            self.vectors = vectors.map_err(io::Error::other)?;
            let events: Vec<_> = self.vectors.iter().map(|vector| Some(vector.irqfd())).collect();
            device.set_triggers(Irq::Msi, 0, &events)?;
        }
        let all = u32::try_from(self.vectors.len() - 1).unwrap_or(0);
        for (index, vector) in (0..).zip(&self.vectors) {
            let data = state.data & !all | index;
            vector.set_route(state.addr, data).map_err(io::Error::other)?;
            let change = if state.masked >> index & 1 == 0 {
                vector.unmask()
            } else {
                vector.mask()
            };
            change.map_err(io::Error::other)?;
        }
        self.state = Some(state);
        Ok(())
    }

    pub(super) fn take_down(&mut self) {
        self.vectors.clear();
        self.state = None;
    }
}
