//! What leaves the guest, and what does not.

use super::*;

#[test]
fn port_and_memory_accesses_arrive_with_their_widths() {
    let device = DEVICE.to_le_bytes();
    let program = [
        // mov dx, PORT; in al, dx; out dx, ax; out dx, eax
        &[0x66, 0xba][..],
        &PORT.to_le_bytes(),
        &[0xec, 0x66, 0xef, 0xef],
        // mov al, [DEVICE]; mov [DEVICE + 3], ax
        &[0xa0],
        &device,
        &[0x66, 0xa3, 3],
        &device[1..],
        &HALT,
    ]
    .concat();
    let Some(mut rig) = Rig::new(&program) else { return };
    let threads = rig.start();
    assert_eq!(rig.next(), Access::Read(0x80, 1));
    assert!(matches!(rig.next(), Access::Write(0x80, data) if data.len() == 2 && data[0] == 0x5a));
    assert!(matches!(rig.next(), Access::Write(0x80, data) if data.len() == 4 && data[0] == 0x5a));
    assert_eq!(rig.next(), Access::Read(u64::from(DEVICE), 1));
    assert!(
        matches!(rig.next(), Access::Write(addr, data) if addr == u64::from(DEVICE) + 3 && data.len() == 2)
    );
    rig.stop(threads);
}

#[test]
fn a_string_of_port_writes_is_one_access_each() {
    // mov dx, PORT; mov esi, 0x3000; mov ecx, 3; cld; rep outsw
    let program = [
        &[0x66, 0xba][..],
        &PORT.to_le_bytes(),
        &[0xbe, 0, 0x30, 0, 0, 0xb9, 3, 0, 0, 0, 0xfc, 0xf3, 0x66, 0x6f],
        &HALT,
    ]
    .concat();
    let Some(mut rig) = Rig::new(&program) else { return };
    rig.ram.mem.write_slice(b"abcdef", GuestAddress(0x3000)).unwrap();
    let threads = rig.start();
    for word in [b"ab", b"cd", b"ef"] {
        assert_eq!(rig.next(), Access::Write(0x80, word.to_vec()));
    }
    rig.stop(threads);
}

#[test]
fn memory_slots_are_the_guests_memory() {
    let program = [store(0x10_0000, 0x1234_5678), tell(1), HALT.to_vec()].concat();
    let Some(mut rig) = Rig::new(&program) else { return };
    let threads = rig.start();
    assert_eq!(rig.next(), Access::Write(0x80, vec![1]));
    assert_eq!(
        rig.ram.mem.read_obj::<u32>(GuestAddress(0x10_0000)).unwrap(),
        0x1234_5678
    );
    rig.stop(threads);
}

#[test]
fn memory_that_is_taken_away_is_gone() {
    let program = [store(0x10_0000, 1), tell(1), HALT.to_vec()].concat();
    let Some(rig) = Rig::new(&program) else { return };
    let region = rig.ram.regions[0].clone();
    rig.vm.ram_removed(&region);
    // The slot is free again, and the same addresses can be filled again.
    rig.vm.ram_added(&region).unwrap();
    assert!(rig.vm.ram_added(&region).is_err(), "KVM refuses an overlap");
}

#[test]
fn an_ioeventfd_takes_writes_of_every_width_without_an_exit() {
    let device = DEVICE.to_le_bytes();
    let program = [
        store(DEVICE, 7),
        // mov [DEVICE], al; mov [DEVICE], ax
        [&[0xa2][..], &device, &[0x66, 0xa3], &device].concat(),
        tell(1),
        HALT.to_vec(),
    ]
    .concat();
    let Some(mut rig) = Rig::new(&program) else { return };
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    rig.vm.register_ioeventfd(&event, u64::from(DEVICE)).unwrap();
    let threads = rig.start();
    assert_eq!(rig.next(), Access::Write(0x80, vec![1]), "no exit came before");
    assert_eq!(event.read().unwrap(), 3);
    rig.stop(threads);

    rig.vm.unregister_ioeventfd(&event, u64::from(DEVICE)).unwrap();
    rig.vcpus[0].reset().unwrap();
    rig.load(&program);
    let threads = rig.start();
    assert!(matches!(rig.next(), Access::Write(addr, _) if addr == u64::from(DEVICE)));
    assert!(event.read().is_err());
    rig.stop(threads);
}

#[test]
fn a_guest_that_kvm_cannot_go_on_with_is_reported_with_its_instruction() {
    // jmp to where there is no memory to fetch from.
    let program = [&[0xb8][..], &DEVICE.to_le_bytes(), &[0xff, 0xe0]].concat();
    let Some(mut rig) = Rig::new(&program) else { return };
    let threads = rig.start();
    let event = rig.events.recv_timeout(LIMIT).expect("the vCPU gives up");
    match event {
        VcpuEvent::Fault(fault) => {
            assert_eq!(fault.rip, Some(u64::from(DEVICE)));
            assert!(fault.to_string().contains("0xd0000000"), "{fault}");
        }
        VcpuEvent::Shutdown => {}
    }
    rig.stop(threads);
}
