//! Taking vCPUs out of the guest and putting them back.

use super::*;

/// `inc dword [0x3000]; jmp -8`: counts for ever without an exit.
const COUNT: [u8; 8] = [0xff, 0x05, 0, 0x30, 0, 0, 0xeb, 0xf8];

fn count(rig: &Rig) -> u32 {
    rig.ram.mem.read_obj(GuestAddress(0x3000)).unwrap()
}

fn wait_for_more(rig: &Rig, than: u32) {
    let deadline = std::time::Instant::now() + LIMIT;
    while count(rig) <= than {
        assert!(std::time::Instant::now() < deadline, "the guest does not run");
        std::thread::yield_now();
    }
}

#[test]
fn a_busy_guest_is_paused_and_goes_on() {
    let Some(mut rig) = Rig::new(&COUNT) else { return };
    let threads = rig.start();
    for _ in 0..50 {
        let before = count(&rig);
        wait_for_more(&rig, before);
        threads.pause().unwrap();
        let held = count(&rig);
        std::thread::yield_now();
        assert_eq!(count(&rig), held);
        threads.resume();
    }
    rig.stop(threads);
}

#[test]
fn a_halted_guest_is_paused_and_stopped() {
    let Some(mut rig) = Rig::new(&[&tell(1)[..], &HALT].concat()) else {
        return;
    };
    let threads = rig.start();
    assert_eq!(rig.next(), Access::Write(0x80, vec![1]));
    threads.pause().unwrap();
    threads.pause().unwrap();
    threads.resume();
    rig.stop(threads);
    assert_eq!(rig.vcpus.len(), 1);
}

/// Pauses that chase resumes, without anything to wait for in between.
#[test]
fn no_pause_is_lost() {
    let Some(mut rig) = Rig::new(&COUNT) else { return };
    let threads = rig.start();
    for _ in 0..2000 {
        threads.pause().unwrap();
        threads.resume();
    }
    rig.stop(threads);
}

#[test]
fn a_triple_fault_is_reported_and_a_reset_vcpu_starts_over() {
    // lidt [0x3000] with nothing there; then an undefined instruction.
    let fault = [0x0f, 0x01, 0x1d, 0, 0x30, 0, 0, 0x0f, 0x0b];
    let Some(mut rig) = Rig::new(&fault) else { return };
    let threads = rig.start();
    let event = rig.events.recv_timeout(LIMIT).expect("the guest has no way on");
    assert!(matches!(event, VcpuEvent::Shutdown), "{event:?}");
    // It stays out, and can be paused like any other.
    threads.pause().unwrap();
    threads.resume();
    rig.stop(threads);

    rig.vcpus[0].reset().unwrap();
    rig.load(&[&tell(2)[..], &HALT].concat());
    let threads = rig.start();
    assert_eq!(rig.next(), Access::Write(0x80, vec![2]));
    rig.stop(threads);
}
