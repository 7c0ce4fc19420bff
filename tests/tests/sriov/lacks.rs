//! What `sriov` says of a host that lacks something, on hosts that do.

use netyard_tests::{bin, markdown};

use crate::PF;
use crate::machine::Machine;

#[test]
fn e2e_sriov_tells_what_the_host_lacks() {
    let machine = Machine::boot("intremap=off");
    let (code, text) = machine.sriov("check");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("interrupt remapping is off"), "{text}");
    drop(machine);

    let machine = Machine::boot("intel_iommu=off");
    let (code, text) = machine.sriov("check");
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("the IOMMU is off") && text.contains("remove intel_iommu=off"),
        "{text}"
    );
    machine.refused(&format!("bind {PF}"), "turn on the IOMMU");
    let mut lab = machine.lab();
    lab.args(["up", "--host", "emulated", "--engine", "vmm"])
        .arg(markdown::repository().join("topologies/labs/sriov.lab.yaml"));
    let output = bin::finish(&mut lab);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("this host cannot give devices to guests: the IOMMU is off"),
        "{text}"
    );
    // Without its module there is nothing to load.
    machine.shell("mount -t tmpfs none /lib/modules");
    let (_, text) = machine.sriov("check");
    assert!(text.contains("has no vfio-pci module"), "{text}");
}
