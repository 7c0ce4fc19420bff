//! Interrupts of devices: by the pin, by messages and by tables of messages, on the CPU that the guest chose.

use netyard_tests::deadline::wait_for;

use crate::rig::{PATIENCE, Rig};
use crate::{E1000E, GATEWAY, NIC};

const NIC_ADDRESS: &str = "10.0.2.15/24";

/// Interrupts of each CPU, summed over vectors.
fn by_cpu(counts: &[Vec<u64>]) -> [u64; 2] {
    [0, 1].map(|cpu| counts.iter().map(|vector| vector[cpu]).sum())
}

/// Has all interrupts of this name go to one CPU.
fn retarget(rig: &Rig<'_>, name: &str, cpu: usize) {
    rig.guest(&format!(
        "for irq in $(sed -n 's/^ *\\([0-9]*\\):.*{name}.*/\\1/p' /proc/interrupts); do \
         echo {cpu} > /proc/irq/$irq/smp_affinity_list; done"
    ));
}

/// With the pin each interrupt masks it, and the guest's end of interrupt unmasks it. With traffic there is one for each frame
/// at least every now and then, on the CPU that the guest has chosen, also after the driver has masked it for good and taken it
/// anew.
pub(crate) fn of_pin_and_messages(rig: &Rig<'_>) {
    const PINGS: u64 = 20;
    rig.second_cpu();
    rig.bind(E1000E);
    rig.plug(E1000E);
    for (mode, kind, vectors) in [(0, "IO-APIC", 1), (2, "PCI-MSI", 3)] {
        let load = format!("rmmod e1000e 2>/dev/null; modprobe e1000e IntMode={mode}");
        rig.guest_pings(&load, "e1000e", NIC_ADDRESS, GATEWAY);
        let counts = rig.interrupts(kind, "eth1");
        assert_eq!(counts.len(), vectors, "mode {mode}: {counts:?}");
        for cpu in [0, 1] {
            retarget(rig, "eth1", cpu);
            rig.guest_pings("ip link set eth1 down", "e1000e", NIC_ADDRESS, GATEWAY);
            retarget(rig, "eth1", cpu);
            let before = by_cpu(&rig.interrupts(kind, "eth1"))[cpu];
            rig.guest(&format!("ping -c {PINGS} -i 0.1 -W 5 {GATEWAY}"));
            let after = by_cpu(&rig.interrupts(kind, "eth1"))[cpu];
            assert!(
                after - before >= PINGS / 2,
                "mode {mode}: {before} and then {after} on CPU {cpu}"
            );
        }
    }
    rig.unplug(E1000E);
}

/// All vectors that the driver asked for are used, and each fires on each CPU: the driver has every queue interrupt now and then.
pub(crate) fn of_a_whole_nic(rig: &Rig<'_>) {
    rig.bind(NIC);
    rig.plug(NIC);
    is_reset_by_the_guest(rig);
    rig.guest_pings("modprobe igb", "igb", NIC_ADDRESS, GATEWAY);
    for cpu in [0, 1] {
        retarget(rig, "eth1", cpu);
        // The first one is for changes of the link, of which setting the interface up again is one.
        rig.guest_pings("ip link set eth1 down", "igb", NIC_ADDRESS, GATEWAY);
        retarget(rig, "eth1", cpu);
        let before = rig.interrupts("PCI-MSI", "eth1");
        assert!(before.len() > 2, "{before:?}");
        wait_for("an interrupt of every queue", PATIENCE, || {
            let now = rig.interrupts("PCI-MSI", "eth1");
            let mut queues = before.iter().zip(&now).skip(1);
            queues.all(|(before, now)| now[cpu] > before[cpu]).then_some(())
        });
        let now = rig.interrupts("PCI-MSI", "eth1");
        assert!(now[0].iter().sum::<u64>() > 0, "the link: {now:?}");
    }
    rig.unplug(NIC);
    rig.release(NIC);
}

/// A register of the NIC, a ring's address, is cleared by the reset of its function that the guest asks for.
fn is_reset_by_the_guest(rig: &Rig<'_>) {
    let registers = rig.guest_until(&format!(
        "cd /sys/bus/pci/devices/{} && echo 1 > enable && set -- $(sed -n 1p resource) && devmem $(($1 + 0xc000)) 32 0x12380 && \
         devmem $(($1 + 0xc000)) 32 && echo flr > reset_method && echo 1 > reset && devmem $(($1 + 0xc000)) 32 && echo 0 > enable",
        rig.place(NIC)
    ));
    let registers: Vec<&str> = registers.split_whitespace().collect();
    assert_eq!(registers, ["0x00012380", "0x00000000"]);
}

/// A device with the older messages and neither the newer ones nor ports. The guest's driver finds what is plugged into it by
/// its interrupts alone.
pub(crate) fn of_older_messages(rig: &Rig<'_>) {
    rig.push("nec-usb-xhci,msi=on,msix=off");
    rig.push_onto("usb-tablet");
    rig.bind(E1000E);
    rig.plug(E1000E);
    rig.guest("modprobe xhci_pci");
    let tablet = rig.guest_until("grep -l 'QEMU USB Tablet' /sys/bus/usb/devices/*/product");
    let place = rig.place(E1000E);
    let kinds = rig.guest(&format!("cat /sys/bus/pci/devices/{place}/msi_irqs/*"));
    assert_eq!(kinds.trim(), "msi");
    for cpu in [0, 1] {
        retarget(rig, "xhci_hcd", cpu);
        let before = by_cpu(&rig.interrupts("PCI-MSI", "xhci_hcd"))[cpu];
        rig.guest(&format!(
            "cd $(dirname {}); echo 0 > authorized; echo 1 > authorized; cat bConfigurationValue",
            tablet.trim()
        ));
        let after = by_cpu(&rig.interrupts("PCI-MSI", "xhci_hcd"))[cpu];
        assert!(after > before, "{before} and then {after} on CPU {cpu}");
    }
    rig.unplug(E1000E);
    rig.pull();
}
