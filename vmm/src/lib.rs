//! The virtual machine monitor: one process runs one VM on KVM.
//!
//! The VMM owns CPUs, memory, the PCI bus and disks. It never touches a packet: guest memory goes to the network
//! back-end by descriptor, and notifications go between guest and back-end through eventfds inside the kernel.

pub mod board;
pub mod bus;
mod fd;
pub mod hv;
pub mod listener;
pub mod loader;
pub mod memory;
pub mod pci;
pub mod vhost_user;
pub mod virtio;
