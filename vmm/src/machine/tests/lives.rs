//! From power-on to each of the ends.

use super::images::{
    await_button, bzimage, check_start_info, check_zero_page, count_in_memory, elf, halt, out, power_off,
    print, reset,
};
use super::*;
use crate::board::power::PANIC_PORT;

#[test]
fn a_bzimage_starts_with_its_zero_page_and_powers_off() {
    let image = bzimage(&[check_zero_page(), print("hi"), power_off()].concat());
    let Some(running) = start(&image, |_| ()) else {
        return;
    };
    running.wait_for("hi");
    assert_eq!(running.end(), Ending::PoweredOff);
}

#[test]
fn an_elf_kernel_starts_with_its_start_info_and_powers_off() {
    let image = elf(&[check_start_info(), print("hi"), power_off()].concat());
    let Some(running) = start(&image, |_| ()) else {
        return;
    };
    running.wait_for("hi");
    assert_eq!(running.end(), Ending::PoweredOff);
}

#[test]
fn every_reset_begins_a_life_with_clean_memory() {
    let image = bzimage(&[count_in_memory(), halt()].concat());
    let Some(running) = start(&image, |_| ()) else {
        return;
    };
    for life in 1..=4 {
        running.wait_for(&"1".repeat(life));
        assert_eq!(running.control.resets(), life as u64 - 1);
        running.control.command(Command::Reset).unwrap();
    }
    running.control.command(Command::PowerOff).unwrap();
    assert_eq!(running.end(), Ending::Stopped);
}

#[test]
fn a_guest_that_resets_for_ever_can_still_be_stopped() {
    let image = bzimage(&[print("x"), reset()].concat());
    let Some(running) = start(&image, |_| ()) else {
        return;
    };
    running.wait("three lives", |r| r.control.resets() >= 3);
    running.control.command(Command::PowerOff).unwrap();
    assert_eq!(running.end(), Ending::Stopped);
}

#[test]
fn a_reset_is_the_end_where_it_is_to_be() {
    let image = bzimage(&[print("x"), reset()].concat());
    let Some(running) = start(&image, |config| config.reboot = false) else {
        return;
    };
    running.wait_for("x");
    assert_eq!(running.end(), Ending::PoweredOff);
}

#[test]
fn panics_are_told_apart_from_resets() {
    let device = bzimage(&[out(PANIC_PORT, 1), halt()].concat());
    let words = bzimage(&[print("Kernel panic - not syncing: x"), reset()].concat());
    for image in [device, words] {
        let Some(running) = start(&image, |_| ()) else {
            return;
        };
        assert_eq!(running.end(), Ending::Panicked);
    }
}

#[test]
fn the_power_button_asks_the_guest() {
    let image = bzimage(&[print("x"), await_button(), power_off()].concat());
    let Some(running) = start(&image, |_| ()) else {
        return;
    };
    running.wait_for("x");
    running.control.command(Command::Shutdown).unwrap();
    assert_eq!(running.end(), Ending::PoweredOff);
}

#[test]
fn a_guest_that_kvm_cannot_run_ends_with_a_report() {
    // mov eax, 0xd0000000; jmp rax: nothing to fetch from.
    let image = bzimage(&[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0]);
    let Some(running) = start(&image, |config| config.reboot = false) else {
        return;
    };
    match running.end() {
        Ending::Fault(fault) => assert_eq!(fault.rip, Some(0xd000_0000)),
        // Some KVMs give the guest an exception, which it has no handler for.
        other => assert_eq!(other, Ending::PoweredOff),
    }
}

#[test]
fn a_paused_machine_is_still_until_resumed() {
    let image = bzimage(&[print("x"), await_button(), print("y"), halt()].concat());
    let Some(running) = start(&image, |_| ()) else {
        return;
    };
    running.wait_for("x");
    running.control.command(Command::Pause).unwrap();
    assert_eq!(running.control.state(), State::Paused);
    running.control.command(Command::Shutdown).unwrap();
    running.control.command(Command::Pause).unwrap();
    assert_eq!(running.output(), "x");
    running.control.command(Command::Resume).unwrap();
    running.wait_for("xy");
    // A machine that is held can be reset and stopped as well.
    running.control.command(Command::Pause).unwrap();
    running.control.command(Command::Reset).unwrap();
    running.wait_for("xyx");
    running.control.command(Command::Pause).unwrap();
    running.control.command(Command::PowerOff).unwrap();
    assert_eq!(running.end(), Ending::Stopped);
}

#[test]
fn several_processors_and_memory_above_4_gib() {
    let image = bzimage(&[print("x"), power_off()].concat());
    let Some(running) = start(&image, |config| {
        config.cpus = 32;
        config.ram.size = 5 << 30;
    }) else {
        return;
    };
    assert_eq!(running.end(), Ending::PoweredOff);
}

#[test]
fn nodes_that_do_not_add_up_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = |cpus, mib: u64| config::NodeConfig {
        cpus,
        ram: crate::memory::RamNode {
            size: mib << 20,
            host_node: None,
        },
    };
    let check = |nodes: &[config::NodeConfig]| {
        let config = VmConfig {
            cpus: 4,
            nodes: nodes.to_vec(),
            ..config(folder.path(), &[])
        };
        config.check()
    };
    assert_eq!(check(&[node(0..=1, 16), node(2..=3, 16)]), Ok(()));
    for (nodes, wrong) in [
        ([node(0..=1, 16), node(2..=3, 8)], "sums"),
        ([node(0..=1, 16), node(3..=3, 16)], "processor 2 is in no node"),
        ([node(0..=1, 16), node(1..=3, 16)], "processor 1 is in two nodes"),
        (
            [node(0..=1, 16), node(2..=4, 16)],
            "processor 4 is in a node but not",
        ),
    ] {
        let error = check(&nodes).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_refused_before_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let image = bzimage(&halt());
    let mut config = config(folder.path(), &image);
    if Vm::new().is_err() {
        return;
    }
    config.cpus = 255;
    assert!(matches!(Machine::new(&config), Err(MachineError::Cpus(255, _))));
    config.cpus = 1;
    config.initrd = Some(folder.path().join("missing"));
    assert!(matches!(Machine::new(&config), Err(MachineError::Initrd(..))));

    let initrd = folder.path().join("initrd");
    std::fs::File::create(&initrd).unwrap().set_len(64 << 20).unwrap();
    config.initrd = Some(initrd);
    let error = Machine::new(&config).unwrap().run().unwrap_err();
    assert!(
        matches!(error, MachineError::Boot(BootError::InitrdTooLarge(_))),
        "{error}"
    );
    config.initrd = None;
    config.cmdline = "x".repeat(3000);
    let error = Machine::new(&config).unwrap().run().unwrap_err();
    assert!(
        matches!(error, MachineError::Boot(BootError::CmdlineTooLong(3000, 2047))),
        "{error}"
    );
}
