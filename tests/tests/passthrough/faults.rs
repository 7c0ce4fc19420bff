//! Devices that fail, fall silent or are pulled out: it is said what has become of them, and the guest goes on.

use crate::rig::Rig;
use crate::{E1000E, GATEWAY};

const NIC_ADDRESS: &str = "10.0.2.15/24";

/// The bridge before a NIC passes nothing on any more, as if the NIC were not there. Then the host gives it up.
pub(crate) fn a_device_that_is_gone_is_given_up(rig: &Rig<'_>) {
    rig.bind(E1000E);
    rig.plug(E1000E);
    rig.guest_pings("modprobe e1000e", "e1000e", NIC_ADDRESS, GATEWAY);
    assert_eq!(rig.state(E1000E), "working");
    let bridge = rig.host(&format!("dirname $(readlink -f /sys/bus/pci/devices/{E1000E})"));
    let bridge = bridge.trim();
    // The number of the bus behind it, and the command register.
    rig.host(&format!(
        "cd {bridge}; dd if=config of=/tmp/bridge bs=1 count=64 2>/dev/null; \
         for at in 25 4; do printf '\\0' | dd of=config bs=1 seek=$at conv=notrunc 2>/dev/null; done"
    ));
    rig.state_becomes(E1000E, "gone");
    rig.guest("true");
    rig.host(&format!("echo 1 > /sys/bus/pci/devices/{E1000E}/remove"));
    assert_eq!((rig.pinned(), rig.devices().as_str()), (0, ""));
    rig.guest("true");
    rig.host(&format!(
        "cd {bridge}; for at in 4 25; do dd if=/tmp/bridge of=config bs=1 skip=$at seek=$at count=1 conv=notrunc 2>/dev/null; \
         done; echo 1 > /sys/bus/pci/rescan"
    ));
    // It can be had anew.
    rig.bind(E1000E);
    rig.plug(E1000E);
    rig.guest_pings("true", "e1000e", NIC_ADDRESS, GATEWAY);
    rig.unplug(E1000E);
}

/// The machine's own hot-plug takes the NIC from under the host, which wants it back from the guest, which lets go of it.
pub(crate) fn a_slot_is_emptied_while_its_nic_is_in_use(rig: &Rig<'_>) {
    rig.plug(E1000E);
    rig.guest_pings("modprobe e1000e", "e1000e", NIC_ADDRESS, GATEWAY);
    let traffic = rig.lab.start("a", &["ping", "-A", "-w", "600", GATEWAY]);
    rig.lab.yard().monitor().run("device_del e1000e");
    rig.host_until(&format!("[ ! -e /sys/bus/pci/devices/{E1000E} ]"));
    drop(traffic);
    assert_eq!((rig.pinned(), rig.devices().as_str()), (0, ""));
    rig.guest("true");
}

/// Uncorrectable errors, fatal to the link or not, that a device reports to its root port. The software NICs leave reporting out,
/// so the device is another one, in the NIC's slot.
pub(crate) fn an_error_stops_a_device(rig: &Rig<'_>) {
    rig.push("virtio-rng-pci,aer=on,disable-legacy=on,iommu_platform=on");
    rig.bind(E1000E);
    for error in ["COMP_TIME", "DLP"] {
        rig.plug(E1000E);
        let place = rig.place(E1000E);
        rig.guest_until(&format!("[ -e /sys/bus/pci/devices/{place}/driver ]"));
        assert_eq!(rig.state(E1000E), "working");
        rig.report_error(error);
        rig.state_becomes(E1000E, "failed");
        rig.guest("true");
        rig.unplug(E1000E);
        assert_eq!((rig.pinned(), rig.devices().as_str()), (0, ""));
    }
    rig.pull();
}
