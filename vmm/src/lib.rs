//! A virtual machine monitor for Linux/KVM: one process per virtual machine.

mod fd;
pub mod memory;
pub mod vhost_user;
pub mod virtio;
