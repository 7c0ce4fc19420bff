//! The kernel's newer interface, iommufd with a file for each device. Debian's kernels come without it, so the emulated host gets
//! Debian's newer kernel with these drivers built for it.

use std::path::Path;
use std::process::Command;

use netyard_tests::bin;
use netyard_tests::lab::{Place, Yard};
use netyard_tests::markdown::repository;

use crate::rig::Rig;
use crate::{E1000E, GATEWAY, GUEST_MIB, VF, VF_MAC, VMM, dma, run};

/// The package of the kernel that the drivers are built for.
const KERNEL: &str = "linux-image-6.12-amd64";

#[test]
fn e2e_vfio_through_iommufd() {
    let mut yard = Yard::new(Place::Emulated);
    let modules = repository().join("target/iommufd-modules");
    bin::succeed(Command::new(repository().join("scripts/iommufd-modules.sh")).arg(&modules));
    yard.set("NETYARD_HOST_KERNEL", Path::new(KERNEL));
    yard.set("NETYARD_HOST_MODULES", &modules);
    let rig = Rig::new(&yard);
    rig.host("modprobe iommufd; modprobe vfio-pci; [ -c /dev/iommu ]");
    run(
        &rig,
        &[
            ("virtual function", |rig| a_vf_works(rig)),
            ("two devices", |rig| two_devices_share_a_map(rig)),
            ("descriptor", |rig| a_device_comes_as_a_descriptor(rig)),
        ],
    );
}

/// The VMM has the device's own file open, and no group.
fn has_its_own_file(rig: &Rig<'_>, vmm: &str) {
    let files = rig.host(&format!("readlink /proc/{vmm}/fd/* || true"));
    assert!(
        files.contains("/dev/vfio/devices/vfio") && files.contains("/dev/iommu"),
        "{files}"
    );
    assert!(!files.lines().any(|file| file == "/dev/vfio/vfio"), "{files}");
}

fn a_vf_works(rig: &Rig<'_>) {
    rig.virtual_function();
    rig.plug(VF);
    has_its_own_file(rig, VMM);
    dma::reaches_guest_memory_alone(rig, VF, GUEST_MIB, VMM);
    rig.vf_works();
    let mac = rig.guest("cat /sys/bus/pci/devices/0000:00:10.0/net/*/address");
    assert_eq!(mac.trim(), VF_MAC);
    rig.restart_guest();
    rig.vf_works();
    rig.unplug(VF);
    assert_eq!(rig.devices(), "");
    dma::reaches_nothing(rig, VF);
    rig.guest("! ls /sys/bus/pci/devices/0000:00:10.0");
    rig.plug(&format!("/sys/bus/pci/devices/{VF}"));
    rig.vf_works();
}

fn two_devices_share_a_map(rig: &Rig<'_>) {
    rig.bind(E1000E);
    rig.plug(E1000E);
    rig.guest_pings("modprobe e1000e", "e1000e", "10.0.2.15/24", GATEWAY);
    dma::reaches_guest_memory_alone(rig, E1000E, GUEST_MIB, VMM);
    rig.unplug(E1000E);
    dma::reaches_nothing(rig, E1000E);
    dma::reaches_guest_memory_alone(rig, VF, GUEST_MIB, VMM);
    rig.vf_works();
    rig.unplug(VF);
}

/// Whoever starts the VMM has opened the device for it. It is not told which one it is.
fn a_device_comes_as_a_descriptor(rig: &Rig<'_>) {
    const MIB: u64 = 256;
    let other = "$(cat /tmp/other.pid)";
    let vmm = bin::path("vmm").display().to_string();
    let image = rig.host("tr '\\0' '\\n' < /proc/$(pidof vmm)/cmdline | grep -A1 -x -e --kernel | tail -1");
    rig.host(&format!(
        "file=/dev/vfio/devices/$(ls /sys/bus/pci/devices/{E1000E}/vfio-dev); \
         {vmm} run --kernel {} --memory {MIB}M --serial off --api-socket /tmp/other.sock --device fd=9 \
         9<>$file > /tmp/other.log 2>&1 < /dev/null & echo $! > /tmp/other.pid",
        image.trim()
    ));
    rig.host_until(&format!(
        "{vmm} device --api-socket /tmp/other.sock list | grep -x 'fd=9  at 0000:00:10.0 in the guest  working' || \
         {{ cat /tmp/other.log; false; }}"
    ));
    has_its_own_file(rig, other);
    dma::reaches_guest_memory_alone(rig, E1000E, MIB, other);
    rig.host(&format!(
        "kill -9 {other}; while [ -d /proc/{other} ]; do sleep 0.1; done"
    ));
    dma::comes_to_reach_nothing(rig, E1000E);
}
