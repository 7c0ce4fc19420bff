//! The PCI transport: a virtio device as a PCI function of the modern kind (VIRTIO 1.3, section 4.1), without the
//! legacy interface.
//!
//! One 64-bit BAR holds everything, a page for each part:
//!
//! | offset | part                                              |
//! |--------|---------------------------------------------------|
//! | 0x0000 | common configuration                              |
//! | 0x1000 | ISR status                                        |
//! | 0x2000 | device-specific configuration                     |
//! | 0x3000 | notifications: four bytes for each queue          |
//! | 0x4000 | MSI-X table                                       |
//! | 0x5000 | MSI-X pending bits                                |
//!
//! Notifications never come here while the guest runs: each queue's address is an ioeventfd. Interrupts are MSI-X
//! only, one vector for each queue and one for configuration changes; there is no interrupt pin. A driver that does
//! not enable MSI-X has to poll. A function that is no bus master neither uses memory nor interrupts.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::capabilities::ConfigWindow;
use self::common::Common;
use super::device::VirtioDevice;
use crate::hv::HvError;
use crate::memory::GuestRam;
use crate::pci::msix::Msix;
use crate::pci::{BarKind, BarMove, ConfigSpace, Function, Platform};

mod capabilities;
mod common;
mod queue;
#[cfg(test)]
mod tests;

/// The BAR that everything is in.
const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const PAGE: u64 = 0x1000;
const NOTIFY: u64 = 0x3000;
/// Bytes between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
/// As many as the table's page has room for.
const MAX_VECTORS: u16 = 256;

/// Why a device could not be put behind a PCI transport.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// An eventfd could not be made.
    #[error("virtio device refused by the host: {0}; check the limit on open files")]
    EventFd(#[from] io::Error),
    /// Interrupt vectors could not be made.
    #[error("virtio device refused: {0}")]
    Vectors(#[from] HvError),
}

/// A virtio device as a PCI function.
#[derive(Debug)]
pub struct VirtioPci {
    platform: Arc<dyn Platform>,
    /// Of each queue, for the driver's notifications.
    kicks: Vec<EventFd>,
    config_space: ConfigSpace,
    window: ConfigWindow,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    common: Common,
    msix: Msix,
}

impl VirtioPci {
    /// Puts `device` behind a transport. Its queues are in `ram`.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        platform: Arc<dyn Platform>,
    ) -> Result<Self, TransportError> {
        let queues = device.queue_max_sizes().len();
        let kicks = (0..queues)
            .map(|_| EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<io::Result<Vec<_>>>()?;
        let vectors = u16::try_from(queues + 1).map_or(MAX_VECTORS, |count| count.min(MAX_VECTORS));
        let mut msix = Msix::new(vectors, &*platform)?;

        let mut config_space = ConfigSpace::new(&capabilities::identity(device.device_type()));
        config_space.add_bar(BAR, BarKind::Memory64, BAR_SIZE);
        msix.add_capability(&mut config_space, BAR, MSIX_TABLE, MSIX_PENDING);
        let window = capabilities::add(&mut config_space);
        let common = Common::new(device, ram);
        Ok(Self {
            platform,
            kicks,
            config_space,
            window,
            state: Mutex::new(State { common, msix }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify_addr(bar_addr: u64, queue: usize) -> u64 {
        bar_addr + NOTIFY + queue as u64 * u64::from(NOTIFY_MULTIPLIER)
    }

    /// A notification that did not take the way through the ioeventfd.
    fn notify(&self, offset: u64) {
        let multiplier = u64::from(NOTIFY_MULTIPLIER);
        if offset.is_multiple_of(multiplier)
            && let Some(kick) = usize::try_from(offset / multiplier)
                .ok()
                .and_then(|queue| self.kicks.get(queue))
        {
            // An eventfd that is full is signalled already.
            let _ = kick.write(1);
        }
    }
}

impl Function for VirtioPci {
    fn config_space(&self) -> ConfigSpace {
        self.config_space.clone()
    }

    fn read_config(&self, config: &mut ConfigSpace, offset: u16, data: &mut [u8]) {
        if let Some((bar_offset, len)) = self.window.hit(config, offset, data.len()) {
            let mut value = [0; 4];
            self.read_bar(BAR, bar_offset, &mut value[..len]);
            self.window.set_data(config, value);
        }
        config.read(offset, data);
    }

    fn write_config(&self, config: &mut ConfigSpace, offset: u16, data: &[u8]) -> Vec<BarMove> {
        let moves = config.write(offset, data);
        if let Some((bar_offset, len)) = self.window.hit(config, offset, data.len()) {
            let value = self.window.data(config);
            self.write_bar(BAR, bar_offset, &value[..len]);
        }
        let mut state = self.lock();
        state.msix.config_written(config);
        state.common.set_bus_master(config.bus_master(), &self.kicks);
        drop(state);
        moves
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar != BAR {
            return;
        }
        let at = offset % PAGE;
        let mut state = self.lock();
        let State { common, msix } = &mut *state;
        match offset / PAGE {
            0 => common.read(msix, at, data),
            1 => common.read_isr(at, data),
            2 => common.read_device(at, data),
            4 => msix.read_table(at, data),
            5 => msix.read_pending(at, data),
            _ => {}
        }
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar != BAR {
            return;
        }
        let at = offset % PAGE;
        let mut state = self.lock();
        let State { common, msix } = &mut *state;
        match offset / PAGE {
            0 => common.write(msix, &self.kicks, at, data),
            2 => common.write_device(at, data),
            3 => self.notify(at),
            4 => msix.write_table(at, data),
            _ => {}
        }
    }

    fn map_bar(&self, _bar: u8, addr: u64) -> Result<(), HvError> {
        for (queue, kick) in self.kicks.iter().enumerate() {
            if let Err(error) = self
                .platform
                .register_ioeventfd(kick, Self::notify_addr(addr, queue))
            {
                for (done, kick) in self.kicks[..queue].iter().enumerate() {
                    self.unregister(done, kick, addr);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn unmap_bar(&self, _bar: u8, addr: u64) {
        for (queue, kick) in self.kicks.iter().enumerate() {
            self.unregister(queue, kick, addr);
        }
    }

    fn reset(&self) {
        let mut state = self.lock();
        state.common.reset(&self.kicks);
        state.common.set_bus_master(false, &self.kicks);
        state.common.set_held(false, &self.kicks);
        state.msix.reset();
    }

    fn pause(&self) {
        self.lock().common.set_held(true, &self.kicks);
    }

    fn resume(&self) {
        self.lock().common.set_held(false, &self.kicks);
    }
}

impl VirtioPci {
    fn unregister(&self, queue: usize, kick: &EventFd, bar_addr: u64) {
        let addr = Self::notify_addr(bar_addr, queue);
        if let Err(error) = self.platform.unregister_ioeventfd(kick, addr) {
            warn!(queue, %error, "notification address stays in KVM");
        }
    }
}
