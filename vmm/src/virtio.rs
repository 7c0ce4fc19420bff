//! Virtio devices as the guest sees them: the trait they implement and the PCI transport in front of them.

pub mod blk;
pub mod console;
pub mod device;
pub mod irq;
pub mod pci;
pub(crate) mod queue;
pub(crate) mod ring;
pub mod rng;
#[cfg(test)]
pub(crate) mod test_driver;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod worker;
