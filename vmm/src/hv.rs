//! The hypervisor: KVM behind small types.
//!
//! A [`Vm`] is one virtual machine with its interrupt controllers; it follows guest RAM as a [`MemoryObserver`] and
//! puts it into KVM's memory slots. [`irq`] turns device interrupts into GSIs.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::board::layout;
use crate::memory::{MemoryObserver, RamRegion};
use device_memory::DeviceMemory;

pub mod chipset;
pub mod device_memory;
pub mod irq;
pub mod kick;
#[cfg(test)]
mod tests;
pub mod vcpu;

/// Why the hypervisor refused something.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// `/dev/kvm` could not be opened.
    #[error("/dev/kvm refused: {0}; `vmm check` names the cure")]
    Open(#[source] kvm_ioctls::Error),
    /// This KVM is not one that we can use.
    #[error("KVM on this host lacks {0}; use a newer kernel")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("KVM refused to {0}: {1}")]
    Ioctl(&'static str, #[source] kvm_ioctls::Error),
}

/// Adds what was tried to the error of a KVM call.
pub(crate) fn doing(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HvError {
    move |e| HvError::Ioctl(what, e)
}

/// One virtual machine in KVM.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    fd: Arc<VmFd>,
    msi: Arc<irq::MsiRouter>,
    /// What is in each slot.
    slots: Mutex<Vec<Option<Slot>>>,
}

/// A memory slot in use.
#[derive(Debug)]
struct Slot {
    guest_addr: u64,
    /// Keeps memory mapped that is not guest RAM.
    _memory: Option<Arc<DeviceMemory>>,
}

const KVM_API_VERSION: i32 = 12;
const NEEDED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::UserMemory, "user memory slots"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::ExtCpuid, "CPUID control"),
];

impl Vm {
    /// Opens KVM and makes a VM with in-kernel interrupt controllers and timer.
    pub fn new() -> Result<Arc<Self>, HvError> {
        let kvm = Kvm::new().map_err(HvError::Open)?;
        if kvm.get_api_version() != KVM_API_VERSION {
            return Err(HvError::Missing("API version 12"));
        }
        if let Some((_, what)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(HvError::Missing(what));
        }
        let fd = Arc::new(kvm.create_vm().map_err(doing("create a VM"))?);
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(doing("place its identity map"))?;
        fd.set_tss_address(usize::try_from(layout::KVM_TSS).expect("x86-64 only"))
            .map_err(doing("place its task state"))?;
        fd.create_irq_chip()
            .map_err(doing("create interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit).map_err(doing("create the interval timer"))?;
        let msi = irq::MsiRouter::new(Arc::clone(&fd))?;
        Ok(Arc::new(Self {
            kvm,
            fd,
            msi,
            slots: Mutex::default(),
        }))
    }

    /// KVM itself, for what it supports.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The VM's descriptor.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// Where devices get their message-signalled interrupts.
    pub fn msi(&self) -> &Arc<irq::MsiRouter> {
        &self.msi
    }

    /// A guest write of any width to the memory address `addr` signals `event` and does not leave the kernel.
    pub fn register_ioeventfd(&self, event: &EventFd, addr: u64) -> Result<(), HvError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(addr), NoDatamatch)
            .map_err(doing("register an ioeventfd"))
    }

    /// Undoes [`register_ioeventfd`](Self::register_ioeventfd); closing the descriptor does not.
    pub fn unregister_ioeventfd(&self, event: &EventFd, addr: u64) -> Result<(), HvError> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(addr), NoDatamatch)
            .map_err(doing("unregister an ioeventfd"))
    }

    /// Guest accesses at `guest_addr` go to `memory`, a device's, without leaving the kernel.
    pub fn map_memory(&self, guest_addr: u64, memory: &Arc<DeviceMemory>) -> Result<(), HvError> {
        let place = (guest_addr, memory.host_addr(), memory.len());
        self.fill_slot(place, Some(Arc::clone(memory)))
            .map_err(doing("map a device's memory"))
    }

    /// Undoes [`map_memory`](Self::map_memory).
    pub fn unmap_memory(&self, guest_addr: u64) -> Result<(), HvError> {
        self.clear_slot(guest_addr)
            .map_err(doing("unmap a device's memory"))
    }

    fn fill_slot(
        &self,
        (guest_addr, host_addr, len): (u64, u64, u64),
        memory: Option<Arc<DeviceMemory>>,
    ) -> Result<(), kvm_ioctls::Error> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        self.set_slot(slot, guest_addr, host_addr, len)?;
        if slot == slots.len() {
            slots.push(None);
        }
        slots[slot] = Some(Slot {
            guest_addr,
            _memory: memory,
        });
        Ok(())
    }

    fn clear_slot(&self, guest_addr: u64) -> Result<(), kvm_ioctls::Error> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let used = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.guest_addr == guest_addr);
        if let Some(slot) = slots.iter().position(used) {
            self.set_slot(slot, guest_addr, 0, 0)?;
            slots[slot] = None;
        }
        Ok(())
    }

    fn set_slot(
        &self,
        slot: usize,
        guest_addr: u64,
        host_addr: u64,
        len: u64,
    ) -> Result<(), kvm_ioctls::Error> {
        let memory = kvm_userspace_memory_region {
            slot: u32::try_from(slot).map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?,
            flags: 0,
            guest_phys_addr: guest_addr,
            memory_size: len,
            userspace_addr: host_addr,
        };
        // SAFETY: a RamRegion is a live mapping of `len` bytes at `host_addr`, and so is a DeviceMemory; whoever unmaps the
        // former takes it out of its slot first, by `ram_removed` or by dropping the VM, and the latter is kept by the slot.
        unsafe { self.fd.set_user_memory_region(memory) }
    }
}

impl MemoryObserver for Vm {
    fn name(&self) -> &'static str {
        "KVM"
    }

    fn ram_added(&self, region: &RamRegion) -> Result<(), String> {
        self.fill_slot((region.guest_addr, region.host_addr, region.len), None)
            .map_err(|e| e.to_string())
    }

    fn ram_removed(&self, region: &RamRegion) {
        if let Err(error) = self.clear_slot(region.guest_addr) {
            tracing::error!(%error, "KVM kept a memory slot that is no longer guest memory");
        }
    }
}
