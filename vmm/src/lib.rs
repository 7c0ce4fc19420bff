//! A virtual machine monitor for Linux/KVM: one process per virtual machine.

pub mod memory;
pub mod virtio;
