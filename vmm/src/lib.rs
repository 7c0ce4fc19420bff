//! The virtual machine monitor: one process runs one VM on KVM.
//!
//! The VMM owns CPUs, memory, the PCI bus and disks. It never touches a packet: guest memory goes to the network
//! back-end by descriptor, and notifications go between guest and back-end through eventfds inside the kernel.

pub mod api;
pub mod board;
pub mod bus;
pub mod check;
pub mod cli;
pub mod client;
mod fd;
pub mod hv;
pub mod listener;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod serial;
pub mod vfio;
pub mod vhost_user;
pub mod virtio;
