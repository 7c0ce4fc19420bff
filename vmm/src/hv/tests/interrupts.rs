//! Message-signalled interrupts on their way into the guest.

use super::*;
use crate::hv::irq::MsiVector;

const LAPIC_SPURIOUS: u32 = 0xfee0_00f0;
const LAPIC_EOI: u32 = 0xfee0_00b0;
const HANDLERS: u64 = 0x4000;
const READY: u8 = 0xee;

/// A message for the first processor.
fn message(vector: u8) -> (u64, u32) {
    (0xfee0_0000, u32::from(vector))
}

/// A guest that tells the number of each interrupt among `vectors`, and waits for the next one.
fn rig(vectors: &[u8]) -> Option<Rig> {
    let start = [
        // lidt [IDT - 8]
        &[0x0f, 0x01, 0x1d][..],
        &u32::try_from(IDT - 8).unwrap().to_le_bytes(),
        &store(LAPIC_SPURIOUS, 0x1ff),
        &tell(READY),
    ]
    .concat();
    let wait = u32::try_from(CODE).unwrap() + u32::try_from(start.len()).unwrap();
    // mov esp, 0x9000; sti; hlt; jmp -4
    let program = [&start[..], &[0xbc, 0, 0x90, 0, 0, 0xfb, 0xf4, 0xeb, 0xfc]].concat();
    let rig = Rig::new(&program)?;
    let mem = &rig.ram.mem;
    mem.write_obj(0x7ffu16, GuestAddress(IDT - 8)).unwrap();
    mem.write_obj(u32::try_from(IDT).unwrap(), GuestAddress(IDT - 6))
        .unwrap();
    // Delivery loads the code segment anew, from the table that the entry's registers name.
    mem.write_obj(0x00cf_9b00_0000_ffff_u64, GuestAddress(0x510))
        .unwrap();
    for vector in vectors {
        let handler = HANDLERS + u64::from(*vector) * 0x40;
        // Not iret: a software-only KVM does not know it in protected mode. …; mov eax, wait; jmp eax
        let back = [&[0xb8][..], &wait.to_le_bytes(), &[0xff, 0xe0]].concat();
        let code = [tell(*vector), store(LAPIC_EOI, 0), back].concat();
        mem.write_slice(&code, GuestAddress(handler)).unwrap();
        // A 32-bit interrupt gate.
        let low = handler & 0xffff | 0x10 << 16;
        let gate = low | 0x8e00 << 32;
        mem.write_obj(gate, GuestAddress(IDT + u64::from(*vector) * 8))
            .unwrap();
    }
    Some(rig)
}

fn ready(rig: &mut Rig) -> VcpuThreads {
    let threads = rig.start();
    assert_eq!(rig.next(), Access::Write(0x80, vec![READY]));
    threads
}

fn vector(rig: &Rig, number: u8) -> MsiVector {
    let vector = rig.vm.msi().allocate().unwrap();
    let (addr, data) = message(number);
    vector.set_route(addr, data).unwrap();
    vector
}

#[test]
fn an_eventfd_interrupts_the_guest_once_it_is_unmasked() {
    let Some(mut rig) = rig(&[0x40, 0x41]) else { return };
    let threads = ready(&mut rig);
    let first = vector(&rig, 0x40);
    let second = vector(&rig, 0x41);
    second.unmask().unwrap();

    // What is raised while masked stays pending and does not come.
    first.irqfd().write(1).unwrap();
    assert!(first.is_masked() && first.is_pending());
    second.irqfd().write(1).unwrap();
    assert_eq!(rig.next(), Access::Write(0x80, vec![0x41]));

    // It comes with the unmasking, once.
    first.unmask().unwrap();
    assert_eq!(rig.next(), Access::Write(0x80, vec![0x40]));
    assert!(!first.is_pending());
    first.trigger();
    assert_eq!(rig.next(), Access::Write(0x80, vec![0x40]));
    rig.stop(threads);
}

#[test]
fn a_vector_can_be_retargeted_while_unmasked_and_while_masked() {
    let Some(mut rig) = rig(&[0x40, 0x41, 0x42]) else {
        return;
    };
    let threads = ready(&mut rig);
    let vector = vector(&rig, 0x40);
    vector.unmask().unwrap();
    vector.trigger();
    assert_eq!(rig.next(), Access::Write(0x80, vec![0x40]));

    let (addr, data) = message(0x41);
    vector.set_route(addr, data).unwrap();
    vector.trigger();
    assert_eq!(rig.next(), Access::Write(0x80, vec![0x41]));

    vector.mask().unwrap();
    vector.trigger();
    let (addr, data) = message(0x42);
    vector.set_route(addr, data).unwrap();
    assert!(vector.is_pending());
    vector.unmask().unwrap();
    assert_eq!(rig.next(), Access::Write(0x80, vec![0x42]));
    rig.stop(threads);
}

#[test]
fn a_reset_vector_forgets_and_can_be_used_again() {
    let Some(mut rig) = rig(&[0x40, 0x41]) else { return };
    let threads = ready(&mut rig);
    let used = vector(&rig, 0x40);
    used.unmask().unwrap();
    used.reset().unwrap();
    used.trigger();
    assert!(used.is_pending());
    used.reset().unwrap();
    assert!(!used.is_pending());
    // Unmasked without a message, it stays where it is.
    used.unmask().unwrap();
    used.trigger();
    assert!(used.is_pending());
    let (addr, data) = message(0x41);
    used.set_route(addr, data).unwrap();
    assert_eq!(rig.next(), Access::Write(0x80, vec![0x41]));
    rig.stop(threads);
}

#[test]
fn gsis_are_taken_lazily_and_given_back() {
    let Ok(vm) = Vm::new() else { return };
    // Far more vectors than there are GSIs, of which none is in use.
    let many: Vec<_> = (0..8).map(|_| vm.msi().allocate().unwrap()).collect();
    for _ in 0..5000 {
        let vector = vm.msi().allocate().unwrap();
        let (addr, data) = message(0x40);
        vector.set_route(addr, data).unwrap();
        vector.unmask().unwrap();
    }
    drop(many);
}
