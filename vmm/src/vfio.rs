//! PCI devices of the host, given to the guest through VFIO.
//!
//! ```text
//!   host::HostDevice (VFIO: regions, interrupts, reset) ◄── VfioFunction ──► pci::Root
//!        ▲                                                     │  registers: which registers are the device's own
//!        │                                                     │  regions:   BARs mapped into the guest, but for MSI-X pages
//!   dma::DmaSpace: guest RAM in the IOMMU                      └─ interrupts: INTx, MSI, MSI-X through eventfds into KVM
//! ```
//!
//! The guest drives the real device: its registers are mapped into the guest, it reads and writes guest RAM by itself, and its
//! interrupts go from the host's kernel into KVM. Only configuration space and the MSI-X table pass through this process.

use std::path::PathBuf;

use vfio_ioctls::VfioError;

pub mod address;
pub mod dma;
mod function;
pub mod host;
mod hot_reset;
mod interrupts;
mod irqs;
mod regions;
mod registers;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod watch;

pub use address::{Bdf, Source};
pub use function::VfioFunction;

/// Why a device of the host could not be given to the guest.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such device.
    #[error("device {0} refused: there is none; `sriov list` shows the host's devices")]
    Missing(Source),
    /// Its driver is another one.
    #[error("device {0} refused: it is driven by {1}, not by vfio-pci; run `sriov bind {0}` first")]
    OtherDriver(Source, String),
    /// It is behind no IOMMU.
    #[error("device {0} refused: no IOMMU guards it; `sriov check` names the cure")]
    NoIommu(Source),
    /// Somebody else has it.
    #[error("device {0} refused: IOMMU group {1} is in use; end the VM that has a device of it")]
    InUse(Source, String),
    /// The host's drivers have others of its group.
    #[error(
        "device {0} refused: another device of its IOMMU group has a driver of the host; run `sriov bind {0} --group`"
    )]
    NotViable(Source),
    /// This process may not.
    #[error("device {0} refused: {1} cannot be opened: {2}; run as root or be given the file")]
    Permission(Source, PathBuf, std::io::Error),
    /// A descriptor is none of a device.
    #[error(
        "device {0} refused: not a descriptor that can be used: {1}; pass an open /dev/vfio/devices/vfioN"
    )]
    Descriptor(Source, std::io::Error),
    /// Guest memory could not be mapped for it.
    #[error("device {0} refused: {1}")]
    Memory(Source, String),
    /// VFIO refused.
    #[error("device {0} refused by VFIO: {1}; `sriov check` explains what stands in the way")]
    Vfio(Source, VfioError),
    /// KVM refused.
    #[error("device {0} refused: {1}")]
    Hypervisor(Source, crate::hv::HvError),
    /// It has a layout that we cannot give to a guest.
    #[error("device {0} refused: {1}")]
    Unsupported(Source, String),
}
