//! A device of the host, as VFIO shows it: regions that are read, written and mapped, and interrupts that signal eventfds.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioDevice, VfioRegionInfoCap};
use vmm_sys_util::eventfd::EventFd;

use super::Bdf;
use super::hot_reset::{self, ResetError};
use super::irqs::{self, Use};
use super::registers::COMMAND;
use crate::hv::device_memory::DeviceMemory;

/// Number of the region that is configuration space. Those below are the BARs, and the ROM.
pub const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

/// Kinds of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Irq {
    /// The pin.
    Intx,
    /// Message-signalled, in the first form.
    Msi,
    /// Message-signalled, with a table.
    Msix,
    /// The device has failed.
    Error,
    /// The host wants the device back.
    Request,
}

impl Irq {
    fn index(self) -> u32 {
        match self {
            Self::Intx => VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
            Self::Error => VFIO_PCI_ERR_IRQ_INDEX,
            Self::Request => VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

/// What VFIO can do with a device.
pub trait HostDevice: fmt::Debug + Send + Sync {
    /// Length of a region; 0 where there is none.
    fn region_size(&self, region: u32) -> u64;
    /// The parts of a region that can be mapped.
    fn mappable(&self, region: u32) -> Vec<Range<u64>>;
    /// Maps a part of a region.
    fn map(&self, region: u32, part: Range<u64>) -> io::Result<DeviceMemory>;
    /// Reads from a region; ones where the device does not answer.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]);
    /// Writes to a region.
    fn write(&self, region: u32, offset: u64, data: &[u8]);
    /// How many interrupts of a kind it has.
    fn irq_count(&self, irq: Irq) -> u32;
    /// True if vectors can be added to those in use without taking all of them down.
    fn can_add_vectors(&self, irq: Irq) -> bool;
    /// Sets the eventfds that the interrupts from `start` on signal, or none.
    fn set_triggers(&self, irq: Irq, start: u32, events: &[Option<&EventFd>]) -> io::Result<()>;
    /// The pin stays masked after an interrupt until `event` is signalled.
    fn set_unmask(&self, event: &EventFd) -> io::Result<()>;
    /// No interrupt of this kind is delivered any more.
    fn disable(&self, irq: Irq) -> io::Result<()>;
    /// Resets it: alone, or together with all that is on its bus.
    fn reset(&self) -> Result<(), ResetError>;
}

/// The devices of a VM that are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers(Arc<Mutex<Vec<Weak<Physical>>>>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Physical>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, device: &Arc<Physical>) {
        let mut devices = self.lock();
        devices.retain(|device| device.strong_count() > 0);
        devices.push(Arc::downgrade(device));
    }

    /// True if the guest's driver uses the device at this address.
    fn is_used(&self, address: Bdf) -> bool {
        let devices: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        devices
            .iter()
            .any(|device| device.address == Some(address) && device.is_bus_master())
    }
}

/// A device that VFIO has opened.
pub struct Physical {
    device: VfioDevice,
    address: Option<Bdf>,
    peers: Peers,
}

impl fmt::Debug for Physical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Physical")
            .field("fd", &self.device.as_raw_fd())
            .finish_non_exhaustive()
    }
}

impl Physical {
    /// The device at `address`, if that is known, one of `peers` from now on.
    pub(super) fn new(device: VfioDevice, address: Option<Bdf>, peers: &Peers) -> Arc<Self> {
        let device = Arc::new(Self {
            device,
            address,
            peers: peers.clone(),
        });
        peers.add(&device);
        device
    }

    fn is_bus_master(&self) -> bool {
        const BUS_MASTER: u8 = 1 << 2;
        let mut command = [0; 2];
        self.read(CONFIG, COMMAND.into(), &mut command);
        command[0] & BUS_MASTER != 0
    }

    fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open for as long as the device lives, and the result borrows it.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }
}

impl HostDevice for Physical {
    fn region_size(&self, region: u32) -> u64 {
        self.device.get_region_size(region)
    }

    fn mappable(&self, region: u32) -> Vec<Range<u64>> {
        if self.device.get_region_flags(region) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Vec::new();
        }
        let caps = self.device.get_region_caps(region);
        let sparse = caps.iter().find_map(|cap| match cap {
            VfioRegionInfoCap::SparseMmap(sparse) => Some(&sparse.areas),
            _ => None,
        });
        match sparse {
            Some(areas) => areas
                .iter()
                .map(|area| area.offset..area.offset.saturating_add(area.size))
                .collect(),
            None => std::iter::once(0..self.region_size(region)).collect(),
        }
    }

    fn map(&self, region: u32, part: Range<u64>) -> io::Result<DeviceMemory> {
        let offset = self.device.get_region_offset(region) + part.start;
        DeviceMemory::map(self.file(), offset, part.end - part.start)
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.device.region_read(region, data, offset);
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) {
        self.device.region_write(region, data, offset);
    }

    fn irq_count(&self, irq: Irq) -> u32 {
        self.device.get_irq_info(irq.index()).map_or(0, |info| info.count)
    }

    fn can_add_vectors(&self, irq: Irq) -> bool {
        let info = self.device.get_irq_info(irq.index());
        info.is_some_and(|info| info.flags & VFIO_IRQ_INFO_NORESIZE == 0)
    }

    fn set_triggers(&self, irq: Irq, start: u32, events: &[Option<&EventFd>]) -> io::Result<()> {
        irqs::set(&self.device, irq.index(), start, events, Use::Trigger)
    }

    fn set_unmask(&self, event: &EventFd) -> io::Result<()> {
        irqs::set(&self.device, Irq::Intx.index(), 0, &[Some(event)], Use::Unmask)
    }

    fn disable(&self, irq: Irq) -> io::Result<()> {
        self.device.disable_irq(irq.index()).map_err(io::Error::other)
    }

    fn reset(&self) -> Result<(), ResetError> {
        hot_reset::reset(&self.device, |address| self.peers.is_used(address))
    }
}
