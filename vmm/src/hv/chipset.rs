//! The in-kernel interrupt controllers and timer, as a whole: their state after power-on, for reset.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use super::{HvError, doing};

/// A saved state.
pub struct ChipsetState {
    chips: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
}

impl std::fmt::Debug for ChipsetState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChipsetState").finish_non_exhaustive()
    }
}

impl ChipsetState {
    /// Takes down the state of the VM's controllers.
    pub fn save(vm: &VmFd) -> Result<Self, HvError> {
        let mut chips = Vec::new();
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(doing("read its interrupt controllers"))?;
            chips.push(chip);
        }
        let timer = vm.get_pit2().map_err(doing("read its interval timer"))?;
        Ok(Self { chips, timer })
    }

    /// Sets the VM's controllers to the state that was saved.
    pub fn restore(&self, vm: &VmFd) -> Result<(), HvError> {
        for chip in &self.chips {
            vm.set_irqchip(chip)
                .map_err(doing("reset its interrupt controllers"))?;
        }
        vm.set_pit2(&self.timer)
            .map_err(doing("reset its interval timer"))
    }
}
