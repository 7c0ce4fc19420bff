//! What `list` and `check` show.

use crate::tree::{Tree, stderr, stdout};

#[test]
fn lists_physical_and_virtual_functions() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 2);
    let shown = stdout(&tree.run(&["list"]));
    for part in ["eth0", "2/7", "eth0:0", "0000:01:10.2", "igbvf"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&tree.run(&["list", "--format", "json"]))).expect("JSON");
    assert_eq!(json[0]["sriov"]["num_vfs"], 2);
    assert_eq!(json[0]["vfs"][1]["virtual_function"]["pf"], "0000:01:00.0");
    assert_eq!(json[0]["vfs"][1]["group_members"][0], "0000:01:10.2");
}

#[test]
fn check_names_the_cure_for_a_host_without_iommu() {
    let tree = Tree::new();
    tree.function("0000:02:00.0", "0x020000", Some("e1000e"), None);
    let output = tree.run(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("the IOMMU is off"), "{text}");
    assert!(text.contains("intel_iommu=on"), "{text}");
    assert!(text.contains("0000:02:00.0 is in no IOMMU group"), "{text}");
}

#[test]
fn check_tells_interrupt_remapping_apart() {
    let tree = Tree::new();
    tree.function("0000:02:00.0", "0x020000", Some("e1000e"), Some(3));
    let without = tree.run(&["check"]);
    assert_eq!(without.status.code(), Some(1));
    assert!(stdout(&without).contains("interrupt remapping is off"));
    tree.iommu_with_remapping();
    let with = tree.run(&["check"]);
    assert_eq!(with.status.code(), Some(0), "{}", stdout(&with));
}

#[test]
fn a_wrong_name_is_answered_with_the_nearest() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 0);
    let output = tree.run(&["create", "eht0", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("did you mean \"eth0\"?"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_fault_interrupt_of_the_iommu_is_not_remapping() {
    let tree = Tree::new();
    tree.function("0000:02:00.0", "0x020000", Some("e1000e"), Some(3));
    tree.file("sys/kernel/irq/9/chip_name", "DMAR-MSI\n");
    tree.file("sys/kernel/irq/24/chip_name", "PCI-MSI\n");
    let output = tree.run(&["check"]);
    assert!(
        stdout(&output).contains("interrupt remapping is off"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn lists_all_members_of_a_shared_group_and_who_has_what() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 1);
    tree.function("0000:01:00.1", "0x0c0330", Some("xhci_hcd"), Some(1));
    tree.link("proc/77/fd/9", "/dev/vfio/20");
    tree.file("proc/77/comm", "vmm\n");
    let shown = stdout(&tree.run(&["list"]));
    for part in ["1 (+1)", "0000:01:00.0 0000:01:00.1", "vmm (77)", "flr bus"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}

#[test]
fn check_tells_what_keeps_a_physical_function_from_having_virtual_ones() {
    let tree = Tree::new();
    tree.iommu_with_remapping();
    tree.physical("0000:01:00.0", "eth9", 1);
    tree.file("sys/bus/pci/devices/0000:01:00.0/net/eth9/flags", "0x1002");
    // The first range for virtual functions has a size, and no place.
    let mut resource = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n".repeat(7);
    resource += "0x0000000000000000 0x000000000001ffff 0x0000000020140204\n";
    tree.file("sys/bus/pci/devices/0000:01:00.0/resource", &resource);
    let text = stdout(&tree.run(&["check", "eth9"]));
    for part in [
        "eth9 carries this host's default route",
        "no MMIO space for virtual functions, so `create` ends in ENOMEM",
        "pci=realloc",
        "eth9 is down, so its virtual functions have no link",
        "ip link set eth9 up",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }

    let tree = Tree::new();
    tree.function("0000:01:00.0", "0x020000", None, Some(1));
    tree.file("sys/bus/pci/devices/0000:01:00.0/sriov_totalvfs", "7");
    let text = stdout(&tree.run(&["check"]));
    assert!(text.contains("0000:01:00.0 has no driver"), "{text}");
}

#[test]
fn check_counts_the_bus_numbers() {
    let tree = Tree::new();
    let below = "sys/devices/pci0000:00/0000:00:01.0";
    for (bdf, target) in [
        ("0000:00:01.0", "pci0000:00/0000:00:01.0"),
        ("0000:01:00.0", "pci0000:00/0000:00:01.0/0000:01:00.0"),
    ] {
        tree.link(
            &format!("sys/bus/pci/devices/{bdf}"),
            &format!("../../../devices/{target}"),
        );
    }
    tree.file(&format!("{below}/vendor"), "0x1b36");
    tree.file(&format!("{below}/0000:01:00.0/vendor"), "0x8086");
    tree.physical("0000:01:00.0", "eth0", 0);
    // Bus 1 alone is routed; the fifth virtual function would be the first on bus 2.
    tree.config("0000:00:01.0", &[(0x18, 0x0001_0100)]);
    tree.config("0000:01:00.0", &[(0x100, 0x0001_0010), (0x114, 0x0020_0080)]);
    let text = stdout(&tree.run(&["check", "eth0"]));
    assert!(
        text.contains("bus numbers for 4 of its 7 virtual functions"),
        "{text}"
    );
    assert!(text.contains("pci=assign-busses"), "{text}");
}

#[test]
fn check_tells_whether_the_vfio_module_is_there() {
    let tree = Tree::new();
    std::fs::remove_dir_all(tree.path("sys/bus/pci/drivers/vfio-pci")).expect("a folder");
    tree.file("proc/sys/kernel/osrelease", "6.1.0");
    let without = stdout(&tree.run(&["check"]));
    assert!(
        without.contains("kernel 6.1.0 has no vfio-pci module"),
        "{without}"
    );
    assert!(without.contains("install the full kernel package"), "{without}");
    tree.file(
        "lib/modules/6.1.0/modules.dep",
        "kernel/drivers/vfio/pci/vfio-pci.ko:\n",
    );
    let with = stdout(&tree.run(&["check"]));
    assert!(with.contains("modprobe vfio-pci"), "{with}");
}

#[test]
fn an_iommu_that_was_turned_off_is_to_be_turned_on_again() {
    let tree = Tree::new();
    tree.file("proc/cmdline", "quiet intel_iommu=off\n");
    let text = stdout(&tree.run(&["check"]));
    assert!(
        text.contains("remove intel_iommu=off from the kernel command line"),
        "{text}"
    );
}
