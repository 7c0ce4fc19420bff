//! A function on a bus, with KVM behind it. Where there is no `/dev/kvm` there is nothing to test.

use std::sync::Arc;

use crate::bus::Bus;
use crate::hv::{HvError, Vm};
use crate::pci::root::number;
use crate::pci::{Function, Platform, Root, Windows};
use crate::virtio::pci::VirtioPci;
use crate::virtio::testing::{FakeDevice, ram};

const LOW: u64 = 0xc000_0000;
const HIGH: u64 = 0x40_0000_0000;

fn machine() -> Option<(Arc<Vm>, Arc<Bus>, Arc<Root>)> {
    let vm = match Vm::new() {
        Ok(vm) => vm,
        Err(HvError::Open(error)) => {
            eprintln!("not tested: /dev/kvm: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let mmio = Arc::new(Bus::new());
    let windows = Windows {
        mmio32: LOW..LOW + 0x10_0000,
        mmio64: HIGH..HIGH + 0x10_0000,
        ports: 0x1000..0x2000,
    };
    let root = Root::new(Arc::clone(&mmio), Arc::default(), windows);
    Some((vm, mmio, root))
}

fn function(vm: &Arc<Vm>) -> Arc<VirtioPci> {
    let (device, _) = FakeDevice::boxed(&[64; 9], 0);
    Arc::new(VirtioPci::new(device, ram(), Arc::clone(vm) as _).unwrap())
}

/// KVM has an ioeventfd at `addr`: it takes no second one.
fn is_registered(vm: &Vm, addr: u64) -> bool {
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let free = Platform::register_ioeventfd(vm, &event, addr).is_ok();
    if free {
        Platform::unregister_ioeventfd(vm, &event, addr).unwrap();
    }
    !free
}

#[test]
fn notification_addresses_are_where_the_bar_is() {
    let Some((vm, _, root)) = machine() else { return };
    let slot = root.add(function(&vm)).unwrap();
    let number = number(slot, 0);
    let last = 0x3000 + 4 * 8;
    assert!(is_registered(&vm, LOW + last) && !is_registered(&vm, LOW + last + 4));
    for to in [HIGH, HIGH + 0x8000, LOW, LOW + 0x8000] {
        root.write_config(number, 0x10, &to.to_le_bytes());
        assert!(is_registered(&vm, to + last), "{to:#x}");
        assert!(!is_registered(&vm, LOW + last) || to == LOW, "{to:#x}");
    }
    root.reset();
    assert!(is_registered(&vm, LOW + last) && !is_registered(&vm, LOW + 0x8000 + last));
    root.remove(slot).unwrap();
    assert!(!is_registered(&vm, LOW + last), "nothing is left behind");
    root.add(function(&vm)).unwrap();
    assert!(is_registered(&vm, LOW + last));
}

#[test]
fn vectors_are_masked_and_unmasked_as_often_as_one_likes() {
    let Some((vm, mmio, root)) = machine() else { return };
    let function = function(&vm);
    let slot = number(root.add(Arc::clone(&function) as Arc<dyn Function>).unwrap(), 0);
    // The first capability is that of MSI-X, and its control word has the enable bit on top.
    root.write_config(slot, 4, &[6, 0]);
    root.write_config(slot, 0x42, &0x8000u16.to_le_bytes());
    for round in 0u32..3 {
        for vector in 0..10 {
            let entry = LOW + 0x4000 + 16 * vector;
            mmio.write(entry, &(0xfee0_0000u64 + u64::from(round << 12)).to_le_bytes());
            mmio.write(entry + 8, &(0x20 + round).to_le_bytes());
            mmio.write(entry + 12, &0u32.to_le_bytes());
            mmio.write(entry + 8, &(0x40 + round).to_le_bytes());
            mmio.write(entry + 12, &1u32.to_le_bytes());
        }
    }
    let mut state = function.lock();
    state.msix.eventfd(9).unwrap().write(1).unwrap();
    let mut pending = [0; 2];
    state.msix.read_pending(0, &mut pending);
    assert_eq!(pending, [0, 2], "a masked vector is not in KVM's hands");
    state.msix.write_table(16 * 9 + 12, &[0]);
    state.msix.read_pending(0, &mut pending);
    assert_eq!(pending, [0, 0]);
}
