//! Virtio devices as the guest sees them: the trait they implement and the PCI transport in front of them.

pub mod device;
pub mod irq;
pub mod pci;
